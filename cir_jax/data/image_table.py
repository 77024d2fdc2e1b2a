# SPDX-License-Identifier: Apache-2.0
"""The image table: the only place where an image gets a number.

Labels, bank rows and galleries all use its rows, so two numberings of one image cannot drift apart.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cir_jax.data import unusable
from cir_jax.data.annotations import read_json
from cir_jax.data.column_images import Images
from cir_jax.data.column_rows import ColumnRows, unknown
from cir_jax.data.column_table import PartFiles, PartNames, RowOf, Strings, ended, line
from cir_jax.data.places import Identity
from cir_jax.data.stacked import Stacked, stacked
from cir_jax.data.triplet_columns import Columns
from cir_jax.data.triplets import Triplet, TripletSet
from cir_jax.errors import UserError, nearest

_THREADS = 16  # that read samples


class ImageTable:
    """Distinct images in a fixed order.

    Attributes:
      names: row -> name of its image (of the first one, where several files are pixel-identical).
      paths: row -> its file, as `cir_jax.data.pixels.Preprocess` takes it.
      row_of: name -> row, for every name, duplicates included.
      unlabelled: how many rows, the last ones, are of images that no triplet names.
    """

    def __init__(
        self,
        names: Sequence[str],
        paths: Sequence[Any],
        row_of: Mapping[str, int],
        unlabelled: int = 0,
    ):
        self.unlabelled = unlabelled
        self.names = names if isinstance(names, Stacked) else tuple(names)
        self.paths = paths if isinstance(paths, Stacked) else tuple(paths)
        self.row_of = row_of if isinstance(row_of, RowOf) else dict(row_of)

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def from_sets(cls, sets: Sequence[TripletSet], optimized: str = "") -> "ImageTable":
        """The images of all triplets, in first-seen order, the reference before the target.

        Names of one file share a row, which has the first of them (but see `TripletSet.by_name`).

        Args:
          sets: annotated and generated triplets.
          optimized: path of an `optimized_images.json`, which lets pixel-identical images share a
            row. Rows that no triplet reaches are left out: the released code keeps them as
            all-zero bank rows, a constant negative.

        Raises:
          UserError: a triplet names an image that has no path, or is not in `optimized`; or two
            sets call two files by one name.
        """
        builder = _Builder(sets, optimized)
        ahead = sum(not isinstance(one.triplets, Columns) for one in sets)
        for place, one in enumerate(sets):
            # Those in memory come first, as everywhere; else none is treated as columns.
            if isinstance(one.triplets, Columns) and place >= ahead:
                builder.add_columns(one, one.triplets)
            else:
                builder.add(one)
        return builder.table()

    def extended(self, names: Sequence[str], paths: Sequence[Any]) -> "ImageTable":
        """The table with more rows behind its own, for images that no triplet names."""
        more = {name: len(self) + i for i, name in enumerate(names)}
        unlabelled = self.unlabelled + len(names)
        row_of = self.row_of
        return ImageTable(
            stacked([self.names, tuple(names)]),
            stacked([self.paths, tuple(paths)]),
            row_of.extended(more) if isinstance(row_of, RowOf) else row_of | more,
            unlabelled,
        )

    def files(self) -> Mapping[str, Any]:
        """Name -> file of the image of each row."""
        if isinstance(self.names, tuple):
            return dict(zip(self.names, self.paths, strict=True))
        return _TableFiles(self)

    def pairs(self, triplets: Sequence[Triplet]) -> tuple[np.ndarray, np.ndarray]:
        """int32: rows of the references and of the targets of triplets, -1 for none.

        Raises:
          UserError: a name is not in the table.
        """
        if isinstance(triplets, Columns) and isinstance(self.row_of, RowOf):
            found = [self.row_of.rows(share) for share in triplets.shares]
            none = (np.zeros(0, np.int32),)
            references, targets = zip(*found, strict=True) if found else (none, none)
            return np.concatenate(references), np.concatenate(targets)
        return self.rows(t.reference for t in triplets), self.rows(t.target for t in triplets)

    def rows(self, names: Iterable[str]) -> np.ndarray:
        """Rows of `names`, int32; "" gives -1.

        Raises:
          UserError: a name is not in the table.
        """
        rows = []
        for name in names:
            if name and name not in self.row_of:
                raise UserError(
                    f"image {name!r} is not in the image table of {len(self)} images;"
                    f"{nearest(name, self.row_of)}"
                )
            rows.append(self.row_of[name] if name else -1)
        return np.asarray(rows, np.int32)

    def name_blocks(self) -> Iterator[Strings]:
        """The names in the order of their rows."""
        for part in self.names.parts if isinstance(self.names, Stacked) else [self.names]:
            if isinstance(part, PartNames):
                yield from part.blocks()
            else:
                yield list(part)

    def in_order(self) -> Iterator[tuple[Strings, np.ndarray]]:
        """(names, their rows), all in alphabetical order."""
        if isinstance(self.row_of, RowOf):
            yield from self.row_of.in_order()
        elif self.row_of:
            names = sorted(self.row_of)
            yield names, np.asarray([self.row_of[name] for name in names], np.int64)

    def fingerprint(self) -> str:
        """sha256 over the order of the names, the row of every name, and unlabelled pictures.

        A data set's names tell its images apart. Those of unlabelled ones come from any folder, and
        two folders may hold other pictures by the same names.

        Raises:
          UserError: an unlabelled image cannot be read.
        """
        digest = hashlib.sha256()
        for names in self.name_blocks():
            digest.update(ended(names))
        for names, rows in self.in_order():
            digest.update(ended(line(names, rows)))
        digest.update(self.unlabelled_content())
        return digest.hexdigest()

    def unlabelled_content(self) -> bytes:
        """What tells the pictures of the unlabelled rows from others; b"" where there are none.

        Raises:
          UserError: one cannot be read.
        """
        paths = self.paths[len(self) - self.unlabelled :]
        with ThreadPoolExecutor(_THREADS) as pool:
            return b"".join(pool.map(_content, paths))


class _TableFiles(Mapping[str, Any]):
    """Name -> file of the rows of a table."""

    def __init__(self, table: ImageTable):
        self._table = table

    def __len__(self) -> int:
        return len(self._table)

    def __iter__(self) -> Iterator[str]:
        return iter(self._table.names)

    def __getitem__(self, name: str) -> Any:
        return self._table.paths[self._table.row_of[name]]


def _content(path: Any) -> bytes:
    """What tells a picture from others: its size, and a few bytes of its start, middle and end.

    Neither its place nor its date, which differ between machines that hold the same data.
    """
    try:
        size, *parts = unusable.samples(path)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror or error}); bring it, or set "
            "data.on_missing=drop to leave it out"
        ) from None
    return hashlib.sha256(f"{size}\n".encode() + b"".join(parts)).digest()


class _Files:
    """The row of each file that has one: an image may be named in two ways."""

    def __init__(self, sets: Sequence[TripletSet]):
        self._spelling, self._file = Identity(follow=False), Identity()
        self._mixed = not all(one.by_name for one in sets)
        self._row_of: dict[tuple[bool, Any], int] = {}

    def row(self, one: TripletSet, path: Any) -> int | None:
        """The row of a file that an image of this set lies in; None if it has none yet."""
        return self._row_of.get(self._key(one.by_name, path))

    def key(self, one: TripletSet, path: Any) -> Any:
        """What is equal for two images of this set that lie in one file."""
        return self._key(one.by_name, path)

    def numbers(self) -> set[int]:
        """`places.file_number` of all files, as far as they have any."""
        return self._file.numbers()

    def note(self, one: TripletSet, path: Any, row: int) -> None:
        """Notes the row of a file; the first one counts."""
        self._row_of.setdefault(self._key(one.by_name, path), row)
        if one.by_name and self._mixed:  # sets that go by files find it, too
            self._row_of.setdefault(self._key(False, path), row)

    def _key(self, by_name: bool, path: Any) -> tuple[bool, Any]:
        return by_name, (self._spelling if by_name else self._file).of(path)


class _Builder:
    """Gives images their rows, set by set."""

    def __init__(self, sets: Sequence[TripletSet], optimized: str):
        self._paths, self._optimized = _merged(sets), optimized
        self._group = groups(optimized) if optimized else None
        self._row_of_group: dict[int, int] = {}
        self._files = _Files(sets)
        self._row_of: dict[str, int] = {}
        self._names: list[Sequence[str]] = []  # of all rows, part by part
        self._places: list[Sequence[Any]] = []
        self._count = 0
        self._columns = ColumnRows(self._row_of, self._files)

    def add(self, one: TripletSet) -> None:
        """The images of triplets that are in memory."""
        names: list[str] = []
        for triplet in one.triplets:
            for name in filter(None, (triplet.reference, triplet.target)):
                if name not in self._row_of:
                    where = f"{one.name} triplet {triplet.query_id}"
                    self._give(name, one, where, names)
        self._names.append(tuple(names))
        self._places.append(tuple(self._paths[n] for n in names))

    def _give(self, name: str, one: TripletSet, where: str, names: list[str]) -> None:
        if name not in self._paths:
            raise unknown(where, name)
        row = self._files.row(one, self._paths[name])
        if row is None:
            row = self._count
            if self._group is not None:
                number = _group_of(name, self._group, where, self._optimized)
                row = self._row_of_group.setdefault(number, row)
        self._row_of[name] = row
        self._files.note(one, self._paths[name], row)
        if row == self._count:
            names.append(name)
            self._count += 1

    def add_columns(self, one: TripletSet, triplets: Columns) -> None:
        """The images of triplets in columns."""
        if self._group is not None:  # files that name each picture are of few images
            self.add(replace(one, triplets=tuple(triplets)))
            return
        for images, numbers in self._columns.give(one, triplets, self._count):
            self._names.append(PartNames(images, numbers))
            self._places.append(PartFiles(images, numbers))
            self._count += len(numbers)

    def table(self) -> ImageTable:
        """The table."""
        return ImageTable(
            stacked(self._names), stacked(self._places), self._columns.row_of(self._row_of)
        )


def _group_of(name: str, group: Mapping[str, int], where: str, optimized: str) -> int:
    if name not in group:
        raise UserError(
            f"{where} names image {name!r}, which is not in {optimized}; make that file anew, or "
            "set data.optimized to nothing"
        )
    return group[name]


def _merged(sets: Sequence[TripletSet]) -> dict[str, Any]:
    """The paths of all sets."""
    paths: dict[str, Any] = {}
    identity = Identity()
    for one in sets:
        # Of triplets in columns those that a rule places cannot be anything else before.
        own = one.paths.special() if isinstance(one.paths, Images) else one.paths
        for name, path in own.items():
            other = paths.setdefault(name, path)
            if other != path and identity.of(other) != identity.of(path):
                raise UserError(
                    f"image {name!r} is {paths[name]} and, in {one.name}, {path}; one name cannot "
                    "be two images: rename one of them"
                )
    return paths


def groups(path: str) -> dict[str, int]:
    """Name -> group of identical images, from the released file [names, paths, {name: group}]."""
    content = read_json(Path(path))
    if len(content) != 3 or not isinstance(content[2], dict):
        raise UserError(
            f"{path} is no optimized_images.json: expected [names, paths, name -> id]; make that "
            "file anew, or set data.optimized to nothing"
        )
    if not content[2]:
        raise UserError(
            f"{path} is empty; the released command line writes such a file when --dataset is "
            "given twice. Make it anew, or set data.optimized to nothing"
        )
    return content[2]
