# SPDX-License-Identifier: Apache-2.0
"""Files between the steps, written so that a kill or a full disk costs at most the last record.

A journal grows record by record and is never written over; a result is written beside its place
and moved there when it is complete.
"""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from filelock import FileLock, Timeout

from cir_jax.errors import UserError
from cir_jax.positives.annotations import read_lines


class Journal:
    """A JSON-lines file to which records are added one by one.

    What a kill left half written at its end is cut off when it is opened. A record is on its way to
    the disk when `add` returns, so a killed program loses none; `sync_every` records are forced
    there, for the case that the machine stops.

    Args:
      path: the file; made if it is not there.

    Raises:
      UserError: another process has it open, or a line in its middle is damaged.
    """

    def __init__(self, path: str | Path, sync_every: int = 64):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._every, self._unsynced = sync_every, 0
        self._lock = FileLock(self.path.with_name(f".{self.path.name}.lock"))
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise UserError(
                f"{self.path} is being written by another process; wait for it, or use another "
                "workdir"
            ) from None
        try:
            self._file = self.path.open("ab", buffering=0)
            self._end = _complete(self.path)
            self._file.truncate(self._end)
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def records(self) -> Iterator[dict[str, Any]]:
        """What is there now, in order."""
        for _, record in read_lines(self.path):
            yield record

    def add(self, *records: dict[str, Any]) -> None:
        """Adds records: all of them, or none.

        Raises:
          UserError: the disk is full or fails; the file then ends with its last complete record.
        """
        lines = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records).encode()
        rest = memoryview(lines)
        try:
            while rest:  # unbuffered, so what was not written is nowhere else either
                rest = rest[self._file.write(rest) :]
            self._unsynced += len(records)
            if self._unsynced >= self._every:
                os.fsync(self._file.fileno())
                self._unsynced = 0
        except OSError as error:
            os.ftruncate(self._file.fileno(), self._end)
            raise full(self.path, error) from None
        self._end += len(lines)

    def close(self) -> None:
        """Forces everything to disk and lets others open the file."""
        if not self._lock.is_locked:
            return
        try:
            os.fsync(self._file.fileno())
            self._file.close()
        except OSError as error:
            raise full(self.path, error) from None
        finally:
            self._lock.release()


def full(path: Path, error: OSError) -> UserError:
    """What to say when a file cannot be written."""
    return UserError(
        f"{path} cannot be written ({error.strerror}); what it held is kept. Make room, then give "
        "the same command again"
    )


@contextmanager
def whole(path: str | Path) -> Iterator[TextIO]:
    """Opens a text file that takes the place of `path` only when all of it is written.

    Raises:
      UserError: the disk is full or fails; `path` is as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise full(path, error) from None
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_json(path: str | Path, content: Any, indent: int | None = None) -> None:
    """Writes JSON with `whole`."""
    with whole(path) as file:
        json.dump(content, file, ensure_ascii=False, indent=indent)


def write_lines(path: str | Path, records: Iterable[dict[str, Any]]) -> int:
    """Writes JSON lines with `whole`; their number."""
    count = 0
    with whole(path) as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            count += 1
    return count


def write_array(path: str | Path, records: Iterable[Any]) -> int:
    """Writes one JSON array, record by record, with `whole`; the number of records."""
    count = 0
    with whole(path) as file:
        file.write("[")
        for record in records:
            file.write(("," if count else "") + "\n" + json.dumps(record, ensure_ascii=False))
            count += 1
        file.write("\n]\n")
    return count


def reuse(path: Path, made_of: dict[str, Any], files: Iterable[Path]) -> dict[str, Any] | None:
    """What a finished step counted, if its result is there and was made of the same; else None."""
    if not path.is_file() or not all(f.is_file() for f in files):
        return None
    try:
        summary = json.loads(path.read_text("utf-8"))
    except json.JSONDecodeError:
        return None
    same = json.loads(json.dumps(made_of))
    return summary["counts"] if summary.get("made_of") == same else None


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
