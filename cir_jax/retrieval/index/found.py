# SPDX-License-Identifier: Apache-2.0
"""The images that are to be in an index, as they lie there now: of a folder, or of a table.

A folder is listed as everywhere (`cir_jax.data.listing`): links to folders are followed, a file
with several names counts once, under the first of them, and hidden files are none. A table alone
names its images, relative to its own folder; it may write a name in any of the ways of
`cir_jax.datasets.named_files`.
"""

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cir_jax.data import places, unusable
from cir_jax.data.annotations import SUFFIXES
from cir_jax.data.listing import Listing, images_below
from cir_jax.data.unusable import Problem
from cir_jax.datasets import image_lists
from cir_jax.datasets.named_files import NamedFiles
from cir_jax.errors import UserError

_TOGETHER = 512  # files that a thread is given at a time


@dataclass(frozen=True, eq=False)
class Found:
    """Images that are there.

    Attributes:
      folder: that names are paths from.
      listing: of the folder.
      names: in the order in which new ones get their ids.
      files: the file of each.
      size, time: int64 [n], bytes and ns; -1 where `problems` says why not.
      problems: place in the list -> why there is no such file.
      left_out: (name, why) of what was seen and is no image of the index.
    """

    folder: str
    listing: Listing
    names: list[str]
    files: list[str]
    size: NDArray[np.int64]
    time: NDArray[np.int64]
    problems: dict[int, Problem] = field(default_factory=dict)
    left_out: list[tuple[str, str]] = field(default_factory=list)


def look(
    place: str | Path,
    index: str | Path,
    *,
    only: Collection[str] = (),
    allow_outside: bool = False,
    threads: int = 16,
) -> Found:
    """What lies at a place.

    Args:
      place: a folder of images, or a table that names some.
      index: folder of the index, whose own files are none of them.
      only: names of those that are wanted; () for all.
      allow_outside: links and names may lead out of the folder.
      threads: files that are asked for their size at a time.

    Raises:
      UserError: there is no such place, a folder cannot be listed, a record of a table cannot be
        read, or there is no image.
    """
    if not os.path.isdir(place) and not os.path.isfile(place):
        raise UserError(
            f"{place} is no folder and no file; name the folder of your images, or a table of them "
            "(.csv, .tsv, .json, .jsonl, .parquet)"
        )
    folder = str(place) if os.path.isdir(place) else os.path.dirname(place) or "."
    allowed: AbstractContextManager[Any] = places.anywhere() if allow_outside else nullcontext()
    with allowed:
        listing = images_below(folder)
        if os.path.isdir(place):
            files = {n: f for n, f in listing.files.items() if n not in listing.same}
        else:
            files = _named(place, named_files(folder, listing))
    if only:
        names = (listing.same.get(name, name) for name in only)
        files = {name: files[name] for name in dict.fromkeys(names) if name in files}
    files = _without(files, folder, index)
    left_out = [(n, f"the same file as {first}") for n, first in listing.same.items()]
    left_out += [
        (name, f"a link out of the folder, to {target}; --allow-outside lets it in")
        for name, target in listing.outside.items()
    ]
    if not files:
        raise UserError(
            f"{place} holds no image ({', '.join(SUFFIXES)}); name the folder of your images, or a "
            "table of them"
        )
    found, paths = list(files), list(files.values())
    size, time, problems = _stamps(found, paths, threads)
    return Found(folder, listing, found, paths, size, time, problems, left_out)


def named_files(folder: str, listing: Listing) -> NamedFiles:
    """What names in tables mean."""
    return NamedFiles(listing.files, folder, listing)


def _without(files: dict[str, str], folder: str, index: str | Path) -> dict[str, str]:
    """The images that do not lie in the folder of the index, which may be below that of images."""
    below = os.path.relpath(os.path.realpath(index), os.path.realpath(folder)).replace(os.sep, "/")
    if below == "." or below.startswith(".."):
        return files
    return {name: file for name, file in files.items() if not name.startswith(f"{below}/")}


def _named(table: str | Path, known: NamedFiles) -> dict[str, str]:
    """Name -> file of the images of a table, in its order, each file once."""
    found: dict[str, str] = {}
    for entry in image_lists.entries([table]):
        name = name_of(entry, known)
        first = known.listing.same.get(name, name)
        found.setdefault(first, str(known.file(first)))
    return found


def name_of(entry: image_lists.Entry, known: NamedFiles) -> str:
    """The name of the image of a record: of several, the one that is an image; else the first.

    Raises:
      UserError: it fits two files, leads out of the roots, or can be no image.
    """
    own = [written for written in entry.names if not places.is_address(written)]
    if not own:
        raise UserError(
            f"{entry.where} names no file of an image, only {entry.name!r}; name its file"
        )
    first = known.name(own[0], entry.where)
    if first in known.files:
        return first
    for written in own[1:]:  # such as a title, which may be no name at all
        with suppress(UserError):
            if (name := known.name(written, entry.where)) in known.files:
                return name
    return first


def _stamps(
    names: Sequence[str], files: Sequence[str], threads: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], dict[int, Problem]]:
    size, time = np.full(len(files), -1, np.int64), np.full(len(files), -1, np.int64)
    problems: dict[int, Problem] = {}

    def some(start: int) -> None:
        for at in range(start, min(start + _TOGETHER, len(files))):
            stamp = unusable.stamp(files[at])
            if isinstance(stamp, Problem):
                problems[at] = stamp
            else:
                size[at], time[at] = stamp

    in_threads(some, range(0, len(files), _TOGETHER), threads)
    for at in _not_text(names):
        problems[at] = Problem(files[at], unusable.UNREADABLE, "its name is no text; rename it")
    return size, time, problems


def in_threads(act: Callable[[Any], Any], items: Sequence[Any], threads: int) -> list[Any]:
    """What `act` gives for each item, in their order."""
    with ThreadPoolExecutor(max(threads, 1)) as pool:
        return list(pool.map(act, items))


def _not_text(names: Sequence[str]) -> Iterator[int]:
    """Names that hold bytes of no letter, as other systems leave them; no table can hold them."""
    for at, name in enumerate(names):
        if not name.isascii():
            try:
                name.encode()
            except UnicodeEncodeError:
                yield at
