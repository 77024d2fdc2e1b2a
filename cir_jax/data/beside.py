# SPDX-License-Identifier: Apache-2.0
"""What is made of a large file once, and kept beside it for later starts.

It lies in a hidden folder beside the file, `.cir_jax/`, or in the cache folder of the user where
that cannot be written. It counts as made of the file that is there now if that has the same size,
the same few bytes at its start, middle and end, and the same time; if only the time is another, as
after copying a data set, if its whole content has the same hash. Every file that is kept has a
checksum. What is stale or damaged is made again. What was not made by this user on this host, such
as what came with a data set, is checked before it is used, and that is noted in the cache folder.
"""

import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import xxhash
from filelock import FileLock

from cir_jax import files
from cir_jax.data import unusable
from cir_jax.errors import UserError

FOLDER = ".cir_jax"
RECORD = "record.json"
_CACHE, _KNOWN = "beside", "checked"  # folder of the cache folder, and what it notes in it

T = TypeVar("T")


class Damaged(ValueError):
    """What is kept cannot be used."""


@dataclass(frozen=True)
class Origin:
    """What tells the content of a file from that of another.

    Attributes:
      size: bytes.
      time: of its last change, in nanoseconds; -1 if it had just been written.
      sample: hash of a few bytes of its start, middle and end.
      content: hash of all of it.
    """

    size: int
    time: int
    sample: str
    content: str

    @classmethod
    def of(cls, path: Path) -> "Origin":
        """Of a file as it is now.

        Raises:
          UserError: it cannot be read.
        """
        with _readable(path):
            found = path.stat()
            when = found.st_mtime_ns if files.settled(found.st_mtime_ns) else -1
            sample = unusable.samples(path).digest()
            return cls(found.st_size, when, sample, files.checksum(path)[1])

    def is_of(self, path: Path) -> bool:
        """Whether a file has the content that this is of."""
        with _readable(path):
            found = path.stat()
            if found.st_size != self.size or unusable.samples(path).digest() != self.sample:
                return False
            return found.st_mtime_ns == self.time or files.checksum(path)[1] == self.content


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror or error}); correct that"
        ) from None


def kept(
    source: Path,
    what: str,
    key: Mapping[str, Any],
    make: Callable[[Path], Mapping[str, Any]],
    load: Callable[[Path, Mapping[str, Any]], T],
    check: Callable[[Path, Mapping[str, Any]], None] = lambda folder, noted: None,
) -> T:
    """What is made of a file: from where it is kept, else made now and kept.

    Processes that want it at the same time make it once where the file system has locks; where it
    has none each makes its own, and the first one to be done is kept.

    Args:
      source: the file.
      what: name of what is made of it, a part of a file name.
      key: values of JSON that it depends on beside the file.
      make: writes files into an empty folder; returns what else is to be noted, values of JSON.
      load: (folder, what `make` has returned) -> what is wanted; it opens all files it needs, for
        the folder may go or get another name afterwards.
      check: (folder, what `make` has returned) -> raises Damaged unless `make` may have written it.
        Nothing else reads the files of somebody else before.

    Raises:
      UserError: the file cannot be read, or neither place can be written.
      Damaged: what was written cannot be read back, either.
    """
    places = _places(source, what)

    def found_at(place: Path) -> T:
        noted = _noted(place, source, key)
        if not _is_known(place):
            check(place, noted)
            _remember(place)
        return load(place, noted)

    for place in places:
        with suppress(Damaged):
            return found_at(place)
    refusals = []
    for place in places:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with _alone(place) as locked:
                with suppress(Damaged):  # made by another process while this one waited
                    return found_at(place)
                if locked:
                    _clear(place)
                return _made(
                    place, lambda partial: load(partial, _make(partial, source, key, make))
                )
        except OSError as error:
            refusals.append(f"{place.parent} ({error.strerror or error})")
    raise UserError(
        f"{what} of {source} has no place: neither can be written, {' nor '.join(refusals)}; "
        "correct the permissions of one, or set CIR_JAX_CACHE to a folder with room"
    )


def _made(place: Path, make: Callable[[Path], T]) -> T:
    """What is made in a new folder, which then takes its place."""
    partial = Path(tempfile.mkdtemp(dir=place.parent, prefix=_prefix(place)))
    try:
        # Loaded before it has its place, which another process may take where there are no locks:
        # what is mapped stays.
        found = make(partial)
        _remember(partial)
        _swap(partial, place)
        return found
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def passing() -> Iterator[Path]:
    """A folder for what is not worth keeping; files of it that are mapped stay so."""
    with tempfile.TemporaryDirectory(prefix="cir_jax-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def checksums(folder: Path) -> dict[str, list[Any]]:
    """Name -> [size, hash] of every file of a folder."""
    return {
        file.name: list(files.checksum(file))
        for file in sorted(folder.iterdir())
        if file.name != RECORD
    }


def _places(source: Path, what: str) -> list[Path]:
    found = [source.parent / FOLDER / f"{source.name}.{what}"]
    name = xxhash.xxh3_128_hexdigest(os.path.realpath(source).encode(errors="surrogateescape"))
    with suppress(RuntimeError):  # of a user without a home
        found.append(files.cache() / _CACHE / f"{name}.{what}")
    return found


def _noted(place: Path, source: Path, key: Mapping[str, Any]) -> Mapping[str, Any]:
    """What `make` noted; Damaged if what lies there is stale, damaged, or nothing."""
    try:
        record = json.loads((place / RECORD).read_bytes())
        origin, noted = Origin(**record["origin"]), dict(record["noted"])
        fitting = record["key"] == key and origin.is_of(source)
        whole = fitting and checksums(place) == record["files"]
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise Damaged(f"{place}: {error}") from None
    if not whole:
        raise Damaged(f"{place} was made of something else, or is damaged")
    return noted


def _make(
    partial: Path, source: Path, key: Mapping[str, Any], make: Callable[[Path], Mapping[str, Any]]
) -> Mapping[str, Any]:
    """Makes all files of a folder; what is noted of them."""
    origin = Origin.of(source)
    try:
        noted = make(partial)
        record = {
            "origin": asdict(origin),
            "key": key,
            "noted": noted,
            "files": checksums(partial),
        }
        (partial / RECORD).write_text(json.dumps(record))
    except OSError as error:
        raise files.full(partial, error) from None
    if not origin.is_of(source):
        raise UserError(f"{source} changed while it was read; start again when it is complete")
    return noted


def _known(place: Path) -> Path:
    """The file whose presence says that what lies at a place was made or checked by this user.

    Raises:
      RuntimeError: the user has no home.
    """
    name = hashlib.sha256((place / RECORD).read_bytes()).hexdigest()
    return files.cache() / _CACHE / _KNOWN / name


def _is_known(place: Path) -> bool:
    with suppress(OSError, RuntimeError):
        return os.path.exists(_known(place))
    return False


def _remember(place: Path) -> None:
    """Notes that what lies at a place is known; where that cannot be, it is checked each time."""
    with suppress(OSError, RuntimeError):
        note = _known(place)
        note.parent.mkdir(parents=True, exist_ok=True)
        note.touch()


def _prefix(place: Path) -> str:
    return f".{place.name}.partial-"


def _clear(place: Path) -> None:
    """Removes what processes have left that were killed; nobody else writes now."""
    for left in place.parent.glob(f"{glob.escape(_prefix(place))}*"):
        shutil.rmtree(left, ignore_errors=True)


def _swap(partial: Path, place: Path) -> None:
    """Gives the new folder its place; who still reads the old one keeps its files."""
    old = Path(tempfile.mkdtemp(dir=place.parent, prefix=_prefix(place)))
    with suppress(OSError):
        place.rename(old / "old")
    # Where there is no lock, another process may have been first: its folder is as good.
    with suppress(OSError):
        partial.rename(place)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _alone(place: Path) -> Iterator[bool]:
    """Waits until no other process makes this; False if the file system has no locks."""
    try:
        lock = FileLock(f"{place}.lock")
        lock.acquire()
    except (OSError, NotImplementedError):
        yield False
        return
    try:
        yield True
    finally:
        lock.release()
