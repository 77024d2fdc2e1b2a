# SPDX-License-Identifier: Apache-2.0
"""Triplets as columns: those of a file of millions lie in a mapped file, not in memory.

A `Triplet` is made when one is asked for. What goes over all of them works on whole columns:
numbers of names instead of names, blocks of texts instead of single ones. The files are written by
`cir_jax.datasets.conversion`.
"""

import bisect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from cir_jax.data.beside import Damaged
from cir_jax.data.triplets import Triplet, Triplets

ROWS, NAMES, FOLDERS = "rows.arrow", "names.arrow", "folders.arrow"
BLOCK = 1 << 16  # triplets of a block

# Of a name, see `Names.flags`.
PLAIN, PLAIN_PATH, UNPLACED_FIRST, SEVERAL, IS_PATH = 1, 2, 4, 8, 16
NO_PREFIX, OWN_PATH = -1, -2


def key_of(text: str) -> int:
    """A number of 64 bits that tells texts apart."""
    return xxhash.xxh3_64_intdigest(text.encode(errors="surrogatepass"))


NUMBERED = ("", "line", "list", "name")  # ways in which records are called


def numbering(file: Path, kind: str) -> str:
    """What stands before the number of a record in its name; `kind` is one of `numbered`."""
    return {"line": f"{file}:", "list": f"{file} record ", "name": f"{file.name}/"}.get(kind, "")


def numbered(file: Path, called: str) -> str:
    """In which way the record of a file is called."""
    fitting = (k for k in ("line", "list", "name") if called.startswith(numbering(file, k)))
    return next(fitting)


class Names:
    """The distinct names of a file, numbered in the order in which they come.

    Attributes:
      column: Arrow strings, those of the file.
      more: names behind them, of images that are called otherwise there.
      keys: uint64, `key_of` each name of the file.
      by_key: int32, numbers of the names of the file in the order of their keys.
      order: int32, the same in the order of the names.
      flags: uint8 bits. PLAIN: the name, PLAIN_PATH: its path, can be joined to a folder as it is.
        UNPLACED_FIRST: its first record gave no path. SEVERAL: its records gave several paths.
        IS_PATH: a record says that names are paths.
      prefix: int32; a path is `prefixes[prefix]` and the name; NO_PREFIX for none, OWN_PATH for one
        that is in `paths`.
      prefixes: see there.
      folder: int32; a name begins with `folders[folder]`, "" or what ends with "/".
      by_folder: int32, numbers of the names of the file, those of one folder together.
      folders: Arrow strings.
      paths: Arrow lists of strings: every path of a name that has an own one or several.
      records: Arrow lists of int64: the numbers of the records that gave them.
    """

    def __init__(self, path: Path, prefixes: Sequence[str]):
        batch = batches(path)[0]
        self.column = batch.column("name")
        self.paths, self.records = batch.column("paths"), batch.column("records")
        self.more: list[str] = []
        self.prefixes = tuple(prefixes)
        self.keys, self.by_key, self.order, self.flags, self.prefix, self.folder, self.by_folder = (
            batch.column(name).to_numpy()
            for name in ("key", "by_key", "order", "flags", "prefix", "folder", "by_folder")
        )
        self.folders = batches(path.with_name(FOLDERS))[0].column(0)

    def __len__(self) -> int:
        return len(self.column) + len(self.more)

    def __getitem__(self, number: int) -> str:
        own = len(self.column)
        return self.column[number].as_py() if number < own else self.more[number - own]

    def take(self, numbers: np.ndarray) -> Any:
        """Arrow strings: the names of these numbers."""
        import pyarrow as pa

        if not self.more:
            return self.column.take(pa.array(numbers))
        taken = self.column.take(pa.array(np.minimum(numbers, len(self.column) - 1))).to_pylist()
        for place in np.flatnonzero(numbers >= len(self.column)).tolist():
            taken[place] = self[int(numbers[place])]
        return pa.array(taken, pa.large_string())

    def said(self, number: int) -> list[tuple[str | None, int]]:
        """What records say of where an image lies: (path, row of the triplet, -1 if unknown).

        A path is None where a record gives none, and "" where it says that its names are paths.
        """
        flags, found = int(self.flags[number]), list[tuple[str | None, int]]()
        if flags & UNPLACED_FIRST:
            found.append(("" if flags & IS_PATH else None, -1))
        paths, rows = self.paths[number].as_py(), self.records[number].as_py()
        if paths is not None:
            found += zip(paths, rows, strict=True)
        elif self.prefix[number] >= 0:
            found.append((self.prefixes[self.prefix[number]] + self[number], -1))
        return found

    def find(self, name: str) -> int:
        """The number of a name; -1 if it has none."""
        key = key_of(name)
        first = bisect.bisect_left(
            range(len(self.by_key)), key, key=lambda i: int(self.keys[self.by_key[i]])
        )
        for place in range(first, len(self.by_key)):
            number = int(self.by_key[place])
            if self.keys[number] != key:
                break
            if self.column[number].as_py() == name:
                return number
        return len(self.column) + self.more.index(name) if name in self.more else -1

    def shared(self, other: "Names") -> tuple[np.ndarray, np.ndarray]:
        """(numbers here, numbers there) of the names that both have."""
        pairs = [(len(self.column) + i, other.find(name)) for i, name in enumerate(self.more)]
        pairs += [(self.find(n), len(other.column) + i) for i, n in enumerate(other.more)]
        if len(self.by_key) and len(other.by_key):
            keys, theirs = self.keys[self.by_key], other.keys[other.by_key]
            place = np.minimum(np.searchsorted(theirs, keys), len(theirs) - 1)
            hit = theirs[place] == keys
            mine, there = self.by_key[hit], other.by_key[place[hit]]
            equal = self._equal(mine, other, there)
            pairs += [(int(i), other.find(self[int(i)])) for i in mine[~equal]]  # of equal keys
        else:
            mine = there = np.zeros(0, np.int32)
            equal = np.zeros(0, bool)
        odd = np.asarray([p for p in pairs if min(p) >= 0], np.int32).reshape(-1, 2)
        both = np.concatenate([np.stack([mine[equal], there[equal]], axis=1), odd])
        return both[:, 0], both[:, 1]

    def _equal(self, mine: np.ndarray, other: "Names", there: np.ndarray) -> np.ndarray:
        """Whether names here and there are equal, pair by pair."""
        import pyarrow.compute as pc

        found = [np.zeros(0, bool)]
        for first in range(0, len(mine), BLOCK):
            part = slice(first, first + BLOCK)
            same = pc.equal(self.take(mine[part]), other.take(there[part]))
            found.append(same.to_numpy(zero_copy_only=False))
        return np.concatenate(found)


class Part:
    """The triplets of one file.

    Args:
      folder: where `cir_jax.datasets.conversion` has written them.
      noted: what it noted.
      file: the file, as messages call it.

    Attributes:
      names: its names.
      alias: int32, number of each name in the form that the data set uses, see `rename`; None
        where all are in it.
      file, sources: the file, and names of its sources.
      several: whether any triplet has several right answers.
      what, identity: what is kept beside the file, and the hash of it; "" if nothing is.
    """

    def __init__(self, folder: Path, noted: Mapping[str, Any], file: Path):
        self.file, self.sources = file, tuple(noted["sources"])
        self.several = bool(noted["several"])
        self.what, self.identity = str(noted["what"]), str(noted["identity"])
        self._called = numbering(file, noted["numbered"])
        self.names = Names(folder / NAMES, noted["prefixes"])
        self.alias: np.ndarray | None = None
        self.blocks = batches(folder / ROWS)
        self.starts = np.cumsum([0, *(len(block) for block in self.blocks)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def rename(self, changed: Mapping[int, str]) -> None:
        """Gives names another form: number -> what it is called."""
        if not changed:
            return
        alias = np.arange(len(self.names), dtype=np.int32)
        for number, name in changed.items():
            there = self.names.find(name)
            if there < 0:
                there = len(self.names)
                self.names.more.append(name)
            alias[number] = there
        self.alias = alias

    def first(self, number: int) -> Triplet:
        """The first triplet that has a name, by its number, anywhere."""
        names = np.flatnonzero(np.arange(len(self.names)) == number)
        if self.alias is not None:
            names = np.flatnonzero(self.alias == number)
        for start, block in zip(self.starts, self.blocks, strict=False):
            has = np.zeros(len(block), bool)
            for column in ("reference", "target"):
                has |= np.isin(block.column(column).to_numpy(), names)
            for column in ("members", "truths"):
                lists = block.column(column)
                owner = np.repeat(np.arange(len(block)), np.diff(lists.offsets.to_numpy()))
                has[owner[np.isin(lists.flatten().to_numpy(), names)]] = True
            if has.any():
                return self.row(int(start) + int(has.argmax()))
        raise ValueError(f"no triplet of {self.file} names {self.names[number]!r}")

    def record(self, number: int) -> str:
        """How messages call a record of the file that has no name of its own."""
        return f"{self._called}{number}"

    def by_source(self) -> Iterator[tuple[str, "Share"]]:
        """(source, its triplets), in the order in which the sources come."""
        if len(self.sources) == 1:
            yield self.sources[0], Share(self)
            return
        of = np.concatenate([block.column("source").to_numpy() for block in self.blocks])
        for number, source in enumerate(self.sources):
            yield source, Share(self, np.flatnonzero(of == number).astype(np.uint32))

    def row(self, row: int, target: int | None = None) -> Triplet:
        """One triplet; `target`: the number of another target than the one that is written."""
        place = int(np.searchsorted(self.starts, row, side="right")) - 1
        [found] = self.blocks[place].slice(row - int(self.starts[place]), 1).to_pylist()
        return self._triplet(found, target)

    def _triplet(self, found: dict[str, Any], target: int | None) -> Triplet:
        texts = tuple(found["texts"])
        return Triplet(
            self._name(found["reference"]),
            self._name(found["target"]) if target is None else self.names[target],
            texts,
            texts[0],
            self.sources[found["source"]],
            self.record(found["number"]) if found["id"] is None else found["id"],
            members=self._names(found["members"]),
            truths=self._names(found["truths"]),
        )

    def _name(self, number: int) -> str:
        return self.names[number if self.alias is None else int(self.alias[number])]

    def _names(self, numbers: Sequence[int] | None) -> tuple[str, ...]:
        return tuple(map(self._name, numbers or ()))


@dataclass(frozen=True, eq=False)
class Share:
    """Triplets of one file.

    Attributes:
      part: the file.
      rows: uint32, which of its triplets, ascending; None for all.
      target: int32, numbers of their targets, where those are not the ones that are written.
    """

    part: Part
    rows: np.ndarray | None = None
    target: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.part) if self.rows is None else len(self.rows)

    def rows_of_blocks(self) -> Iterator[tuple[Any, np.ndarray | None]]:
        """(block, int64 rows of it, None for all) of every block of the file."""
        for number, block in enumerate(self.part.blocks):
            if self.rows is None:
                yield block, None
                continue
            start = int(self.part.starts[number])
            first, last = np.searchsorted(self.rows, [start, start + len(block)])
            yield block, self.rows[first:last].astype(np.int64) - start

    def column(self, name: str) -> Iterator[Any]:
        """A column of these triplets, in Arrow arrays: one for each block that has any."""
        import pyarrow as pa

        for block, rows in self.rows_of_blocks():
            if rows is None:
                yield block.column(name)
            elif len(rows):
                yield block.column(name).take(pa.array(rows))

    def names(self, column: str) -> np.ndarray:
        """int32: numbers of the names in the column reference or target."""
        if column == "target" and self.target is not None:
            return self.target
        found = [block.to_numpy() for block in self.column(column)]
        numbers = np.concatenate([np.zeros(0, np.int32), *found])
        return numbers if self.part.alias is None else self.part.alias[numbers]

    def answers(self) -> tuple[np.ndarray, np.ndarray]:
        """(triplet of each right answer, number of its name), of triplets with several of them."""
        owner, names, start = [np.zeros(0, np.int64)], [np.zeros(0, np.int32)], 0
        for block in self.column("truths") if self.part.several else ():
            counts = np.diff(block.offsets.to_numpy())
            owner.append(start + np.repeat(np.arange(len(block)), counts))
            names.append(block.flatten().to_numpy())
            start += len(block)
        found = np.concatenate(names)
        alias = self.part.alias
        return np.concatenate(owner), found if alias is None else alias[found]

    def kept(self, mask: np.ndarray) -> "Share":
        """Those of these triplets for which a mask is True."""
        if mask.all():
            return self
        places = np.flatnonzero(mask)
        rows = places.astype(np.uint32) if self.rows is None else self.rows[places]
        return Share(self.part, rows, None if self.target is None else self.target[places])

    def triplet(self, place: int) -> Triplet:
        """One of these triplets."""
        row = place if self.rows is None else int(self.rows[place])
        return self.part.row(row, None if self.target is None else int(self.target[place]))


class Columns(Triplets):
    """Triplets of one source, of one file or of several, behind each other.

    Args:
      shares: of each file.
    """

    def __init__(self, shares: Sequence[Share]):
        self.shares = tuple(one for one in shares if len(one))
        self.starts = np.cumsum([0, *map(len, self.shares)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def one(self, place: int) -> Triplet:
        """The triplet at a place from 0 on."""
        share = int(np.searchsorted(self.starts, place, side="right")) - 1
        return self.shares[share].triplet(place - int(self.starts[share]))

    def text_counts(self) -> list[np.ndarray]:
        """int32: how many texts each triplet has, in blocks."""
        return [
            np.diff(block.offsets.to_numpy()).astype(np.int32)
            for share in self.shares
            for block in share.column("texts")
        ]

    def texts(self) -> Iterator[Any]:
        """Arrow strings: the texts of all triplets, in blocks."""
        for share in self.shares:
            for block in share.column("texts"):
                yield block.flatten()

    def text_keys(self) -> Iterator[np.ndarray]:
        """uint64: `key_of` each text, in blocks."""
        for share in self.shares:
            for block in share.column("keys"):
                yield block.flatten().to_numpy()

    def several(self) -> int:
        """How many triplets have several right answers."""
        return sum(len(np.unique(share.answers()[0])) for share in self.shares)

    def of_each_target(self) -> "Columns":
        """A triplet with several right answers becomes one with each."""
        found = []
        for share in self.shares:
            owner, names = share.answers()
            if not len(owner):
                found.append(share)
                continue
            counts = np.bincount(owner, minlength=len(share))
            place = np.repeat(np.arange(len(share)), np.maximum(counts, 1))
            target = share.names("target")[place]
            target[counts[place] > 0] = names
            rows = place.astype(np.uint32) if share.rows is None else share.rows[place]
            found.append(Share(share.part, rows, target))
        return Columns(found)


def batches(path: Path) -> list[Any]:
    """The record batches of a mapped Arrow file."""
    import pyarrow as pa

    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        return [reader.get_batch(i) for i in range(reader.num_record_batches)]
    except (OSError, pa.ArrowException) as error:
        raise Damaged(f"{path}: {error}") from None
