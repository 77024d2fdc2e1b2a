# SPDX-License-Identifier: Apache-2.0
"""Where images may lie: a name that is written in a data file leads to no file outside roots.

Roots are `data.root`, every other folder that a key names, the folder of every file that a key
names, and what a link laid directly in one of them points to. A link deeper down is followed where
it stays in them. `data.allow_outside=True` lifts all of this.

A config holds for everything that is read `within` it; a reader adds the folder it was asked to
read. So readers need no argument for it, and one of somebody else's is checked all the same.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cir_jax.errors import UserError

_SECTIONS = ("data", "eval", "caption")  # whose keys name files and folders of data
_NO_PLACES = ("name", "benchmark", "captioner", "split")  # keys in them that name something else
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://|data:|file:", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_LONGEST, _LONGEST_PART = 4096, 255  # bytes of a path and of a name, of every usual file system
_FEW = 16  # questions about single files of a folder, after which it is listed as a whole
_LITTER = ("__macosx", "thumbs.db", "desktop.ini")


class Roots:
    """Folders that images may lie in.

    Args:
      folders: "" is none.
      everywhere: everything is inside.
    """

    def __init__(self, folders: Iterable[str | Path], everywhere: bool = False):
        self.named = tuple(dict.fromkeys(str(f) for f in folders if str(f)))
        self.everywhere = everywhere
        self._real = tuple(dict.fromkeys(map(os.path.realpath, self.named)))
        self._linked: tuple[str, ...] | None = None

    def hold(self, real: str) -> bool:
        """Whether a resolved path is inside."""
        return self.everywhere or _below(real, self._real) or _below(real, self._links())

    def _links(self) -> tuple[str, ...]:
        """What links that lie directly in the folders point to; looked at only if it matters."""
        if self._linked is None:
            found: dict[str, None] = {}
            for folder in self._real:
                try:
                    with os.scandir(folder) as entries:
                        links = [e.path for e in entries if e.is_symlink()]
                except OSError:
                    continue
                found |= dict.fromkeys(map(os.path.realpath, links))
            self._linked = tuple(found)
        return self._linked


_config_roots: ContextVar[Roots | None] = ContextVar("roots", default=None)


@contextmanager
def within(config: ConfigDict) -> Iterator[None]:
    """What is read in this `with` stays in the roots of `config`."""
    outside = bool(config.data.get("allow_outside", False))
    token = _config_roots.set(Roots(_named(config), outside))
    try:
        yield
    finally:
        _config_roots.reset(token)


@contextmanager
def anywhere() -> Iterator[None]:
    """What is read in this `with` may lie anywhere, as with `data.allow_outside`."""
    token = _config_roots.set(Roots((), everywhere=True))
    try:
        yield
    finally:
        _config_roots.reset(token)


def roots(*own: str | Path) -> Roots:
    """The roots of the config in effect, and folders of the caller's."""
    outer = _config_roots.get()
    return Roots((*own, *outer.named), outer.everywhere) if outer else Roots(own)


def include(folder: str | Path) -> None:
    """Makes a folder that no key names, such as a cache of ours, a root of the config in effect."""
    if outer := _config_roots.get():
        _config_roots.set(Roots((*outer.named, folder), outer.everywhere))


def in_effect() -> bool:
    """Whether anything is read `within` a config."""
    return _config_roots.get() is not None


def never_an_image(name: str) -> bool:
    """Whether a name, or a folder in it, is what systems and programs leave beside images.

    Hidden files and folders (also those of macOS, "._a.jpg"), Thumbs.db, desktop.ini, __MACOSX, and
    files that are still being written (.tmp).
    """
    parts = name.replace("\\", "/").split("/")
    return any(_litter(part) for part in parts)


def _litter(part: str) -> bool:
    if part.startswith("."):
        return part not in (".", "..")
    return part.lower() in _LITTER or part.lower().endswith(".tmp")


def is_address(name: str) -> bool:
    """Whether a name is an address on the network, such as that which an image was fetched from."""
    return bool(_ADDRESS.match(name))


def check_spelling(written: str, where: str) -> None:
    """Raises UserError if `written` can be the name of no image file, whatever there is on disk."""
    shown = repr(written if len(written) <= 80 else f"{written[:60]}...{written[-12:]}")
    why = ""
    try:
        parts = [len(part.encode()) for part in re.split(r"[/\\]", written)]
    except UnicodeEncodeError:
        parts, why = [], "holds half of a character (a lone surrogate)"
    if _CONTROL.search(written):
        why = "holds a control character"
    elif is_address(written):
        why = "is an address on the network; fetch the image, and"
    elif written.startswith("~/") or written == "~":
        why = "begins with ~, which is not looked up in data files;"
    elif sum(parts) + len(parts) > _LONGEST or max(parts, default=0) > _LONGEST_PART:
        why = f"is longer than a file system allows ({_LONGEST_PART} bytes for a name)"
    elif never_an_image(written):
        why = "is what a system leaves beside images (hidden, or unfinished) and no image;"
    if why:
        raise UserError(f"{where}: image {shown} {why} write the name of an image file there")


class Folders:
    """What is asked about the folders of many files: one question, or one listing, for each."""

    def __init__(self) -> None:
        self._real: dict[str, str] = {}
        self._asked: Counter[str] = Counter()
        self._listed: dict[str, tuple[set[str], dict[str, int]] | None] = {}
        self._devices: dict[str, int] = {}

    def real(self, folder: str) -> str:
        """The folder itself, links resolved."""
        if folder not in self._real:
            try:
                self._real[folder] = os.path.realpath(folder)
            except (OSError, ValueError):
                self._real[folder] = os.path.abspath(folder)
        return self._real[folder]

    def is_link(self, folder: str, name: str) -> bool:
        """Whether this file of a resolved folder is a link."""
        listed = self._listing(folder)
        return os.path.islink(os.path.join(folder, name)) if listed is None else name in listed[0]

    def number(self, folder: str, name: str) -> tuple[int, int] | None:
        """(device, inode) of a file of a resolved folder, links resolved; None if unknown."""
        listed = self._listing(folder)
        if listed is not None and name not in listed[0]:
            inode = listed[1].get(name, 0)
            # File systems in user space say so where they number no files.
            return None if inode in (0, 0xFFFFFFFF) else (self._devices[folder], inode)
        try:
            found = os.stat(os.path.join(folder, name))
        except (OSError, ValueError):
            return None
        return (found.st_dev, found.st_ino) if found.st_ino else None

    def _listing(self, folder: str) -> tuple[set[str], dict[str, int]] | None:
        """(names of links, name -> inode) of a folder; None while few of its files matter."""
        if folder in self._listed:
            return self._listed[folder]
        self._asked[folder] += 1
        if self._asked[folder] <= _FEW or os.name == "nt":  # there, a listing has no inodes
            return None
        links: set[str] = set()
        inodes: dict[str, int] = {}
        try:
            self._devices[folder] = os.stat(folder).st_dev
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_symlink():
                        links.add(entry.name)
                    else:
                        inodes[entry.name] = entry.inode()
        except OSError:
            self._listed[folder] = None
            return None
        self._listed[folder] = links, inodes
        return self._listed[folder]


class Written:
    """Turns paths that data files name into files that may be read.

    Args:
      allowed: see `roots`.
    """

    def __init__(self, allowed: Roots):
        self.allowed = allowed
        self._folders = Folders()
        self._inside: dict[str, bool] = {}

    def file(self, base: str | Path, written: str, where: str) -> str:
        """The path that `written` means in the folder `base`; whether it is there is not asked.

        Args:
          base: a folder.
          written: a path, relative to it or absolute.
          where: names the file and the record in messages.

        Raises:
          UserError: it can be no image, or leads out of the roots.
        """
        check_spelling(written, where)
        path = str(Path(base) / written)
        if "\\" in written and not os.path.lexists(path):
            path = str(Path(base) / written.replace("\\", "/"))
        self.check(path, written, where)
        return path

    def check(self, path: str, written: str, where: str) -> None:
        """Raises UserError if a path leads out of the roots."""
        if self.allowed.everywhere:
            return
        folder, name = os.path.split(path)
        folder = folder or "."
        real = self._folders.real(folder)
        if folder not in self._inside:
            self._inside[folder] = self.allowed.hold(real)
        if self._inside[folder] and not self._folders.is_link(real, name):
            return
        target = os.path.realpath(os.path.join(real, name))
        if not self.allowed.hold(target):
            raise outside(written, target, self.allowed, where)


def outside(written: str, target: str, allowed: Roots, where: str) -> UserError:
    """What to say of a name that leads out of the roots."""
    named = ", ".join(allowed.named[:3]) or "no folder"
    return UserError(
        f"{where}: image {written!r} is {target}, outside of {named}, and a name in a data file "
        "may not lead out of the folders that the config names; name the image's folder in a key "
        "(data.root, or data.generated_images for triplets), copy the image there, or set "
        "data.allow_outside=True if you trust who wrote the file"
    )


class Identity:
    """Which file a path leads to, whatever it is called: two paths of one file are given as one.

    Args:
      follow: a link to a file, and a hard link, is the file; else names in a folder tell files
        apart, and only the spelling of the folder does not matter. The latter is for published
        sets, where some people have linked equal pictures, and numbers count names.
    """

    def __init__(self, follow: bool = True):
        self._follow = follow
        self._folders = Folders()
        self._known: dict[Any, Any] = {}
        self._first: dict[tuple[int, int], str] = {}

    def of(self, image: Any) -> Any:
        """What is equal for two images if they are one: a path, or something like a `Crop`."""
        if isinstance(image, Path):
            image = str(image)
        if not isinstance(image, str):
            part = getattr(image, "box", None)  # a `Crop`, which this file cannot import
            if part is None:
                return image
            return self.of(image.source), part, image.dilate
        if image not in self._known:
            self._known[image] = self._file(image)
        return self._known[image]

    def _file(self, path: str) -> str:
        folder, name = os.path.split(path)
        real = self._folders.real(folder or ".")
        plain = os.path.join(real, name)
        if not self._follow:
            return plain
        number = self._folders.number(real, name)
        if number is None:
            return plain
        first = self._first.setdefault(number, plain)
        if first != plain and not _same_file(first, plain):
            return plain
        return first

    def numbers(self) -> set[int]:
        """`file_number` of the files that were asked for so far, as far as they have any."""
        return {file_number(*number) for number in self._first}


def file_number(device: int, inode: int) -> int:
    """A number of 64 bits of a file: the same for one file, hardly ever the same for two."""
    return (inode ^ (device * 0x9E3779B97F4A7C15)) & 0xFFFFFFFFFFFFFFFF


def distinct(images: Mapping[str, Any], identity: Identity | None = None) -> dict[str, Any]:
    """The images without those whose file an earlier one has."""
    identity, seen = identity or Identity(), set()
    kept = {}
    for name, image in images.items():
        key = identity.of(image)
        if key not in seen:
            seen.add(key)
            kept[name] = image
    return kept


def check_all(images: Mapping[str, Any], where: str) -> None:
    """Raises UserError if an image leads out of the roots of the config in effect, if there is one.

    A net under readers that are not ours: those that are say which record names it.
    """
    if not in_effect():
        return
    written = Written(roots())
    for name, image in images.items():
        file = getattr(image, "source", image)  # of a `Crop`
        if isinstance(file, str | Path):
            written.check(str(file), name, where)


def _named(config: ConfigDict) -> Iterator[str]:
    """Folders that the keys of a config name, and those of the files that they name."""
    for section in _SECTIONS:
        for key, value in config.get(section, {}).items():
            if key in _NO_PLACES:
                continue
            for one in value if isinstance(value, tuple | list) else (value,):
                if isinstance(one, str) and one:
                    yield from _folder_of(one, str(config.data.get("root", "")))


def _folder_of(value: str, root: str) -> Iterator[str]:
    for place in (value, os.path.join(root, value)):
        try:
            if os.path.isdir(place):
                yield place
            elif os.path.isfile(place):
                yield os.path.dirname(place) or "."
        except ValueError:  # a NUL in it
            return


def _below(real: str, folders: Iterable[str]) -> bool:
    return any(real == f or real.startswith(f.rstrip(os.sep) + os.sep) for f in folders)


def _same_file(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False
