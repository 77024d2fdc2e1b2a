# SPDX-License-Identifier: Apache-2.0
"""Squares of images on the disk of this host, for every run that makes them alike.

    about.json      what made the rows, for people
    NAME.pixels     uint8 [N, S, S, 3]
    NAME.index      an entry of 80 bytes for each row: of which file it is, and its checksum
    NAME.lock       held by the process that writes the two

An entry is written after its row and holds a checksum of the row and one of itself. So a row that
was cut off, was damaged or was overwritten is no row, whoever was killed and in whatever order the
disk wrote: it is decoded again. Each process that writes has files of its own, which a later one
takes over; all read all. Rows are read by `preadv`, not through a map: a map of a file that becomes
shorter ends the process. Free of jax.
"""

import json
import os
import platform
import re
import secrets
import shutil
import struct
import threading
import time
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
from filelock import FileLock, Timeout

from cir_jax import files, progress
from cir_jax.data import picture_files

FOLDER = "pixels"
ABOUT = "about.json"
_VERSION = 1
_ENTRY = struct.Struct("<16sqq16s16sQ")  # place, size, time, sample, content, checksum of the row
_OWN = struct.Struct("<Q")  # checksum of what stands before it
_BYTES = _ENTRY.size + _OWN.size
_AGAIN = 2.0  # seconds between two looks at what other processes have written
_LOOK = 256  # rows between two looks at the room


class Identity(NamedTuple):
    """What tells the content of an image file from another one.

    Attributes:
      size: of the file in bytes; with `time` its stamp, see `unusable.stamp`.
      time: its time in nanoseconds; -1: it had just been written.
      sample: hash of a few bytes, see `unusable.Samples`.
      content: hash of all of it.
    """

    size: int
    time: int
    sample: bytes
    content: bytes


class Row(NamedTuple):
    """A row of a store: its place in the files, whose image it is, and its checksum."""

    segment: "_Segment"
    number: int
    identity: Identity
    checksum: int


def folder_of(preprocessing: str, side: int) -> Path:
    """The folder of this host for squares of S x S pixels that are made so by this Pillow.

    Raises:
      RuntimeError: the user has no home.
    """
    made = "\n".join([str(_VERSION), preprocessing, picture_files.decoders()])
    name = xxhash.xxh3_64_hexdigest(made.encode())
    return files.cache() / FOLDER / f"{side}-{name}"


class PixelFiles:
    """The squares in one folder.

    Args:
      preprocessing: names everything that changes a pixel.
      side: S in pixels.
      folder: None for that of this host, `folder_of`.
      leave: share of the disk that stays free: with less, nothing more is written.

    Attributes:
      folder: where they are.
      row_bytes: of one square.
    """

    def __init__(
        self, preprocessing: str, side: int, folder: Path | None = None, leave: float = 0.0
    ):
        self.folder = folder or folder_of(preprocessing, side)
        self.row_bytes = side * side * 3
        self.leave = leave
        by = picture_files.decoders()
        self._about = {"preprocessing": preprocessing, "made by": by, "side": side}
        self._shape = side, side, 3
        self._segments: dict[str, _Segment] = {}
        self._rows: dict[bytes, tuple[_Segment, int]] = {}
        self._coming: set[bytes] = set()  # places whose rows are being written
        self._mutex = threading.Lock()
        self._looked = -_AGAIN
        self._mine: _Segment | None = None
        self._written = 0
        self.stopped = ""  # why nothing more is written

    def find(self, place: bytes) -> Row | None:
        """The newest row of a place, whose file may have changed since; None if there is none."""
        if place not in self._rows:
            self._look()
        at = self._rows.get(place)
        return None if at is None else at[0].row(at[1])

    def missing(self, places: set[bytes]) -> int:
        """How many of these places have no row."""
        self._look()
        return sum(place not in self._rows for place in places)

    def read(self, row: Row) -> np.ndarray | None:
        """uint8 [S, S, 3]; None if the row is damaged."""
        found = np.empty(self._shape, np.uint8)
        memory = found.data.cast("B")
        try:
            count = row.segment.read(memory, row.number * self.row_bytes)
        except OSError:
            return None
        whole = count == self.row_bytes and xxhash.xxh3_64_intdigest(memory) == row.checksum
        return found if whole else None

    def write(self, place: bytes, identity: Identity, pixels: np.ndarray) -> bool:
        """Keeps a row, in the stead of the one that the place has; False where there is no room.

        Args:
          place: see `find`.
          identity: of the file when its pixels were read.
          pixels: uint8 [S, S, 3].
        """
        row = np.ascontiguousarray(pixels, np.uint8)
        if row.shape != self._shape:
            raise ValueError(f"a square of {row.shape} in a store of {self._shape}")
        memory = row.data.cast("B")
        entry = _entry(place, identity, xxhash.xxh3_64_intdigest(memory))
        with self._mutex:
            if self.stopped or place in self._coming:
                return False
            self._coming.add(place)
        try:
            with self._mutex:
                segment, number = self._slot(place)
            segment.write(number, self.row_bytes, memory, entry)
            with self._mutex:
                self._rows[place] = segment, number
            return True
        except OSError as error:
            self._stop(error.strerror or str(error))
            return False
        finally:
            with self._mutex:
                self._coming.discard(place)

    def confirm(self, place: bytes, row: Row, identity: Identity) -> None:
        """Notes another time of a file whose content is still that of its row."""
        if not self.stopped:
            with suppress(OSError):  # it is compared again next time
                row.segment.enter(row.number, _entry(place, identity, row.checksum))

    def close(self) -> None:
        """Lets another process write these files on."""
        with self._mutex:
            for segment in self._segments.values():
                segment.close()
            self._segments, self._rows, self._mine = {}, {}, None

    def _slot(self, place: bytes) -> tuple["_Segment", int]:
        """Where the row of a place goes."""
        if self._mine is None:
            self._mine = self._own()
        self._written += 1
        if self._written % _LOOK == 1:
            self._check_room()
        before = self._rows.get(place)
        if before is not None and before[0] is self._mine:
            return before
        if before is not None:  # written by another process, and not what the file is now
            with suppress(OSError):
                before[0].enter(before[1], bytes(_BYTES))
        return self._mine, self._mine.next()

    def _check_room(self) -> None:
        disk = shutil.disk_usage(self.folder)
        if disk.free - _LOOK * self.row_bytes < self.leave * disk.total:
            raise OSError(
                f"{files.gigabytes(disk.free)} of {files.gigabytes(disk.total)} are free there, "
                f"and {self.leave:.0%} stay free"
            )

    def _stop(self, why: str) -> None:
        with self._mutex:
            first, self.stopped = not self.stopped, self.stopped or why
        if first:  # of this process, whose disk no other one may know
            progress.show(
                f"pixels: no more are kept in {self.folder} ({why}); what is not there is decoded "
                "each time. Make room, or set CIR_JAX_CACHE to a folder on another disk"
            )

    def _own(self) -> "_Segment":
        """Files of which this process is the only writer: left by another one, or new."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / ABOUT).exists():
            (self.folder / ABOUT).write_text(json.dumps(self._about, indent=1))
        host = re.sub("[^A-Za-z0-9]+", "-", platform.node())[:32] or "host"
        self._take_in()
        for name, segment in sorted(self._segments.items()):
            # A lock of another host may not be seen here, so nobody takes over its files.
            if name.rpartition("-")[0] == host and segment.hold():
                self._rows |= {place: (segment, n) for place, n in segment.take_in()}
                return segment
        segment = _Segment(self.folder / f"{host}-{secrets.token_hex(4)}")
        segment.create()
        self._segments[segment.stem.name] = segment
        return segment

    def _look(self) -> None:
        """Takes in what other processes have written, now and then."""
        with self._mutex:
            if time.monotonic() - self._looked >= _AGAIN:
                self._take_in()
                self._looked = time.monotonic()

    def _take_in(self) -> None:
        with suppress(OSError):
            for path in self.folder.glob("*.index"):
                segment = self._segments.setdefault(path.stem, _Segment(path.with_suffix("")))
                if segment is not self._mine:
                    for place, number in segment.take_in():
                        before = self._rows.get(place)
                        # Where two see other files by one path, each goes by its own rows.
                        if before is None or before[0] is not self._mine:
                            self._rows[place] = segment, number


class _Segment:
    """The files that one process at a time writes."""

    def __init__(self, stem: Path):
        self.stem = stem
        self._entries = bytearray()
        self._read: int | None = None  # file descriptors
        self._rows: int | None = None
        self._index: int | None = None
        self._lock: FileLock | None = None
        self._free: list[int] = []  # rows without an entry, of a writer that was killed
        self._count = 0
        self._opening = threading.Lock()
        self._closing: list[Any] = []

    def row(self, number: int) -> Row | None:
        """A row by its number."""
        entry = bytes(self._entries[number * _BYTES : (number + 1) * _BYTES])
        if not _is_whole(entry):
            return None
        _, *identity, checksum = _ENTRY.unpack_from(entry)
        return Row(self, number, Identity(*identity), checksum)

    def take_in(self) -> list[tuple[bytes, int]]:
        """(place, number) of entries that were not there before."""
        with open(self.stem.with_suffix(".index"), "rb") as file:
            file.seek(self._count * _BYTES)
            new = file.read()
        del self._entries[self._count * _BYTES :]
        self._entries += new
        found, self._free = [], []
        for number in range(self._count, len(self._entries) // _BYTES):
            entry = bytes(self._entries[number * _BYTES : (number + 1) * _BYTES])
            if _is_whole(entry):
                found.append((entry[:16], number))
            else:
                self._free.append(number)
        # Rows are written by several threads: behind the first gap all is looked at again.
        self._count = self._free[0] if self._free else len(self._entries) // _BYTES
        return found

    def hold(self) -> bool:
        """Makes this process the writer, if no other one is."""
        lock = FileLock(self.stem.with_suffix(".lock"), thread_local=False)
        try:
            lock.acquire(timeout=0)
        except (Timeout, OSError, NotImplementedError):  # or a disk without locks
            return False
        try:
            self._open_to_write()
        except OSError:
            lock.release()
            return False
        self._lock = lock
        return True

    def create(self) -> None:
        """Makes the files; a disk without locks has them without one."""
        lock = FileLock(self.stem.with_suffix(".lock"), thread_local=False)
        with suppress(OSError, NotImplementedError, Timeout):
            lock.acquire(timeout=0)
            self._lock = lock
        self._open_to_write()

    def next(self) -> int:
        """A number that has no row."""
        if self._free:
            return self._free.pop()
        number = len(self._entries) // _BYTES
        self._entries += bytes(_BYTES - len(self._entries) % _BYTES)
        return number

    def read(self, into: memoryview, offset: int) -> int:
        """Reads bytes of the rows; how many there were."""
        if self._read is None:
            with self._opening:
                if self._read is None:
                    self._read = self._opened(".pixels", os.O_RDONLY)
        done = 0
        while done < len(into) and (count := os.preadv(self._read, [into[done:]], offset + done)):
            done += count
        return done

    def write(self, number: int, size: int, row: memoryview, entry: bytes) -> None:
        """Writes a row, and then its entry."""
        assert self._rows is not None
        _write(self._rows, row, number * size)
        self.enter(number, entry)

    def enter(self, number: int, entry: bytes) -> None:
        """Writes an entry."""
        if self._index is None:  # of another process
            index = os.open(self.stem.with_suffix(".index"), os.O_RDWR)
            try:
                _write(index, memoryview(entry), number * _BYTES)
            finally:
                os.close(index)
        else:
            _write(self._index, memoryview(entry), number * _BYTES)
        self._entries[number * _BYTES : (number + 1) * _BYTES] = entry

    def close(self) -> None:
        """Closes the files and gives the lock up."""
        for closing in self._closing:
            closing()
        self._read = self._rows = self._index = None
        if self._lock is not None:
            self._lock.release()

    def _open_to_write(self) -> None:
        self._rows = self._opened(".pixels", os.O_RDWR | os.O_CREAT)
        self._index = self._opened(".index", os.O_RDWR | os.O_CREAT)

    def _opened(self, suffix: str, how: int) -> int:
        file = os.open(self.stem.with_suffix(suffix), how, 0o666)
        self._closing.append(weakref.finalize(self, os.close, file))
        return file


def _entry(place: bytes, identity: Identity, checksum: int) -> bytes:
    content = _ENTRY.pack(place, *identity, checksum)
    return content + _OWN.pack(xxhash.xxh3_64_intdigest(content))


def _is_whole(entry: bytes) -> bool:
    own = xxhash.xxh3_64_intdigest(entry[: _ENTRY.size])
    return len(entry) == _BYTES and entry[_ENTRY.size :] == _OWN.pack(own)


def _write(file: int, content: memoryview, offset: int) -> None:
    while content:
        count = os.pwrite(file, content, offset)
        content, offset = content[count:], offset + count
