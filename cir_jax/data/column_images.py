# SPDX-License-Identifier: Apache-2.0
"""Where the images of triplets in columns lie: a rule for all names, and a file for exceptions.

Each folder is listed once. The listing says which names are there, which of them are links, and
which file each is, so that no image has to be asked for: what a listing cannot tell (a link, a name
that is not in it, a file that is met again) is looked at one by one, as in small sets.
"""

import os
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cir_jax import files
from cir_jax.data.places import Roots, file_number
from cir_jax.data.triplet_columns import Columns, Part, Share

# Where the image of a name lies: nobody says it; the name in a folder; its path beside the file of
# triplets; in `PartImages.special`.
NOWHERE, BELOW, BESIDE, SPECIAL = range(4)
_FEW = 16  # files of a folder that are asked for without listing it
_THREADS = 16  # that list folders: on a network disk each waits
_WINDOW = 64  # folders whose listings are in memory at a time


class Group(NamedTuple):
    """Images that lie in one folder.

    Attributes:
      folder: its path.
      numbers: int64, of their names.
      skip: letters of a name that are the folder's.
    """

    folder: str
    numbers: np.ndarray
    skip: int


class PartImages:
    """Where the images of a file of triplets lie.

    Args:
      part: the triplets, their names in the form that the data set uses.
      below: folder for names without a path.

    Attributes:
      kind: uint8, where the image of each name lies, see above.
      shown: bool, whether any triplet shows the image of a name.
      left: bool, whether a name is left for `cir_jax.datasets.placing` to place one by one.
      special: number of a name -> its file.
      number: uint64, `places.file_number` of each file; 0 where a listing does not tell.
      state: uint64, the same with the time of the folder; 0 if that may change and not be told.
    """

    def __init__(self, part: Part, below: str | Path):
        self.part = part
        self._bases = {BELOW: _base(below), BESIDE: _base(part.file.parent)}
        self.kind = np.zeros(len(part.names), np.uint8)
        self.shown = shown([Share(part)])[part]
        self.left = np.zeros(0, bool)
        self.special: dict[int, Any] = {}
        self.number = np.zeros(len(part.names), np.uint64)
        self.state = np.zeros(len(part.names), np.uint64)

    def bases(self) -> tuple[str, ...]:
        """The folders that names and paths are joined to."""
        return tuple(self._bases.values())

    def file(self, number: int) -> Any:
        """The file of a name; None if nobody says which."""
        kind = int(self.kind[number])
        if kind == NOWHERE:
            return None
        if kind == SPECIAL:
            return self.special[number]
        return os.path.join(self._bases[kind], self.written(number))

    def written(self, number: int) -> str:
        """The path of a name that a rule places, as its file of triplets has it."""
        return self._prefix(int(self.kind[number]), number) + self.part.names[number]

    def same_rule(self, mine: np.ndarray, other: "PartImages", there: np.ndarray) -> np.ndarray:
        """bool: whether a rule gives names here and names there the same files, pair by pair."""
        kind, own = self.kind[mine], len(self.part.names.column)
        same = (kind == other.kind[there]) & (mine < own) & (there < len(other.part.names.column))
        below = (kind == BELOW) & (self._bases[BELOW] == other._bases[BELOW])
        if self._bases[BESIDE] != other._bases[BESIDE]:
            return same & below
        numbers = {prefix: i for i, prefix in enumerate(other.part.names.prefixes)}
        as_there = np.asarray([numbers.get(p, -9) for p in self.part.names.prefixes] + [-9])
        beside, prefix = np.flatnonzero(same & (kind == BESIDE)), np.zeros(len(mine), bool)
        theirs = other.part.names.prefix[there[beside]]
        prefix[beside] = as_there[self.part.names.prefix[mine[beside]]] == theirs
        return same & (below | prefix)

    def set(self, number: int, file: Any) -> None:
        """Notes the file of a name that no rule gives; None for none."""
        self.kind[number] = NOWHERE if file is None else SPECIAL
        if file is not None:
            self.special[number] = file

    def _prefix(self, kind: int, number: int) -> str:
        return self.part.names.prefixes[self.part.names.prefix[number]] if kind == BESIDE else ""

    def groups(self) -> Iterator[Group]:
        """The images that a rule places, folder by folder."""
        names = self.part.names
        order = names.by_folder
        ends = [*(np.flatnonzero(np.diff(names.folder[order])) + 1), len(order)]
        first = 0
        for last in ends:
            here = order[first:last].astype(np.int64)
            first = last
            here = here[(self.kind[here] == BELOW) | (self.kind[here] == BESIDE)]
            if not len(here):
                continue
            folder = names.folders[int(names.folder[here[0]])].as_py()
            for ruled in _alike(self.kind[here].astype(np.int64) << 32 | (names.prefix[here] + 2)):
                own = here[ruled]
                kind = int(self.kind[own[0]])
                path = os.path.join(self._bases[kind], self._prefix(kind, int(own[0])) + folder)
                yield Group(path, own, len(folder))

    def list_folders(self, allowed: Roots) -> list[int]:
        """Lists the folders; the numbers of names whose file may lie outside of the roots.

        Args:
          allowed: the roots.
        """
        doubtful: list[int] = []
        with ThreadPoolExecutor(_THREADS) as pool:
            for some in _windows(self.groups()):
                asked = [(group, self._leaves(group)) for group in some]
                for (group, leaves), found in zip(
                    asked, pool.map(lambda one: _listed(one[0].folder, one[1]), asked), strict=True
                ):
                    inode = np.fromiter((found.inodes.get(leaf, 0) for leaf in leaves), np.int64)
                    known = inode > 0
                    device = np.uint64(file_number(found.device, 0))
                    numbers = inode[known].astype(np.uint64) ^ device
                    self.number[group.numbers[known]] = numbers
                    if found.time:
                        changed = np.uint64(file_number(found.time, 0))
                        self.state[group.numbers[known]] = numbers ^ changed
                    if not allowed.everywhere:
                        inside = allowed.hold(_real(group.folder))
                        odd = group.numbers[inode < 0] if inside else group.numbers
                        doubtful += odd.tolist()
        return doubtful

    def _leaves(self, group: Group) -> list[str]:
        names = self.part.names.take(group.numbers).to_pylist()
        return [name[group.skip :] for name in names] if group.skip else names


class Images(Mapping[str, Any]):
    """Name -> file of the images that triplets in columns name.

    Args:
      columns: the triplets.
      images: of each file of them.

    Attributes:
      parts: images of a file -> bool, which of its names these triplets show.
    """

    def __init__(self, columns: Columns, images: Mapping[Part, PartImages]):
        self.parts = {images[part]: mask for part, mask in shown(columns.shares).items()}
        for one, mask in self.parts.items():
            mask &= one.kind != NOWHERE

    def __getitem__(self, name: str) -> Any:
        for one, shown in self.parts.items():
            number = one.part.names.find(name)
            if number >= 0 and shown[number]:
                return one.file(number)
        raise KeyError(name)

    def __contains__(self, name: object) -> bool:
        numbers = ((one.part.names.find(str(name)), shown) for one, shown in self.parts.items())
        return any(number >= 0 and shown[number] for number, shown in numbers)

    def __iter__(self) -> Iterator[str]:
        for one, fresh in self._distinct:
            for block in np.array_split(np.flatnonzero(fresh), fresh.sum() // (1 << 16) + 1):
                yield from one.part.names.take(block).to_pylist()

    def __len__(self) -> int:
        return sum(int(fresh.sum()) for _, fresh in self._distinct)

    @cached_property
    def _distinct(self) -> list[tuple[PartImages, np.ndarray]]:
        """The parts, each with the names that no earlier one shows."""
        found: list[tuple[PartImages, np.ndarray]] = []
        for one, shown in self.parts.items():
            fresh = shown
            for other, theirs in found:
                mine, there = one.part.names.shared(other.part.names)
                fresh = fresh.copy()
                fresh[mine[theirs[there]]] = False
            found.append((one, fresh))
        return found

    def named(self, names: Collection[str]) -> dict[Part, np.ndarray]:
        """bool, of each file: whether a name of it is one of these."""
        found = {}
        for one, shown in self.parts.items():
            numbers = np.asarray([one.part.names.find(name) for name in names], np.int64)
            mask = np.zeros(len(shown), bool)
            mask[numbers[numbers >= 0]] = True
            found[one.part] = mask
        return found

    def special(self) -> dict[str, Any]:
        """Name -> file of those that no rule places."""
        return {
            one.part.names[number]: file
            for one, shown in self.parts.items()
            for number, file in one.special.items()
            if shown[number]
        }


class Both(Mapping[str, Any]):
    """The images of two mappings; of a name of both the file of the second one."""

    def __init__(self, first: Mapping[str, Any], second: Mapping[str, Any]):
        self.first, self.second = first, second

    def __getitem__(self, name: str) -> Any:
        return self.second[name] if name in self.second else self.first[name]

    def __contains__(self, name: object) -> bool:
        return name in self.first or name in self.second

    def __iter__(self) -> Iterator[str]:
        yield from self.first
        yield from (name for name in self.second if name not in self.first)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def both(first: Mapping[str, Any], second: Mapping[str, Any]) -> Mapping[str, Any]:
    """The images of two mappings; of a name of both the file of the second one."""
    if isinstance(first, dict) and isinstance(second, dict):
        return first | second
    return Both(first, second)


def shown(shares: Iterable[Share]) -> dict[Part, np.ndarray]:
    """bool, of each file: whether any of these triplets shows the image of a name."""
    found: dict[Part, np.ndarray] = {}
    for share in shares:
        mask = found.setdefault(share.part, np.zeros(len(share.part.names), bool))
        for numbers in (share.names("reference"), share.names("target"), share.answers()[1]):
            mask[numbers] = True
    return found


def without(columns: Columns, gone: Mapping[Part, np.ndarray], answers: bool) -> Columns:
    """The triplets that show none of some images.

    Args:
      columns: triplets.
      gone: of each file, bool: whether the image of a name is one of them.
      answers: an image that is another right answer is shown, too.
    """
    shares = []
    for share in columns.shares:
        mask = gone[share.part]
        shows = mask[share.names("reference")] | mask[share.names("target")]
        if answers:
            owner, names = share.answers()
            shows[owner[mask[names]]] = True
        shares.append(share.kept(~shows))
    return Columns(shares)


class _Listed(NamedTuple):
    """What a folder holds: name -> inode, -1 of a link; its device, and its time in nanoseconds.

    The time is 0 if the folder had just been changed.
    """

    inodes: Mapping[str, int]
    device: int
    time: int


def _listed(folder: str, leaves: Sequence[str]) -> _Listed:
    """The listing of a folder, or of some files of it; nothing of one that is not there."""
    inodes: dict[str, int] = {}
    try:
        here = os.stat(folder or ".")  # before it is listed: what comes later changes it again
        settled = files.settled(here.st_mtime_ns)
        if len(leaves) <= _FEW or os.name == "nt":  # there, a listing has no inodes
            for leaf in leaves:
                with suppress(OSError, ValueError):  # it is not there
                    found = os.lstat(os.path.join(folder, leaf))
                    inodes[leaf] = -1 if stat.S_ISLNK(found.st_mode) else _usable(found.st_ino)
        else:
            with os.scandir(folder or ".") as entries:
                for entry in entries:
                    inodes[entry.name] = -1 if entry.is_symlink() else _usable(entry.inode())
    except (OSError, ValueError):
        return _Listed({}, 0, 0)
    return _Listed(inodes, here.st_dev, here.st_mtime_ns if settled else 0)


def _usable(inode: int) -> int:
    # File systems in user space say so where they number no files.
    return 0 if inode in (0, 0xFFFFFFFF) or inode >= 1 << 63 else inode


def _alike(values: np.ndarray) -> Iterator[np.ndarray]:
    """Places of equal values, for each value."""
    if (values == values[0]).all():
        yield np.arange(len(values))
        return
    for value in np.unique(values):
        yield np.flatnonzero(values == value)


def _windows(groups: Iterable[Group]) -> Iterator[list[Group]]:
    some: list[Group] = []
    for group in groups:
        some.append(group)
        if len(some) == _WINDOW:
            yield some
            some = []
    if some:
        yield some


def _base(folder: str | Path) -> str:
    """What stands before a path in a folder, as `Path(folder) / path` is written."""
    plain = str(Path(folder))
    return "" if plain == "." else plain


def _real(folder: str) -> str:
    try:
        return os.path.realpath(folder or ".")
    except (OSError, ValueError):
        return os.path.abspath(folder)
