# SPDX-License-Identifier: Apache-2.0
"""The image files below a folder, found in one way everywhere.

Links to folders are followed. Each folder is listed once, so loops end, and a link to a folder of
the tree itself adds nothing. What leads out of the roots (see `places`) is left out and remembered.
Hidden files, and what systems leave beside images, are no images. One listing per folder and no
question per image: data sets lie on network disks.
"""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cir_jax import progress
from cir_jax.data import places
from cir_jax.data.annotations import SUFFIXES
from cir_jax.errors import UserError

# Pictures that are not read, and whose number is worth knowing.
_OTHERS = (".gif", ".bmp", ".tif", ".tiff", ".heic", ".avif", ".jp2", ".svg")


@dataclass
class Listing:
    """What lies below a folder.

    Attributes:
      files: name -> path of every image, sorted; a name is the path from the folder, with "/".
      same: name -> the first name of the same file, for names that are not the first of theirs.
      outside: name -> where a link leads that leaves the roots; of a folder, its name alone.
      folders: resolved folder -> its name and "/", "" for the folder itself.
      others: suffix -> how many pictures in formats that are not read.
    """

    files: dict[str, str] = field(default_factory=dict)
    same: dict[str, str] = field(default_factory=dict)
    outside: dict[str, str] = field(default_factory=dict)
    folders: dict[str, str] = field(default_factory=dict)
    others: Counter[str] = field(default_factory=Counter)

    def say_outside(self, folder: str | Path) -> None:
        """Says what was left out of a set that is made of all images of a folder."""
        if self.outside:
            name, target = next(iter(self.outside.items()))
            progress.say(
                f"warning: {len(self.outside)} links below {folder} lead out of it and are left "
                f"out, {name} to {target} for one; data.allow_outside=True lets them in"
            )

    def say_others(self, folder: str | Path) -> None:
        """Says how many pictures are in formats that are not read."""
        if self.others:
            shown = ", ".join(f"{count} {suffix}" for suffix, count in self.others.most_common())
            progress.say(
                f"warning: files in {folder} that are not read: {shown}; convert them to .png"
            )


def images_below(
    folder: str | Path, depth: int | None = None, allowed: places.Roots | None = None
) -> Listing:
    """Lists a folder.

    Args:
      folder: one that does not exist has no image.
      depth: levels of folders below it; None for all.
      allowed: the roots; None for those in effect, and the folder itself.

    Raises:
      UserError: a folder cannot be listed, or a name is no text.
    """
    walk = _Walk(folder, depth, allowed or places.roots(folder))
    return walk.listing()


class _Walk:
    def __init__(self, folder: str | Path, depth: int | None, allowed: places.Roots):
        self._base, self._depth, self._allowed = str(folder), depth, allowed
        self._seen: set[tuple[int, int]] = set()
        self._numbers: dict[tuple[int, int], list[str]] = {}
        self._found = Listing()
        self._links: list[tuple[str, int]] = []

    def listing(self) -> Listing:
        """Folders of the tree first, then those that links lead to: a file of both has its name."""
        if not os.path.isdir(self._base):
            return self._found
        real = os.path.realpath(self._base)
        above = [os.stat(p) for p in (str(p) for p in Path(real).parents)]
        self._descend("", real, 0)
        self._seen |= {(one.st_dev, one.st_ino) for one in above}
        while self._links:
            # In the order of their names, as far as those of one folder of links are concerned.
            links, self._links = sorted(self._links), []
            for name, level in links:
                target = os.path.realpath(os.path.join(self._base, name))
                if self._allowed.hold(target):
                    self._descend(f"{name}/", target, level)
                else:
                    self._found.outside[name] = target
        found = self._found
        found.files = {
            n: os.path.join(self._base, n) for n in sorted(found.files, key=lambda n: n.split("/"))
        }
        found.same = dict(self._same())
        return found

    def _descend(self, prefix: str, real: str, level: int) -> None:
        stack = [(prefix, real, level)]
        while stack:
            prefix, real, level = stack.pop()
            place = os.path.join(self._base, prefix)
            try:
                here = os.stat(place)
                if (here.st_dev, here.st_ino) in self._seen:
                    continue
                self._seen.add((here.st_dev, here.st_ino))
                with os.scandir(place) as entries:
                    below = [e for e in entries if self._entry(e, prefix, here.st_dev, level)]
            except OSError as error:
                raise UserError(
                    f"folder {place} cannot be listed ({error.strerror or error}); correct its "
                    "permissions, or move it out of the data set"
                ) from None
            self._found.folders.setdefault(real, prefix)
            stack += [(f"{prefix}{e.name}/", os.path.join(real, e.name), level + 1) for e in below]

    def _entry(self, entry: os.DirEntry, prefix: str, device: int, level: int) -> bool:
        """Takes an image in; True for a folder to list."""
        if places.never_an_image(entry.name):
            return False
        name = prefix + entry.name
        suffix = os.path.splitext(entry.name)[1].lower()
        link = entry.is_symlink()
        if entry.is_dir(follow_symlinks=False) or (link and os.path.isdir(entry.path)):
            if self._depth is not None and level >= self._depth:
                return False
            if link:
                self._links.append((name, level + 1))
            return not link
        if suffix in _OTHERS and suffix not in SUFFIXES:
            self._found.others[suffix] += 1
        if suffix not in SUFFIXES:
            return False
        if link and not self._allowed.hold(target := os.path.realpath(entry.path)):
            self._found.outside[name] = target
            return False
        self._found.files[name] = ""
        number = self._number(entry, device, link)
        if number is not None:
            self._numbers.setdefault(number, []).append(name)
        return False

    def _number(self, entry: os.DirEntry, device: int, link: bool) -> tuple[int, int] | None:
        """(device, inode) of a file; None where a listing does not tell."""
        try:
            if link:
                found = entry.stat()
                return found.st_dev, found.st_ino
            inode = 0 if os.name == "nt" else entry.inode()
        except OSError:  # a link to nothing
            return None
        return None if inode in (0, 0xFFFFFFFF) else (device, inode)

    def _same(self) -> Iterator[tuple[str, str]]:
        for names in self._numbers.values():
            if len(names) > 1:
                first, *others = sorted(names, key=lambda n: n.split("/"))
                for other in others:
                    if _same_file(self._found.files[first], self._found.files[other]):
                        yield other, first


def _same_file(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False
