# SPDX-License-Identifier: Apache-2.0
"""Files of ours: there whole or not at all, of a version that is read. Free of jax, for readers."""

import errno
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from cir_jax.errors import UserError

# ns; a file or a folder may change again within them without another time: clocks are coarse
JUST_NOW = 2_000_000_000
_CHUNK = 1 << 19  # bytes read at a time; they stay in the cache of a core while they are hashed
_NO_ROOM = {errno.ENOSPC: "ENOSPC", errno.EDQUOT: "EDQUOT", errno.EFBIG: "EFBIG"}


def full(path: Path, error: OSError, need: int = 0) -> UserError:
    """What to say when a file cannot be written.

    Args:
      path: the file.
      error: what the system said.
      need: bytes that the file takes, if that is known.
    """
    room = f"{room_for(need, path)}; make" if error.errno in _NO_ROOM else "Make"
    return UserError(
        f"{path} cannot be written ({error.strerror or error}); what it held is kept. {room} room "
        "or correct that, then give the same command again"
    )


@contextmanager
def permitted() -> Iterator[None]:
    """A place that the system does not let us use becomes an error that names it.

    Raises:
      UserError: a file or a folder may not be read, written or entered. Python's own questions
        whether one is there raise this, too, where a folder above it may not be entered.
    """
    try:
        yield
    except PermissionError as error:
        place = error.filename if error.filename is not None else "a file or folder"
        raise UserError(
            f"{place} cannot be used ({error.strerror or error}); correct its permissions and "
            "those of the folders that it lies in, or give another place"
        ) from None


def room_for(need: int, place: Path) -> str:
    """A clause that says how many bytes are wanted at a place, and how many are free there."""
    there = next((p for p in (place, *place.absolute().parents) if p.exists()), Path("/"))
    free = f"{gigabytes(shutil.disk_usage(there).free)} are free there"
    return f"It needs {gigabytes(need)}, and {free}" if need else free


def lacks_room(error: BaseException | None) -> bool:
    """Whether a full disk is behind an error, also where a library tells of it in words alone."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            return True
        words = str(error)
        if any(name in words or os.strerror(code) in words for code, name in _NO_ROOM.items()):
            return True
        error = error.__cause__ or error.__context__
    return False


def cache() -> Path:
    """The folder on this host of what can be made again: CIR_JAX_CACHE, or ~/.cache/cir_jax."""
    return Path(os.environ.get("CIR_JAX_CACHE") or Path.home() / ".cache" / "cir_jax")


def gigabytes(count: float) -> str:
    """A number of bytes for people."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 1e3:,.1f} kB"


def settled(changed: int) -> bool:
    """Whether what was changed at a time, in nanoseconds, gets another one if it changes again."""
    return time.time_ns() - changed >= JUST_NOW


def checksum(path: str | Path) -> tuple[int, str]:
    """(bytes, XXH3-128) of a file."""
    digest, size, chunk = xxhash.xxh3_128(), 0, memoryview(bytearray(_CHUNK))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(chunk):
            digest.update(chunk[:count])
            size += count
    return size, digest.hexdigest()


def put(path: str | Path, content: bytes) -> None:
    """Writes a file of this content, or leaves `path` as it was.

    Raises:
      UserError: the disk is full or fails.
    """
    with whole(path, lambda path, error: full(path, error, len(content))) as file:
        file.write(content)


def set_aside(path: Path, reason: str) -> str:
    """Moves a file that cannot be used out of the way; nothing is lost.

    Args:
      path: the file.
      reason: what is wrong with it.

    Returns:
      What to say.

    Raises:
      UserError: it cannot be moved.
    """
    place, number = path.with_name(f"{path.name}.damaged"), 2
    while place.exists() or place.is_symlink():
        place, number = path.with_name(f"{path.name}.damaged-{number}"), number + 1
    try:
        path.rename(place)
    except OSError as error:
        raise UserError(
            f"{path} is damaged ({reason}) and cannot be moved to {place} "
            f"({error.strerror or error}); move it away, then give the same command again"
        ) from None
    return f"{path} is damaged ({reason}); what was there is kept as {place.name}"


@contextmanager
def whole(
    path: str | Path, failed: Callable[[Path, OSError], UserError] = full
) -> Iterator[BinaryIO]:
    """Opens a file that takes the place of `path` only when all of it is written.

    Args:
      path: the file; its folder is made.
      failed: (path, error) -> what to raise.

    Raises:
      UserError: the disk is full or fails; `path` is as it was.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise failed(path, error) from None
        raise


_BUCKET = re.compile(r"(?P<kind>gs|s3|az|abfss?|hdfs|r2)://(?P<bucket>[^/]*)/?(?P<path>.*)")


def check_local(what: str, place: str) -> None:
    """Checks that a place is one of the file system: a bucket is used through a mount.

    Args:
      what: names the place in the message, e.g. the key of a config.
      place: a path.

    Raises:
      UserError: it is the address of a bucket, which would be taken for a folder `gs:`.
    """
    found = _BUCKET.match(place.strip())
    if found is None:
        return
    bucket, mount = found["bucket"], f"/mnt/{found['bucket']}"
    how = f"mount it first (with the program of its maker, e.g. to {mount})"
    if found["kind"] == "gs":
        how = (
            "mount it first on every host (`launch/tpu_pod.sh mount --bucket "
            f"{bucket} ...`, or `gcsfuse --implicit-dirs {bucket} {mount}`)"
        )
    raise UserError(
        f"{what}={place} is the address of a bucket, and files are read and written by their "
        f"paths; {how}, then give {mount}/{found['path']}"
    )


def check_version(record: Mapping[str, Any], newest: int, what: str) -> None:
    """Checks the version of a format of ours, which is 1 where a record does not say any.

    Args:
      record: JSON, of which "version" is read.
      newest: the newest version that this code reads.
      what: the place of the record, for the message.

    Raises:
      UserError: it is of a newer version.
    """
    version = record.get("version", 1)
    if version not in range(1, newest + 1):
        known = "version 1" if newest == 1 else f"versions 1 to {newest}"
        raise UserError(
            f"{what} is of version {version!r} of its format, and this code reads {known}; update "
            "cir_jax, or use the version that wrote it"
        )
