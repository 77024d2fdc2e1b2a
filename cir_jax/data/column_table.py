# SPDX-License-Identifier: Apache-2.0
"""Rows of the image table that come from triplets in columns: a name is made when it is needed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from cir_jax.data.column_images import Images, PartImages
from cir_jax.data.stacked import Stacked
from cir_jax.data.triplet_columns import BLOCK, Columns, Share
from cir_jax.data.triplets import TripletSet

# Strings of a list, or large ones of Arrow.
Strings = list[str] | Any


class _Rows(Sequence[Any]):
    """Something of some rows.

    Args:
      images: of a file of triplets.
      numbers: int32, the name of each row.
    """

    def __init__(self, images: PartImages, numbers: np.ndarray):
        self.images, self.numbers = images, numbers

    def __len__(self) -> int:
        return len(self.numbers)


class PartNames(_Rows):
    """Names of some rows; arguments as of `_Rows`."""

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return self.images.part.names.take(self.numbers[row]).to_pylist()
        return self.images.part.names[int(self.numbers[row])]

    def blocks(self) -> Iterator[Any]:
        """Arrow strings: all names, in their order."""
        for first in range(0, len(self), BLOCK):
            yield self.images.part.names.take(self.numbers[first : first + BLOCK])

    def __iter__(self) -> Iterator[str]:
        for block in self.blocks():
            yield from block.to_pylist()


class PartFiles(_Rows):
    """Files of some rows; arguments as of `_Rows`."""

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return [self.images.file(int(number)) for number in self.numbers[row]]
        return self.images.file(int(self.numbers[row]))


def opened(sets: Sequence[TripletSet], paths: Mapping[str, Any]) -> Sequence[Any]:
    """Files of the images of all triplets."""
    names: dict[str, None] = {}
    files: list[Sequence[Any]] = []
    for one in sets:
        if isinstance(one.triplets, Columns) and isinstance(one.paths, Images):
            files += [PartFiles(p, np.flatnonzero(shown)) for p, shown in one.paths.parts.items()]
        else:
            names |= dict.fromkeys(n for t in one.triplets for n in (t.reference, t.target))
    return Stacked([[paths[name] for name in names if name in paths], *files])


class RowOf(Mapping[str, int]):
    """Name -> row of the image table, of names in a dict and of those of files of triplets.

    Args:
      known: name -> row.
      parts: images of a file of triplets -> int32, the row of each of its names, -1 for none.
      own: images of a file -> bool, the names that neither `known` nor an earlier file has.
    """

    def __init__(
        self,
        known: Mapping[str, int],
        parts: Mapping[PartImages, np.ndarray],
        own: Mapping[PartImages, np.ndarray],
    ):
        self.known, self.parts, self.own = dict(known), dict(parts), dict(own)
        self._of = {images.part: rows for images, rows in self.parts.items()}

    def __getitem__(self, name: str) -> int:
        if name in self.known:
            return self.known[name]
        for images, rows in self.parts.items():
            number = images.part.names.find(name)
            if number >= 0 and rows[number] >= 0:
                return int(rows[number])
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        yield from self.known
        for images, own in self.own.items():
            yield from PartNames(images, np.flatnonzero(own))

    def __len__(self) -> int:
        return len(self.known) + sum(int(own.sum()) for own in self.own.values())

    def extended(self, more: Mapping[str, int]) -> "RowOf":
        """With more names."""
        return RowOf(self.known | dict(more), self.parts, self.own)

    def rows(self, share: Share) -> tuple[np.ndarray, np.ndarray]:
        """int32: rows of the references and of the targets of some triplets."""
        rows = self._of[share.part]
        return rows[share.names("reference")], rows[share.names("target")]

    def in_order(self) -> Iterator[tuple[Any, np.ndarray]]:
        """(names, int64 rows) of all names in their alphabetical order, in blocks.

        Names of files of triplets come as Arrow strings, others as lists.
        """
        take, order, rows = self._large()
        start = 0
        for name in [*sorted(self.known), None]:
            end = len(order) if name is None else _place(name, take, order, start)
            for first in range(start, end, BLOCK):
                some = order[first : min(first + BLOCK, end)]
                yield take(some), rows[some].astype(np.int64)
            start = end
            if name is not None:
                yield [name], np.asarray([self.known[name]], np.int64)

    def _large(self) -> tuple[Callable[[np.ndarray], Any], np.ndarray, np.ndarray]:
        """Of the names of files of triplets: (places -> Arrow strings, their order, their rows)."""
        import pyarrow as pa
        import pyarrow.compute as pc

        if len(self.own) == 1:
            [(images, own)] = self.own.items()
            if not images.part.names.more:  # its order is kept with the file
                order = images.part.names.order
                return images.part.names.take, order[own[order]], self.parts[images]
        numbers = {images: np.flatnonzero(own) for images, own in self.own.items()}
        names = [images.part.names.take(some) for images, some in numbers.items()]
        every = pa.concat_arrays([pa.array([], pa.large_string()), *names])
        rows = [self.parts[images][some] for images, some in numbers.items()]
        order = pc.array_sort_indices(every).to_numpy()
        return (
            lambda places: every.take(pa.array(places)),
            order,
            np.concatenate([np.zeros(0, np.int32), *rows]),
        )


def _place(name: str, take: Callable[[np.ndarray], Any], order: np.ndarray, start: int) -> int:
    """How many of the ordered names come before a name, of which `start` surely do."""
    end = len(order)
    while start < end:
        middle = (start + end) // 2
        if take(order[middle : middle + 1])[0].as_py() < name:
            start = middle + 1
        else:
            end = middle
    return start


def line(names: Strings, numbers: np.ndarray, first: bool = False) -> Strings:
    """Names and numbers with a tab between them; `first`: the number is."""
    if isinstance(names, list):
        pairs = zip(names, numbers.tolist(), strict=True)
        return [f"{number}\t{name}" if first else f"{name}\t{number}" for name, number in pairs]
    import pyarrow as pa
    import pyarrow.compute as pc

    written = pa.array(numbers).cast(pa.large_string())
    pair = (written, names) if first else (names, written)
    return pc.binary_join_element_wise(*pair, _large("\t"))


def ended(strings: Strings) -> bytes | memoryview:
    """All of some strings, each with a line end."""
    if isinstance(strings, list):
        return "".join(f"{one}\n" for one in strings).encode()
    import pyarrow.compute as pc

    return _characters(pc.binary_join_element_wise(strings, _large("\n"), _large("")))


def measured(strings: Strings) -> bytes | memoryview:
    """All of some strings, each behind a line with the number of its bytes."""
    if isinstance(strings, list):
        content = [one.encode(errors="surrogatepass") for one in strings]
        return b"".join(b"%d\n%b" % (len(one), one) for one in content)
    import pyarrow as pa
    import pyarrow.compute as pc

    lengths = pc.binary_length(strings).cast(pa.large_string())
    return _characters(pc.binary_join_element_wise(lengths, strings, _large("\n")))


def _large(text: str) -> Any:
    import pyarrow as pa

    return pa.scalar(text, pa.large_string())


def _characters(strings: Any) -> memoryview:
    """The bytes of Arrow strings, behind each other."""
    _, ends, characters = strings.buffers()
    if characters is None or not len(strings):
        return memoryview(b"")
    places = np.frombuffer(ends, np.int64)
    first, last = places[strings.offset], places[strings.offset + len(strings)]
    return memoryview(characters)[int(first) : int(last)]
