# SPDX-License-Identifier: Apache-2.0
"""The image table: the only place where an image gets a number.

Labels, bank rows and galleries all use its rows, so two numberings of one image cannot drift apart.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from cir_jax.data import unusable
from cir_jax.data.annotations import read_json
from cir_jax.data.places import Identity
from cir_jax.data.triplets import TripletSet
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
        self.names = tuple(names)
        self.paths = tuple(paths)
        self.row_of = dict(row_of)

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
        paths = _merged(sets)
        group = groups(optimized) if optimized else None
        files = _Files(sets)
        names: list[str] = []
        row_of: dict[str, int] = {}
        row_of_group: dict[int, int] = {}
        for one in sets:
            for triplet in one.triplets:
                for name in filter(None, (triplet.reference, triplet.target)):
                    if name in row_of:
                        continue
                    where = f"{one.name} triplet {triplet.query_id}"
                    if name not in paths:
                        raise UserError(
                            f"{where} names image {name!r}, which is not in the image table; "
                            "correct the annotation file or add the image; the folder of generated "
                            "triplets' own images is data.generated_images"
                        )
                    row = files.row(one, paths[name])
                    if row is None:
                        row = len(names)
                        if group is not None:
                            number = _group_of(name, group, where, optimized)
                            row = row_of_group.setdefault(number, row)
                    row_of[name] = row
                    files.note(one, paths[name], row)
                    if row == len(names):
                        names.append(name)
        return cls(names, [paths[n] for n in names], row_of)

    def extended(self, names: Sequence[str], paths: Sequence[Any]) -> "ImageTable":
        """The table with more rows behind its own, for images that no triplet names."""
        row_of = self.row_of | {name: len(self) + i for i, name in enumerate(names)}
        unlabelled = self.unlabelled + len(names)
        return ImageTable([*self.names, *names], [*self.paths, *paths], row_of, unlabelled)

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

    def fingerprint(self) -> str:
        """sha256 over the order of the names, the row of every name, and unlabelled pictures.

        A data set's names tell its images apart. Those of unlabelled ones come from any folder, and
        two folders may hold other pictures by the same names.

        Raises:
          UserError: an unlabelled image cannot be read.
        """
        digest = hashlib.sha256()
        for name in self.names:
            digest.update(name.encode() + b"\n")
        for name, row in sorted(self.row_of.items()):
            digest.update(f"{name}\t{row}\n".encode())
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

    def note(self, one: TripletSet, path: Any, row: int) -> None:
        """Notes the row of a file; the first one counts."""
        self._row_of.setdefault(self._key(one.by_name, path), row)
        if one.by_name and self._mixed:  # sets that go by files find it, too
            self._row_of.setdefault(self._key(False, path), row)

    def _key(self, by_name: bool, path: Any) -> tuple[bool, Any]:
        return by_name, (self._spelling if by_name else self._file).of(path)


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
        for name, path in one.paths.items():
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
