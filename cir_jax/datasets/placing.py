# SPDX-License-Identifier: Apache-2.0
"""Which file each image of generated triplets is; a name means one picture in all files of them.

`Places` answers for one name. `rename` and `images` answer for all names of a file at once, by rule
where names are plain, and ask `Places` and `NamedFiles` about every other one.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cir_jax.data import column_images as lying
from cir_jax.data import places
from cir_jax.data import triplet_columns as columns
from cir_jax.data.column_images import PartImages
from cir_jax.data.pixels import Crop, ImageFile, Packed
from cir_jax.data.triplet_columns import Part
from cir_jax.datasets import shards
from cir_jax.datasets.named_files import NamedFiles
from cir_jax.errors import UserError


class Places:
    """Finds the file of every image; a name must mean one picture in all files of triplets."""

    def __init__(
        self,
        known: Mapping[str, ImageFile],
        root: str | Path,
        images: str | Path,
        files: Sequence[str | Path],
    ):
        self._found: dict[str, ImageFile] = dict(known)
        self.below = Path(images or root)  # the folder of names without a path, where ...
        self.all_below = bool(images)  # ... all of them lie; else those that are said to be paths
        homes = [Path(file).parent for file in files if Path(file).is_file()]
        # Without a config nobody has said where images may lie; the caller named the files.
        allowed = places.roots(root, images, *homes)
        anywhere = places.Roots((), everywhere=True)
        self.allowed = allowed if places.in_effect() else anywhere
        self._written = places.Written(self.allowed)
        self._seen: dict[str, str] = {}  # name -> the last path that was compared

    def find(self, name: str, path: str | None, file: Path, record: str) -> ImageFile | None:
        """The file of `name`; None if neither the data set nor the record says which.

        Args:
          name: of the image.
          path: what its record says: a path, None for nothing, "" if the name is one.
          file: of the record.
          record: its name.

        Raises:
          UserError: the record's path is another picture than this name meant before, or leads out
            of the roots.
        """
        if name not in self._found:
            if path:
                self._found[name] = self._place(file.parent, path, file, record)
            elif self.all_below or path is not None:
                self._found[name] = self._place(self.below, name, file, record)
        elif path and self._seen.get(name) != (written := str(file.parent / path)):
            self._seen[name] = written
            if differ(self._found[name], self._place(file.parent, path, file, record)):
                raise UserError(
                    f"{file}: image {name!r} is {written}, and {self._found[name]} before; one "
                    "name cannot be two images: rename one of them and make the triplets anew"
                )
        return self._found.get(name)

    def _place(self, base: Path, written: str, file: Path, record: str) -> str | shards.TarImage:
        where = _where(file, record)
        return shards.place(written, lambda path: self._written.file(base, path, where))

    def note(self, name: str, place: ImageFile) -> None:
        """Notes the file of a name, if it has none."""
        self._found.setdefault(name, place)

    def forget(self, name: str) -> None:
        """Lets the last path of a name be compared again."""
        self._seen.pop(name, None)

    def known(self) -> Sequence[str]:
        """All names that have a file."""
        return list(self._found)

    def check(self, one: PartImages, number: int) -> None:
        """Raises UserError if a file that a rule has placed lies outside of the roots."""
        path, written = str(one.file(number)), one.written(number)
        try:
            self._written.check(path, written, "")
        except UserError:  # say which record it is
            where = _where(one.part.file, one.part.first(number).query_id)
            self._written.check(path, written, where)
            raise


def _where(file: Path, record: str) -> str:
    return record if record.startswith(f"{file}:") else f"{file}: triplet {record}"


def differ(one: ImageFile, other: ImageFile) -> bool:
    """Whether two files hold different pictures; not if one is missing, which others report."""
    if str(one) == str(other):
        return False
    if isinstance(one, Crop) or isinstance(other, Crop):  # a part, and a whole or another part
        return True
    try:
        if isinstance(one, str) and isinstance(other, str) and os.path.samefile(one, other):
            return False
        return _content(one) != _content(other)
    except OSError:
        return False


def _content(place: str | Packed) -> bytes:
    return (Path(place) if isinstance(place, str) else place).read_bytes()


def rename(part: Part, names: NamedFiles) -> None:
    """Brings the names of a file into the form that the data set uses.

    Raises:
      UserError: a name fits two files, or `targets` names one image twice.
    """
    changed: dict[int, str] = {}
    own = part.names
    for first in range(0, len(own.column), columns.BLOCK):
        block = own.column.slice(first, columns.BLOCK)
        plain = own.flags[first : first + len(block)] & columns.PLAIN > 0
        for number in np.flatnonzero(~(plain & names.plainly(block))) + first:
            written = own.column[int(number)].as_py()
            try:
                name = names.name(written, "")
            except UserError:
                names.name(written, part.first(int(number)).query_id)  # says which record it is
                raise
            if name != written:
                changed[int(number)] = name
    part.rename(changed)
    _check_answers(part)


def _check_answers(part: Part) -> None:
    owner, names = columns.Share(part).answers()
    pairs = owner << 32 | names
    order = np.argsort(pairs, kind="stable")
    twice = order[1:][np.diff(pairs[order]) == 0]
    if len(twice):
        one = part.row(int(owner[twice.min()]))
        raise UserError(
            f"{one.query_id}: 'targets' names image {part.names[int(names[twice.min()])]!r} twice; "
            "name each image once"
        )


def images(parts: Sequence[Part], found: Places) -> dict[Part, PartImages]:
    """Where the images of each file of triplets lie.

    Args:
      parts: the files, in their order, after `rename`.
      found: what is known of images.

    Raises:
      UserError: as `Places.find`.
    """
    placed: dict[Part, PartImages] = {}
    for part in parts:
        one = PartImages(part, found.below)
        _by_rule(one, found)
        for earlier in placed.values():
            _as_before(one, earlier, found)
        _one_by_one(one, found)
        for number in one.list_folders(found.allowed):
            if one.kind[number] != lying.SPECIAL:
                found.check(one, number)
        placed[part] = one
    _named_later(list(placed.values()))
    return placed


def _by_rule(one: PartImages, found: Places) -> None:
    """Places the images of plain names that nothing else is known of; the others are left."""
    import pyarrow as pa
    import pyarrow.compute as pc

    names = one.part.names
    own, flags, prefix = len(names.column), names.flags, names.prefix
    known = pa.array([n for n in found.known() if n.isascii()], pa.large_string())
    free = np.concatenate(
        [np.zeros(0, bool)]
        + [
            ~pc.is_in(names.column.slice(i, columns.BLOCK), known).to_numpy(zero_copy_only=False)
            for i in range(0, own, columns.BLOCK)
        ]
    )
    if one.part.alias is not None:  # what is said of two names that are one comes together
        free &= one.part.alias[:own] == np.arange(own)
        renamed = one.part.alias[one.part.alias != np.arange(len(one.part.alias))]
        free[renamed[renamed < own]] = False
    free &= one.shown[:own] & (flags & columns.PLAIN > 0) & (flags & columns.SEVERAL == 0)
    beside = free & (prefix >= 0) & (flags & columns.PLAIN_PATH > 0)
    below = np.full(own, found.all_below) | (flags & columns.IS_PATH > 0)
    nowhere = free & (prefix == columns.NO_PREFIX)
    one.kind[:own][beside] = lying.BESIDE
    one.kind[:own][nowhere & below] = lying.BELOW
    one.left = one.shown.copy()
    one.left[:own] &= ~(beside | nowhere)


def _as_before(one: PartImages, earlier: PartImages, found: Places) -> None:
    """Names that an earlier file of triplets has as well are the same images."""
    mine, there = one.part.names.shared(earlier.part.names)
    both = one.shown[mine] & (earlier.kind[there] != lying.NOWHERE)
    both &= ~one.same_rule(mine, earlier, there)
    for number, other in zip(mine[both].tolist(), there[both].tolist(), strict=True):
        found.note(one.part.names[number], earlier.file(other))
        one.kind[number] = lying.NOWHERE
        one.left[number] = True


def _one_by_one(one: PartImages, found: Places) -> None:
    """Places what no rule does."""
    part = one.part
    written: dict[int, list[int]] = {}
    if part.alias is not None:
        for number in np.flatnonzero(one.left[part.alias]).tolist():
            written.setdefault(int(part.alias[number]), []).append(number)
    for number in np.flatnonzero(one.left).tolist():
        name, place = part.names[number], None
        for own in written.get(number, [number]):
            for path, row in part.names.said(own):
                try:
                    place = found.find(name, path, part.file, "")
                except UserError:  # say which record it is
                    found.forget(name)
                    record = part.row(row) if row >= 0 else part.first(number)
                    found.find(name, path, part.file, record.query_id)
                    raise
        one.set(number, place)


def _named_later(placed: Sequence[PartImages]) -> None:
    """A file of triplets may say nothing of an image that a later one has a path for."""
    for i, one in enumerate(placed):
        for later in placed[i + 1 :]:
            if not (one.shown & (one.kind == lying.NOWHERE)).any():
                break
            mine, there = one.part.names.shared(later.part.names)
            open_ = one.shown[mine] & (one.kind[mine] == lying.NOWHERE)
            open_ &= later.kind[there] != lying.NOWHERE
            for number, other in zip(mine[open_].tolist(), there[open_].tolist(), strict=True):
                one.set(number, later.file(other))
