# SPDX-License-Identifier: Apache-2.0
"""Files between the steps, written so that a kill or a full disk costs at most the last record.

A journal grows record by record and is never written over; a result is written beside its place
and moved there when it is complete.
"""

import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cir_jax.data.annotations import parsed, read_lines
from cir_jax.errors import UserError
from cir_jax.files import full, whole
from cir_jax.runtime import storage

REOPEN = 10.0  # seconds that a journal on a bucket stays open


class Journal:
    """A JSON-lines file to which records are added one by one.

    What a kill left half written at its end is cut off when it is opened. A record is on its way to
    the disk when `add` returns, so a killed program loses none; `sync_every` records are forced
    there, for the case that the machine stops. One process writes at a time, see `locked`.

    On a mounted bucket an open file is seen by nobody and lost with its host, so there it is closed
    and opened anew every few seconds: what a machine had added in the last of them goes with it.

    Args:
      path: the file; made if it is not there.

    Raises:
      UserError: it cannot be opened for writing.
    """

    def __init__(self, path: str | Path, sync_every: int = 64):
        self.path = Path(path)
        self._every, self._unsynced = sync_every, 0
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._reopens, self._since = storage.is_bucket(path), time.monotonic()
            self._file = self.path.open("ab", buffering=0)
            self._end = _complete(self.path)
            self._file.truncate(self._end)
        except OSError as error:
            raise full(self.path, error) from None

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def records(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """What is there now, in order, each with "file:line" for messages.

        Raises:
          UserError: a line is damaged.
        """
        yield from read_lines(self.path, lone_surrogates=True)

    def add(self, *records: dict[str, Any]) -> None:
        """Adds records: all of them, or none.

        Raises:
          UserError: the disk is full or fails; the file then ends with its last complete record.
        """
        lines = b"".join(map(_line, records))
        rest = memoryview(lines)
        try:
            while rest:  # unbuffered, so what was not written is nowhere else either
                rest = rest[self._file.write(rest) :]
            self._unsynced += len(records)
            if self._unsynced >= self._every:
                os.fsync(self._file.fileno())
                self._unsynced = 0
            if self._reopens and time.monotonic() - self._since >= REOPEN:
                self._file.close()
                self._file, self._since = self.path.open("ab", buffering=0), time.monotonic()
        except OSError as error:
            with suppress(
                OSError, ValueError
            ):  # half a line at the end is cut when the file is next opened
                os.ftruncate(self._file.fileno(), self._end)
            raise full(self.path, error) from None
        self._end += len(lines)

    def close(self) -> None:
        """Forces everything to disk.

        Raises:
          UserError: the disk is full or fails.
        """
        if self._file.closed:  # it could not be opened anew
            return
        try:
            with self._file:
                os.fsync(self._file.fileno())
        except OSError as error:
            raise full(self.path, error) from None


def read(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The records of a journal that another process may be writing, as `Journal.records` has them.

    Half a record at its end is not there yet. A journal that is not there has none.

    Raises:
      UserError: a line is damaged.
    """
    path = Path(path)
    if not path.is_file():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            where = f"{path}:{number}"
            try:
                text = line.decode()
            except UnicodeDecodeError:
                raise UserError(f"{where} is not UTF-8 text; remove that line") from None
            if text.strip():
                yield where, parsed(text, where, lone_surrogates=True)


@contextmanager
def locked(folder: str | Path, wait: float = 0.0) -> Iterator[None]:
    """Makes `folder` and keeps other processes out of it; the lock goes when this process does.

    Some mounted buckets have no locks; there it only makes the folder.

    Args:
      folder: the folder.
      wait: seconds that another process is waited for.

    Raises:
      UserError: another process is in it, or it cannot be made.
    """
    folder = Path(folder)
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=wait)
    except Timeout:
        raise UserError(
            f"another process is at work in {folder}; wait for it, or use another workdir"
        ) from None
    except NotImplementedError:
        pass
    except OSError as error:
        raise full(folder, error) from None
    try:
        yield
    finally:
        lock.release()


def write_json(path: str | Path, content: Any, indent: int | None = None) -> None:
    """Writes JSON with `whole`."""
    with whole(path) as file:
        for part in json.JSONEncoder(ensure_ascii=False, indent=indent).iterencode(content):
            file.write(_bytes(part))
        file.write(b"\n")


def write_lines(path: str | Path, records: Iterable[dict[str, Any]]) -> int:
    """Writes JSON lines with `whole`; their number."""
    count = 0
    with whole(path) as file:
        for record in records:
            file.write(_line(record))
            count += 1
    return count


def write_array(path: str | Path, records: Iterable[Any]) -> int:
    """Writes one JSON array, record by record, with `whole`; the number of records."""
    count = 0
    with whole(path) as file:
        file.write(b"[")
        for record in records:
            file.write((b"," if count else b"") + b"\n" + _line(record).rstrip())
            count += 1
        file.write(b"\n]\n")
    return count


def reuse(path: Path, made_of: dict[str, Any], files: Iterable[Path]) -> dict[str, Any] | None:
    """What a finished step counted, if its result is there and was made of the same; else None."""
    if not path.is_file() or not all(f.is_file() for f in files):
        return None
    try:
        summary = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None
    if not isinstance(summary, dict) or summary.get("made_of") != json.loads(json.dumps(made_of)):
        return None
    return summary.get("counts")


def _line(record: Any) -> bytes:
    return _bytes(json.dumps(record, ensure_ascii=False)) + b"\n"


def _bytes(json_stream: str) -> bytes:
    # Half a surrogate pair, as a model may write it, has no form in UTF-8. With a backslash it is
    # the JSON escape of itself.
    return json_stream.encode("utf-8", "backslashreplace")


def _complete(path: Path) -> int:
    """Bytes up to the end of the last complete line."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - 2**16)
            file.seek(start)
            at = file.read(end - start).rfind(b"\n")
            if at >= 0:
                return start + at + 1
            end = start
    return 0
