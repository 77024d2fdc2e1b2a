# SPDX-License-Identifier: Apache-2.0
"""What was found out about the images of triplets in columns, kept for later starts.

A file counts as the one that was looked at if the listing of its folder has it under the same
number, and nothing was added to the folder, taken from it or renamed in it since. Where that cannot
be told, the file is asked for its size and its time, as each is in small sets. A file that somebody
has written over in its place is met when it is opened.
"""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from cir_jax import files
from cir_jax.data import column_images as lying
from cir_jax.data import picture_files
from cir_jax.data.column_images import Images, PartImages
from cir_jax.data.kept_looks import FOLDER
from cir_jax.data.unusable import DECODE, Problem, Stamp

_VERSION = 1
_BLOCK = 1 << 16  # images that are looked at, before the next ones are named
_DIGEST = 16  # bytes at the start of a file of looks
_LOOK = np.dtype([("state", "<u8"), ("size", "<i8"), ("time", "<i8"), ("depth", "u1")])

Scan = Callable[[Mapping[str, Any]], dict[str, Problem]]
Stamps = Callable[[Sequence[Any]], list[Stamp | Problem]]


def scan(
    images: Images, depth: int, loading: str, one_by_one: Scan, stamps: Stamps
) -> dict[str, Problem]:
    """The images that cannot be used: name -> why.

    Args:
      images: of triplets in columns.
      depth: how closely they are looked at, see `cir_jax.data.unusable.look`.
      loading: how they are opened.
      one_by_one: what looks at some of them, and keeps nothing.
      stamps: files -> stamp of each.
    """
    found = one_by_one(images.special())
    for one, shown in images.parts.items():
        kept = _Kept(one, loading)
        ruled = shown & ((one.kind == lying.BELOW) | (one.kind == lying.BESIDE))
        doubtful = np.flatnonzero(ruled & ~kept.hold(depth))
        for first in range(0, len(doubtful), _BLOCK):
            numbers = doubtful[first : first + _BLOCK]
            places = {int(number): one.file(int(number)) for number in numbers}
            now = dict(zip(places, stamps(list(places.values())), strict=True))
            left = [number for number in places if not kept.holds(number, now[number], depth)]
            named = {one.part.names[number]: places[number] for number in left}
            problems = one_by_one(named)
            found |= problems
            bad = {number for number in left if one.part.names[number] in problems}
            kept.add({n: now[n] for n in left if n not in bad}, depth)
            kept.again([n for n in places if n not in bad])
        kept.write()
    return found


def forget(images: Mapping[str, Any], files: Mapping[str, Any], loading: str) -> None:
    """Lets the next start look at images again that were found good and are not.

    Args:
      images: of triplets in columns, and others.
      files: the broken ones, as messages call them.
      loading: see `scan`.
    """
    for part in parts_of(images):
        if not isinstance(part, Images):
            continue
        for one, shown in part.parts.items():
            there = [n for n in np.flatnonzero(shown).tolist() if str(one.file(n)) in files]
            if there:
                kept = _Kept(one, loading)
                kept.forget(there)
                kept.write()


class _Kept:
    """The looks at the images of one file of triplets, by the numbers of their names.

    Args:
      images: see there.
      loading: how they are opened.
    """

    def __init__(self, images: PartImages, loading: str):
        self._images, self._changed = images, False
        self._file: Path | None = None
        part = images.part
        if part.identity:
            bases = map(os.path.realpath, images.bases())
            key = [_VERSION, part.what, part.identity, loading, picture_files.decoders(), *bases]
            name = xxhash.xxh3_128_hexdigest(repr(key).encode(errors="surrogatepass"))
            with suppress(RuntimeError):  # of a user without a home
                self._file = files.cache() / FOLDER / f"{name}.looks"
        self._looks = self._read()

    def _read(self) -> np.ndarray:
        count = len(self._images.part.names)
        if self._file is not None:
            with suppress(OSError, ValueError):
                looks = np.memmap(self._file, _LOOK, "r", _DIGEST)
                with self._file.open("rb") as file:
                    digest = file.read(_DIGEST)
                content = looks.view(np.uint8).data
                if len(looks) == count and xxhash.xxh3_128_digest(content) == digest:
                    return looks
        return np.zeros(count, _LOOK)

    def hold(self, depth: int) -> np.ndarray:
        """bool: whether a listing tells that an image was looked at so closely, and can be used."""
        looks, state = self._looks, self._images.state
        return (looks["depth"] >= depth) & (state != 0) & (looks["state"] == state)

    def holds(self, number: int, now: Stamp | Problem, depth: int) -> bool:
        """Whether the stamp of a file does."""
        look = self._looks[number]
        return bool(look["depth"] >= depth and (int(look["size"]), int(look["time"])) == now)

    def add(self, stamps: Mapping[int, Stamp | Problem], depth: int) -> None:
        """Notes images that can be used, with what was their stamp before they were looked at."""
        for number, now in stamps.items():
            if isinstance(now, Stamp):
                self._writable()[number] = (0, now.size, now.time, min(depth, DECODE))

    def again(self, numbers: Sequence[int]) -> None:
        """Notes what the listing says now of images that hold."""
        looks = self._writable()
        looks["state"][numbers] = self._images.state[numbers]

    def forget(self, numbers: Sequence[int]) -> None:
        """Notes that nothing is known of some images."""
        self._writable()[numbers] = 0

    def _writable(self) -> np.ndarray:
        if not self._looks.flags.writeable:
            self._looks = np.array(self._looks)
        self._changed = True
        return self._looks

    def write(self) -> None:
        """Keeps what was noted; without a word nothing if the cache folder cannot be written."""
        if self._file is None or not self._changed:
            return
        content = self._looks.view(np.uint8)
        with suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            handle, partial = tempfile.mkstemp(dir=self._file.parent, suffix=".partial")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(xxhash.xxh3_128_digest(content.data))
                    file.write(content.data)
                os.replace(partial, self._file)
            except OSError:
                os.unlink(partial)
                raise


def parts_of(images: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The mappings that images lie in: those of triplets in columns, and others."""
    if isinstance(images, lying.Both):
        yield from parts_of(images.first)
        yield from parts_of(images.second)
    else:
        yield images
