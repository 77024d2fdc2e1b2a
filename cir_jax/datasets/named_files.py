# SPDX-License-Identifier: Apache-2.0
"""Images by name, where annotations write one name in many ways.

`./a.jpg`, `sub//a.jpg`, `sub/../a.jpg`, the absolute path, backslashes, and the name without its
suffix are one image, and so are upper case and other Unicode normal forms where no file fits
exactly and one alone does. Names come out in one form, that of the folder's listing.
"""

import os
import posixpath
import re
import unicodedata
import urllib.parse
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from cir_jax import progress
from cir_jax.data import places
from cir_jax.data.annotations import SUFFIXES
from cir_jax.data.inspection import pixel_hash
from cir_jax.data.listing import Listing, images_below
from cir_jax.data.pixels import ImageFile, open_image
from cir_jax.errors import UserError

# A name with one of SUFFIXES that is not all of its last part, as `_stem` takes it off.
_STEM = rf"([^/])(?:{'|'.join(map(re.escape, SUFFIXES))})$"


class NamedFiles:
    """The images a data set knows.

    Args:
      files: name, in the one form it is used in -> file.
      folder: what names are relative to; None where they are no paths.
      listing: of the folder.
      allowed: where names may lead; None for the roots in effect, and the folder.

    Attributes:
      files: see there.
    """

    def __init__(
        self,
        files: Mapping[str, ImageFile],
        folder: str | Path | None = None,
        listing: Listing | None = None,
        allowed: places.Roots | None = None,
    ):
        self.files = dict(files)
        self.listing = listing or Listing()
        self._folder = folder
        self._elsewhere: dict[str, str] = {}  # names that are not of the listing -> where they lie
        self._folders = places.Folders()
        self._allowed = allowed or places.roots(folder or "")
        self._short: dict[str, list[str]] = {}
        for name in self.files:
            stem = _stem(name)
            if stem != name:
                self._short.setdefault(stem, []).append(name)
        self._alike: dict[str, list[str]] | None = None
        self._columns: tuple[Any, ...] | None = None  # names of both as Arrow strings

    @classmethod
    def below(cls, folder: str | Path, root: str | Path = "") -> "NamedFiles":
        """All image files below `folder`; a name is the path from there, with its suffix.

        `root` is the folder of the data set, another one that names may lead into.
        """
        allowed = places.roots(root or folder)
        listing = images_below(folder, allowed=allowed)
        return cls(listing.files, folder, listing, allowed)

    def name(self, written: str, where: str) -> str:
        """The name that `written` means; in a plain form of its own if there is no such image.

        Raises:
          UserError: it fits two files, leads out of the roots, or can be no image.
        """
        found = self._exact(written, where)
        if found is None:
            found = self._spelled(written, where)
        return found

    def plainly(self, written: Any) -> np.ndarray:
        """Which of many names mean themselves, whatever `name` would look for.

        Args:
          written: Arrow strings, ASCII, in normal form, without "%", and no paths of a folder.

        Returns:
          bool: it is a known name, or is like none. The others are to be asked for one by one.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        if self._alike is None:
            self._alike = _by_likeness(self.files)
        if self._columns is None:
            self._columns = tuple(
                pa.array([n for n in names if n.isascii()], pa.large_string())
                for names in (self.files, self._alike)
            )
        known, alike = self._columns
        folded = pc.ascii_lower(written)
        stems = pc.replace_substring_regex(folded, _STEM, r"\1")
        like = pc.or_(pc.is_in(folded, alike), pc.is_in(stems, alike))
        found = pc.or_(pc.is_in(written, known), pc.invert(like))
        return found.to_numpy(zero_copy_only=False)

    def file(self, name: str) -> ImageFile:
        """The file of what `name` gave, or the one that is expected."""
        if name in self.files:
            return self.files[name]
        return self._elsewhere.get(name) or str(Path(self._folder or "") / name)

    def _exact(self, written: str, where: str) -> str | None:
        if written in self.files:
            return written
        fitting = self._short.get(written, [])
        if fitting:
            return self._only(fitting, written, where, "write the suffix")
        stem = _stem(written)
        return stem if stem in self.files else None

    def _spelled(self, written: str, where: str) -> str:
        if self._folder is not None:  # else it is a name, and may be an address
            places.check_spelling(written, where)
        plain = self._plain_form(written, where)
        found = self._exact(plain, where)
        if found is not None or plain in self._elsewhere:
            return found or plain
        if self._alike is None:
            self._alike = _by_likeness(self.files)
        fitting = self._alike.get(_folded(plain)) or self._alike.get(_folded(_stem(plain)), [])
        if _stem(plain) != plain:
            fitting = [n for n in fitting if _is_like(n, plain)]
        if fitting:
            return self._only(fitting, written, where, "write it exactly as the file is called")
        self._check_absent(plain, written, where)
        return plain

    def _plain_form(self, written: str, where: str) -> str:
        """The name as the path from the folder, links in it resolved."""
        name = written.replace("\\", "/")
        if self._folder is None:
            return posixpath.normpath(name)
        path = self._resolved(os.path.join(self._folder, name))
        folder, file = os.path.split(path)
        if folder in self.listing.folders:
            return self.listing.folders[folder] + file
        base = self._folders.real(str(self._folder)).rstrip("/") + "/"
        if path.startswith(base):
            return path.removeprefix(base)
        if not self._allowed.hold(target := os.path.realpath(path)):
            raise places.outside(written, target, self._allowed, where)
        self._elsewhere[path] = path
        return path

    def _resolved(self, path: str) -> str:
        """The path with its folder resolved and its own link not: links have names of their own."""
        folder, file = os.path.split(path)
        if file in ("", ".", ".."):
            folder, file = os.path.split(posixpath.normpath(path))
        return os.path.join(self._folders.real(folder or "."), file)

    def _check_absent(self, plain: str, written: str, where: str) -> None:
        """Raises UserError for a name without an image that says why it has none."""
        like = (_folded(plain), _folded(_stem(plain)))
        for name, target in self.listing.outside.items():
            if _folded(name) in like or _folded(_stem(name)) in like[:1]:
                raise places.outside(written, target, self._allowed, where)
        meant = urllib.parse.unquote(plain)
        if meant != plain and (found := self._exact(meant, where)) is not None:
            raise UserError(
                f"{where}: image {written!r} is percent-encoded; write {found!r}, as the file is "
                "called"
            )
        if self._folder is not None:
            path = os.path.join(self._folder, plain)  # of another suffix, and so in no listing
            if os.path.islink(path) and not self._allowed.hold(target := os.path.realpath(path)):
                raise places.outside(written, target, self._allowed, where)

    def _only(self, fitting: list[str], written: str, where: str, remedy: str) -> str:
        """The first of the fitting names, if they are all of one image.

        Raises:
          UserError: there are two.
        """
        first = list(dict.fromkeys(self.listing.same.get(n, n) for n in fitting))
        if len(first) > 1 and not one_picture([self.files[n] for n in first]):
            raise UserError(f"{where}: image {written!r} may be {' or '.join(first)}; {remedy}")
        return fitting[0]


_compared: dict[tuple[str, ...], bool] = {}


def one_picture(files: Iterable[ImageFile]) -> bool:
    """Whether files are pixel-identical, which is said; each choice is looked at once.

    A name that fits two files is theirs if it makes no difference which of them is read.
    """
    paths = tuple(map(str, files))
    if paths not in _compared:
        _compared[paths] = _compare(paths)
        if _compared[paths]:
            progress.say(
                f"{' and '.join(paths)} fit one name and are pixel-identical: {paths[0]} is read"
            )
    return _compared[paths]


def _compare(paths: tuple[str, ...]) -> bool:
    try:
        return len({pixel_hash(open_image(path)) for path in paths}) == 1
    except (UserError, OSError, ValueError):
        return False


def _by_likeness(names: Iterable[str]) -> dict[str, list[str]]:
    """Names by what is left of them without case and Unicode normal form, and without suffix."""
    found: dict[str, list[str]] = {}
    for name in names:
        plain = posixpath.normpath(name.replace("\\", "/"))
        for form in dict.fromkeys((_folded(plain), _folded(_stem(plain)))):
            found.setdefault(form, []).append(name)
    return found


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _is_like(name: str, plain: str) -> bool:
    """Whether a known name fits a written one that has a suffix."""
    known = _folded(posixpath.normpath(name.replace("\\", "/")))
    return known in (_folded(plain), _folded(_stem(plain)))


def _stem(name: str) -> str:
    suffix = PurePosixPath(name).suffix
    return name[: -len(suffix)] if suffix.lower() in SUFFIXES else name
