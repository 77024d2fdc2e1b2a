# SPDX-License-Identifier: Apache-2.0
"""Gives the images of triplets in columns their rows of the image table.

The order is that of all triplets: names as they come first, the reference before the target. A
listing tells files apart, so that only what is met again, or cannot be told, is looked at one by
one.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from cir_jax.data import column_images as lying
from cir_jax.data.column_images import Images, PartImages
from cir_jax.data.column_table import RowOf
from cir_jax.data.stacked import among, repeated
from cir_jax.data.triplet_columns import Columns
from cir_jax.data.triplets import TripletSet
from cir_jax.errors import UserError


class FileRows(Protocol):
    """The row of each file that has one."""

    def row(self, one: TripletSet, path: Any) -> int | None:
        """The row of a file that an image of this set lies in; None if it has none yet."""

    def note(self, one: TripletSet, path: Any, row: int) -> None:
        """Notes the row of a file; the first one counts."""

    def key(self, one: TripletSet, path: Any) -> Any:
        """What is equal for two images of a set that lie in one file."""

    def numbers(self) -> set[int]:
        """`places.file_number` of the files that were noted."""


class ColumnRows:
    """Rows of names of files of triplets.

    Args:
      known: name -> row, of images that have one; grows while triplets in memory are added.
      files: rows of their files.
    """

    def __init__(self, known: Mapping[str, int], files: FileRows):
        self._known, self._files = known, files
        self._rows: dict[PartImages, np.ndarray] = {}
        self._own: dict[PartImages, np.ndarray] = {}
        self._both: dict[tuple[PartImages, PartImages], tuple[np.ndarray, np.ndarray]] = {}

    def give(
        self, one: TripletSet, triplets: Columns, count: int
    ) -> Iterator[tuple[PartImages, np.ndarray]]:
        """(images of a file, the name of each of its new rows) of a set, for each of its files.

        Args:
          one: the set.
          triplets: of it.
          count: rows that there are.

        Raises:
          UserError: nobody says where an image lies.
        """
        paths = one.paths
        if not isinstance(paths, Images):
            raise TypeError(f"{one.name}: triplets in columns have their images in columns")
        of_part = {images.part: images for images in paths.parts}
        for share in triplets.shares:
            images = of_part[share.part]
            rows = self._of(images)
            numbers = _first_seen(share.names("reference"), share.names("target"), rows)
            lost = numbers[images.kind[numbers] == lying.NOWHERE]
            if len(lost):
                name, where = images.part.names[int(lost[0])], images.part.first(int(lost[0]))
                raise unknown(f"{one.name} triplet {where.query_id}", name)
            given, new = self._rows_of(one, images, numbers, count)
            rows[numbers] = given
            count += int(new.sum())
            yield images, numbers[new].astype(np.int32)

    def row_of(self, known: Mapping[str, int]) -> Mapping[str, int]:
        """Name -> row, of `known` names and of all that have got one here."""
        if not self._rows:
            return known
        own = {images: mask & (self._rows[images] >= 0) for images, mask in self._own.items()}
        return RowOf(known, self._rows, own)

    def _of(self, images: PartImages) -> np.ndarray:
        """The rows of the names of a file; those that are known or of other files have theirs."""
        names = images.part.names
        if images not in self._rows:
            self._rows[images] = np.full(len(names), -1, np.int32)
            self._own[images] = np.ones(len(names), bool)
            for name, row in self._known.items():
                number = names.find(name)
                if number >= 0:
                    self._rows[images][number], self._own[images][number] = row, False
        rows = self._rows[images]
        for other, theirs in self._rows.items():
            if other is images:
                continue
            mine, there = self._shared(images, other)
            given = (rows[mine] < 0) & (theirs[there] >= 0)
            rows[mine[given]] = theirs[there[given]]
            self._own[images][mine[given]] = False
        return rows

    def _shared(self, one: PartImages, other: PartImages) -> tuple[np.ndarray, np.ndarray]:
        """(numbers in one file, numbers in the other) of the names that both have."""
        if (other, one) in self._both:
            there, mine = self._both[other, one]
            return mine, there
        if (one, other) not in self._both:
            self._both[one, other] = one.part.names.shared(other.part.names)
        return self._both[one, other]

    def _rows_of(
        self, one: TripletSet, images: PartImages, numbers: np.ndarray, count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """(row of each name, whether it is a new one), for names that have none, in their order."""
        given, leader = np.full(len(numbers), -1, np.int64), np.arange(len(numbers))
        odd = np.flatnonzero(self._odd(one, images, numbers))
        first: dict[Any, int] = {}
        files = {int(place): images.file(int(numbers[place])) for place in odd}
        for place, file in files.items():
            row = self._files.row(one, file)
            if row is not None:
                given[place] = row
                continue
            leader[place] = first.setdefault(self._files.key(one, file), place)
        new = (given < 0) & (leader == np.arange(len(numbers)))
        given[new] = count + np.arange(int(new.sum()))
        given = given[leader]
        for place, file in files.items():
            self._files.note(one, file, int(given[place]))
        return given, new

    def _odd(self, one: TripletSet, images: PartImages, numbers: np.ndarray) -> np.ndarray:
        """bool: whether the file of a name may be one that has a row, or that of another name."""
        own = images.number[numbers]
        odd = (own == 0) | (images.kind[numbers] == lying.SPECIAL)
        odd |= among(own, repeated(own))
        for place in np.flatnonzero(odd).tolist():  # asks which file it is
            self._files.key(one, images.file(int(numbers[place])))
        odd |= among(own, np.fromiter(self._files.numbers(), np.uint64))
        for earlier, rows in self._rows.items():
            if earlier is images:
                has = rows >= 0
            else:
                has = (rows >= 0) & self._own[earlier]
            met = np.flatnonzero(has & among(earlier.number, own) & (earlier.number > 0))
            for number in met.tolist():  # now others find it
                self._files.note(one, earlier.file(number), int(rows[number]))
            odd |= among(own, earlier.number[met])
        return odd


def _first_seen(reference: np.ndarray, target: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """int64: numbers without a row, in the order in which they come, reference before target."""
    places = np.full(len(rows), np.iinfo(np.int64).max)
    step = 1 << 22
    # Each part from its end: of equal numbers in an assignment the last one counts.
    for start in reversed(range(0, len(reference), step)):
        part = slice(start, min(start + step, len(reference)))
        at = 2 * np.arange(part.start, part.stop)[::-1]
        for names, behind in ((target, 1), (reference, 0)):
            some = names[part][::-1]
            places[some] = np.minimum(places[some], at + behind)
    seen = np.flatnonzero((places < np.iinfo(np.int64).max) & (rows < 0))
    return seen[np.argsort(places[seen], kind="stable")]


def unknown(where: str, name: str) -> UserError:
    """What to say of a triplet that names an image without a file."""
    return UserError(
        f"{where} names image {name!r}, which is not in the image table; correct the annotation "
        "file or add the image; the folder of generated triplets' own images is "
        "data.generated_images"
    )
