# SPDX-License-Identifier: Apache-2.0
"""What was found out about the images of a data set, kept in the cache folder for later starts.

A file counts as the one that was looked at if its size and its time are the same; if only its time
is another, as after copying a data set, if its size and a few bytes of its start, middle and end
are. A file that could not be used is looked at again as soon as its time changes. All are looked at
again by other decoders: a newer Pillow, or a package for HEIC, opens what was refused before.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import xxhash
from filelock import FileLock, Timeout

from cir_jax import files
from cir_jax.data import picture_files
from cir_jax.data.unusable import REASONS, Looked, Problem, Stamp
from cir_jax.errors import UserError

FOLDER = "image_looks"
LEAST = 256  # images that are looked at again sooner than a file about them is kept
_VERSION = 1
_POLL = 0.2  # s


class Known(NamedTuple):
    """What was found out about one file."""

    size: int
    time: int  # -1: it had just been written
    sample: str
    depth: int  # how closely it was looked at, see `unusable.look`
    reason: str = ""
    why: str = ""
    width: int = 0  # of its image, in pixels; 0: not known
    height: int = 0
    pixels: str = ""  # of INSPECT: hash of its pixels, transparency on white
    unusual: str = ""  # of INSPECT: what is, of `inspection.UNUSUAL`, one a line

    @classmethod
    def now(cls, stamp: Stamp, looked: Looked, depth: int, *inspected: str) -> "Known":
        """Of a file that was looked at just now; `inspected`: `pixels` and `unusual`."""
        problem, sample, width, height = looked
        reason, why = (problem.reason, problem.why) if problem else ("", "")
        when = settled(stamp)
        return cls(stamp.size, when, sample, depth, reason, why, width, height, *inspected)

    def still(self, stamp: Stamp) -> "Known":
        """Of the same content with another time."""
        return self._replace(time=settled(stamp))

    def problem(self, place: str) -> Problem | None:
        """Why the file, which messages call `place`, cannot be used; None if it can."""
        return Problem(place, self.reason, self.why) if self.reason else None

    def is_one(self) -> bool:
        """Whether every value is of its type, as a damaged file may not have it."""
        kinds = [type(value) for value in self]
        expected = [int, int, str, int, str, str, int, int, str, str]
        return kinds == expected and self.reason in ("", *REASONS)

    def deep_enough(self, depth: int, sized: bool = False) -> bool:
        """Whether nothing more comes out by looking so closely; `sized`: at the size, too."""
        return bool(self.reason) or (self.depth >= depth and (self.width > 0 or not sized))

    def holds(self, now: Stamp | Problem, depth: int, sized: bool = False) -> bool:
        """Whether it says so much of the file that is there now, as far as its stamp tells."""
        same = self.time >= 0 and (self.size, self.time) == now
        return same and self.deep_enough(depth, sized)


def settled(stamp: Stamp) -> int:
    """The time to keep of a file that was looked at just now; -1 if it may change within it."""
    return stamp.time if files.settled(stamp.time) else -1


def home_of(paths: Iterable[Any]) -> str:
    """The folder that these images share, for a data set without a root; "" if there is none."""
    folders = {os.path.dirname(os.path.abspath(p)) for p in paths if isinstance(p, str)}
    with suppress(ValueError):  # of none, or of several drives
        return os.path.commonpath(folders)
    return ""


class KeptLooks:
    """The file about the images of one data set; without a place it keeps nothing.

    Args:
      root: folder of the data set; "" for none.
      loading: how its images are opened, see `cir_jax.data.pixels.Loading`.
    """

    def __init__(self, root: str, loading: str):
        self.known: dict[str, Known] = {}
        self._file = None
        if root:
            what = f"{os.path.realpath(root)}\n{loading}".encode(errors="surrogatepass")
            name = xxhash.xxh3_128_hexdigest(what)
            with suppress(RuntimeError):  # of a user without a home
                self._file = files.cache() / FOLDER / f"{name}.json"

    def read(self) -> None:
        """Takes in what the file holds; nothing if it is not there, is damaged, or of others."""
        if self._file is None:
            return
        with suppress(OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
            content = json.loads(self._file.read_bytes())
            if content["version"] == _VERSION and content["by"] == picture_files.decoders():
                known = {place: Known(*found) for place, found in content["images"].items()}
                if all(map(Known.is_one, known.values())):
                    self.known = known

    def add(self, found: Mapping[str, Known]) -> None:
        """Keeps more; without a word nothing if the cache folder cannot be written."""
        if self._file is None or len(self.known) + len(found) < LEAST:
            return
        self.read()  # of what other runs have added since
        self.known |= found
        by = picture_files.decoders()
        content: dict[str, Any] = {"version": _VERSION, "by": by, "images": self.known}
        with suppress(UserError):
            files.put(self._file, json.dumps(content, separators=(",", ":")).encode())

    @contextmanager
    def alone(self, progressed: Any) -> Iterator[bool]:
        """Waits until no other process looks at these images; whether it has waited.

        Args:
          progressed: called now and then while waiting.
        """
        lock, waited = None, False
        if self._file is not None:
            with suppress(OSError):  # a folder that cannot be written, or has no locks
                self._file.parent.mkdir(parents=True, exist_ok=True)
                lock = FileLock(f"{self._file}.lock")
                while True:
                    try:
                        lock.acquire(timeout=_POLL)
                        break
                    except Timeout:
                        waited = True
                        progressed()
        try:
            yield waited
        finally:
            if lock is not None:
                lock.release()
