# SPDX-License-Identifier: Apache-2.0
"""Each image is decoded once: its square is kept in memory, or on the disk of this host.

`data.pixels` says which; see `cir_jax.data.pixel_files` for the disk. Training, the bank, the
evaluation and the look for images that cannot be used fill one store, and read it. Preprocessing
has no randomness, so a kept square is the one that decoding would give, bit for bit.
"""

import os
import shutil
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from PIL import Image

from cir_jax import progress
from cir_jax.data import kept_looks, picture_files, unusable
from cir_jax.data.picture_files import Content
from cir_jax.data.pixel_files import Identity, PixelFiles, Row
from cir_jax.data.pixels import Crop, Preprocess, open_image
from cir_jax.data.unusable import Problem
from cir_jax.errors import UserError
from cir_jax.files import gigabytes

MODES = ("auto", "memory", "disk", "decode")
MEMORY, DISK, DECODE = MODES[1:]
MEMORY_SHARE = 0.25  # of the free memory, that "auto" takes at most
DISK_LEFT = {"auto": 0.2, DISK: 0.01}  # share of the disk that stays free

_current: ContextVar["Part | None"] = ContextVar("pixels that are kept", default=None)


class KeptPixels:
    """What is kept of the squares of a run in this process.

    It is chosen when it is known how many images there are, see `Part.expect`, and chosen anew when
    more of them become known.

    Args:
      mode: one of MODES, `data.pixels`.
      preprocess: image -> square.
      memory: bytes that are free for this process; 0 for unknown.

    Attributes:
      kind: "memory", "disk" or "decode": what becomes of a square that is decoded now.
    """

    def __init__(self, mode: str, preprocess: Preprocess, memory: int = 0):
        self.mode, self.preprocess, self.memory = mode, preprocess, memory
        self.kind = DECODE if mode == "auto" else mode
        self._row = preprocess.size**2 * 3
        self._known: set[bytes] = set()  # places of all images of the run
        self._again: set[bytes] = set()  # of those that are opened more than once
        self._held: dict[bytes, np.ndarray] = {}
        self._beyond = 0  # images of which there are more than fit anywhere
        self._checked: dict[bytes, bytes] = {}  # place -> content that its file has
        self._why = ""
        self._lock = threading.Lock()
        self._files = self._opened() if mode != DECODE else None

    def part(self, again: bool) -> "Part":
        """The images of one use of this run.

        Args:
          again: each of them is opened more than once; else memory would keep them for nothing.
        """
        return Part(self, again)

    @property
    def folder(self) -> Path | None:
        """Where squares are kept on the disk; None where they are not."""
        return self._files.folder if self._files else None

    def close(self) -> None:
        """Lets another process write on what this one has written."""
        if self._files is not None:
            self._files.close()

    def say(self) -> None:
        """Says in a line what is kept where, and why; nothing where there is nothing to keep."""
        if self._why:
            progress.say(self._why)

    def expect(self, images: Collection[Any], again: bool) -> None:
        """Takes more images into account, and chooses.

        Args:
          images: as `Preprocess` takes them.
          again: see `part`.

        Raises:
          UserError: they do not fit where `data.pixels` says.
        """
        if self.mode == DECODE or not images:
            return
        with self._lock:
            many = len(images) * self._row > max(self.memory, self._disk()[0])
            if many and self.mode == "auto":
                self._beyond += len(images)  # millions, whose places would take memory themselves
            else:
                places = {place for image in images if (place := place_of(image))}
                self._known |= places
                self._again |= places if again else set()
            self._choose()

    def _choose(self) -> None:
        images = len(self._known) + self._beyond
        new = self._files.missing(self._known) if self._files else len(self._known)
        need, all_of_them = (new + self._beyond) * self._row, images * self._row
        held = len(self._again) * self._row
        count = f"{images:,} images"
        in_memory = f"{gigabytes(all_of_them)} of memory, of which {gigabytes(self.memory)} are"
        share = 1.0 if self.mode == MEMORY else MEMORY_SHARE
        fits = not self.memory or all_of_them <= share * self.memory
        if self.mode == MEMORY and not fits:
            raise UserError(
                f"data.pixels=memory: {count} take {in_memory} free for this process; set "
                "data.pixels=disk, or decode to open them each time"
            )
        if self.mode == MEMORY or (self.mode == "auto" and self.memory and fits):
            self.kind = MEMORY
            kept = f"{gigabytes(held)} of memory keep {len(self._again):,} decoded images"
            self._why = f"pixels: {kept} (data.pixels={self.mode})" * bool(held)
            return
        free, total = self._disk()
        left = DISK_LEFT[self.mode] * total
        on_disk = (
            f"{gigabytes(need)} more of the disk, of which {gigabytes(max(free, 0))} are free and "
            f"{gigabytes(left)} stay so"
        )
        if self.mode == DISK and free - need < left:
            raise UserError(
                f"data.pixels=disk: {count} take {on_disk}, at {self._place()}; make room, set "
                "CIR_JAX_CACHE to a folder on another disk, or set data.pixels=decode"
            )
        if free - need >= left:
            self.kind = DISK
            self._held.clear()
            self._why = (
                f"pixels: {count} are kept at {self._place()} for this run and later ones: "
                f"{gigabytes(all_of_them)}, {gigabytes(need)} of it new (data.pixels={self.mode})"
            )
            return
        self.kind = DECODE
        self._held.clear()
        self._why = (
            f"pixels: decoded each time, since {count} would take {in_memory} free, or {on_disk}, "
            f"at {self._place()} (data.pixels=auto; CIR_JAX_CACHE names a folder on another disk)"
        )

    def get(self, source: Any, again: bool) -> np.ndarray:
        """uint8 [S, S, 3] of an image, as `Preprocess` takes it and with its errors."""
        place = place_of(source) if self.mode != DECODE else None
        if place is None:
            return self.preprocess(source)
        held = self._held.get(place)
        if held is not None:
            return held
        square = self._on_disk(place, source)
        if square is None:
            identity, opened = _read(source)
            square = self.preprocess(opened)
            self._write(place, identity, square)
        self._hold(place, square, again)
        return square

    def open(self, source: Any, again: bool) -> Image.Image:
        """An image, decoded as `open_image` does; its square is kept where it is one of the run."""
        loading = self.preprocess.loading
        place = place_of(source) if self.kind != DECODE else None
        if place is None or place not in self._known:
            return open_image(source, loading)
        identity, opened = _read(source)
        image = open_image(opened, loading)
        wanted = self.kind == DISK or (again and place not in self._held)
        if wanted and self._on_disk(place, source) is None:
            # What makes no square is decoded all the same: the run says so where it is used.
            with suppress(ValueError, MemoryError):
                square = self.preprocess.square(image)
                self._write(place, identity, square)
                self._hold(place, square, again)
        return image

    def _hold(self, place: bytes, square: np.ndarray, again: bool) -> None:
        if self.kind == MEMORY and again and place in self._again:
            square.flags.writeable = False
            self._held[place] = square

    def _on_disk(self, place: bytes, source: Any) -> np.ndarray | None:
        """The square of an image if there is a row of it that is whole and of this very file."""
        if self._files is None:
            return None
        row = self._files.find(place)
        if row is None:
            return None
        content = row.identity.content
        if self._checked.get(place) != content and not self._is_same(place, source, row):
            return None
        self._checked[place] = content
        return self._files.read(row)

    def _is_same(self, place: bytes, source: Any, row: Row) -> bool:
        """Whether the file of an image still has the content that it had when it was decoded."""
        assert self._files is not None
        file, then = unusable.source_of(source), row.identity
        with suppress(OSError, UserError):
            now = unusable.stamp(file)
            if isinstance(now, Problem):
                return False
            # The time of a file with many images in it says little of one of them.
            alone = isinstance(file, str | os.PathLike)
            if alone and 0 <= then.time and (then.size, then.time) == now:
                return _sample(file) == then.sample
            if alone and then.size != now.size:
                return False
            identity, _ = _read(source)
            if identity.content == then.content:
                if alone and kept_looks.settled(now) >= 0:
                    self._files.confirm(place, row, identity)
                return True
        return False

    def _write(self, place: bytes, identity: Identity, square: np.ndarray) -> None:
        if self.kind == DISK and self._files and self._files.write(place, identity, square):
            self._checked[place] = identity.content

    def _opened(self) -> PixelFiles | None:
        left = DISK_LEFT.get(self.mode, 0.0)
        with suppress(RuntimeError):  # of a user without a home
            made = f"{self.preprocess.fingerprint()} {self.preprocess.made_by()}".strip()
            return PixelFiles(made, self.preprocess.size, leave=left)
        return None

    def _place(self) -> str:
        return str(self._files.folder) if self._files else "the cache folder (there is no home)"

    def _disk(self) -> tuple[int, int]:
        """(free, all) bytes of the disk of the store; (-1, 0) where there is none."""
        if self._files is None:
            return -1, 0
        folder = self._files.folder.absolute()
        # Of a folder that may not be entered `Path.exists` raises.
        there = next((p for p in (folder, *folder.parents) if os.path.exists(p)), Path("/"))
        disk = shutil.disk_usage(there)
        return disk.free, disk.total


class Part:
    """The images of one use of a run, see `KeptPixels.part`; it stands wherever a `Preprocess` may.

    Args:
      kept: of the run.
      again: see `KeptPixels.part`.
    """

    def __init__(self, kept: KeptPixels, again: bool):
        self.kept, self.again = kept, again
        self.loading = kept.preprocess.loading

    def __call__(self, source: Any) -> np.ndarray:
        """uint8 [S, S, 3] of an image.

        Raises:
          UserError: see `Preprocess`.
        """
        return self.kept.get(source, self.again)

    def fingerprint(self) -> str:
        """As the preprocessing."""
        return self.kept.preprocess.fingerprint()

    def prepare(self, images: Sequence[Any]) -> None:
        """As the preprocessing, where it asks others for what it makes of images."""
        if (prepare := getattr(self.kept.preprocess, "prepare", None)) is not None:
            prepare(images)

    def expect(self, images: Collection[Any]) -> None:
        """Says which images will be opened.

        Raises:
          UserError: see `KeptPixels.expect`.
        """
        self.kept.expect(images, self.again)

    def open(self, source: Any) -> Image.Image:
        """See `KeptPixels.open`."""
        return self.kept.open(source, self.again)

    def say(self) -> None:
        """See `KeptPixels.say`."""
        self.kept.say()


@contextmanager
def filling(preprocess: Any) -> Iterator[None]:
    """In this `with`, what looks images over tells a `Part` of them, and keeps what it decodes.

    Args:
      preprocess: the part; of anything else nothing is kept.
    """
    token = _current.set(preprocess if isinstance(preprocess, Part) else None)
    try:
        yield
    finally:
        _current.reset(token)


def current() -> Part | None:
    """The part of the `filling` around, if there is one."""
    return _current.get()


def place_of(source: Any) -> bytes | None:
    """What an image is kept under: hash of the path of its file, and of the box of a part of it.

    None of what has no place: bytes, and images that were decoded.
    """
    if isinstance(source, Crop):
        whole = place_of(source.source)
        box = f"\n{tuple(map(float, source.box))} {float(source.dilate)}".encode()
        return None if whole is None else xxhash.xxh3_128_digest(whole + box)
    packed = not isinstance(source, str | os.PathLike)
    if packed and not (hasattr(source, "shard") or hasattr(source, "folder")):
        return None
    text = str(source)
    text = text if os.path.isabs(text) else os.path.join(os.getcwd(), text)
    kind = f"{type(source).__qualname__}\n" if packed else ""
    return xxhash.xxh3_128_digest(f"{kind}{text}".encode(errors="surrogatepass"))


def _read(source: Any) -> tuple[Identity, Any]:
    """(what its file is, the image with the content that was read).

    Raises:
      UserError: the file cannot be read.
    """
    file = unusable.source_of(source)
    before = unusable.stamp(file)
    opened = Content(picture_files.read(file), str(file))
    size, settled = len(opened.content), -1
    if isinstance(file, str | os.PathLike) and not isinstance(before, Problem):
        settled = kept_looks.settled(before) if before.size == size else -1
    content = xxhash.xxh3_128_digest(opened.content)
    return Identity(size, settled, _sample(opened), content), _around(source, opened)


def _around(source: Any, opened: Content) -> Any:
    if isinstance(source, Crop):
        return replace(source, source=_around(source.source, opened))
    return opened


def _sample(file: Any) -> bytes:
    return bytes.fromhex(unusable.samples(file).digest())
