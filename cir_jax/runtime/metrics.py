# SPDX-License-Identifier: Apache-2.0
"""What a run logs: JSON lines and TensorBoard events, written by process 0."""

import json
import socket
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import jax

from cir_jax import files, progress
from cir_jax.runtime import storage

FILE = "metrics.jsonl"
# Of a clock or of the machine: all others are the same in a run that was stopped and resumed.
TIMED = (
    *("seconds", "step_seconds", "input_seconds", "examples_per_second", "images_per_second"),
    "memory_bytes",
)
REOPEN = 60.0  # seconds after which what was logged is certain to be in a mounted bucket


class Logger:
    """Appends lines {"step": n, name: value, ...} to `folder`/metrics.jsonl and to TensorBoard.

    A run that resumes at `step` first drops the lines after it, so that the file reads as that of
    a run that was never stopped.

    Raises:
      UserError: the disk is full; also of `write` and `close`.
    """

    def __init__(self, folder: str | Path, step: int = 0):
        self._file: _Log | None = None
        if jax.process_index() != 0:
            return
        path = Path(folder) / FILE
        found, reason = _read(path)
        if reason:
            progress.say(f"{files.set_aside(path, reason)}, and the lines that can be read go on")
        kept = [line for line in found if line["step"] <= step]
        files.put(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self._events = _Events(Path(folder) / "tensorboard", step + 1)
        self._file = _Log(path)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Logs scalars (TensorBoard) and anything that JSON holds (the file)."""
        if self._file is None:
            return
        self._file.write((json.dumps({"step": step, **values}) + "\n").encode())
        numbers = {k: float(v) for k, v in values.items() if isinstance(v, int | float)}
        self._events.write(step, numbers)

    def close(self) -> None:
        """Closes both files."""
        if self._file is not None:
            self._file.close()
            self._events.close()


class _Log:
    """A file that is written at its end, and seen by others as soon as it can be.

    On a mounted bucket an open file is seen by nobody and lost with its host, so there it is
    closed and opened anew once a minute.
    """

    def __init__(self, path: Path):
        self._path, self._file = path, _opened(path)
        self._reopens, self._since = storage.is_bucket(path), time.monotonic()

    def write(self, content: bytes) -> None:
        try:
            rest = content
            while rest:  # a disk that is nearly full takes a part, and then complains
                rest = rest[self._file.write(rest) :]
            if self._reopens and time.monotonic() - self._since >= REOPEN:
                self._file.close()
                self._file, self._since = _opened(self._path), time.monotonic()
        except OSError as error:
            raise files.full(self._path, error, len(content)) from None

    def close(self) -> None:
        try:
            self._file.close()
        except OSError as error:
            raise files.full(self._path, error) from None


def _opened(path: Path) -> BinaryIO:
    """Without a buffer: what was refused for lack of room is not tried again at the end."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("ab", buffering=0)
    except OSError as error:
        raise files.full(path, error) from None


class _Events:
    """Scalars as TensorBoard reads them, in a file of their own for each start of a run.

    Written here and now. tensorboardX writes them in a thread, which a full disk ends: the run
    then waits for it for ever.
    """

    def __init__(self, folder: Path, first_step: int):
        with _no_import_of("torch"):
            from tensorboardX import record_writer, summary
            from tensorboardX.proto import event_pb2
        self._scalar, self._event = summary.scalar, event_pb2.Event
        self._checksum = record_writer.masked_crc32c
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"
        self._log = _Log(folder / name)
        began = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._add(self._event(wall_time=time.time(), file_version="brain.Event:2"))
        # TensorBoard drops what earlier starts of the run have noted from this step on.
        self._add(self._event(wall_time=time.time(), step=first_step, session_log=began))

    def write(self, step: int, values: dict[str, float]) -> None:
        now = time.time()
        for name, value in values.items():
            self._add(self._event(wall_time=now, step=step, summary=self._scalar(name, value)))

    def close(self) -> None:
        self._log.close()

    def _add(self, event: Any) -> None:
        """One record of TensorFlow: its length, and both with a checksum."""
        content = event.SerializeToString()
        length = struct.pack("<Q", len(content))
        parts = [part + struct.pack("<I", self._checksum(part)) for part in (length, content)]
        self._log.write(b"".join(parts))


def read(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; [] if there is none. What is no line of a run is left out."""
    return _read(Path(path))[0]


def _read(path: Path) -> tuple[list[dict[str, Any]], str]:
    """(the lines that are such as are written, what is wrong with the others or "")."""
    try:
        texts = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return [], ""
    except OSError as error:
        return [], error.strerror or str(error)
    lines, reason = [], ""
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text)
            if type(line["step"]) is not int:
                raise TypeError
            lines.append(line)
        except (ValueError, TypeError, LookupError, RecursionError):
            if number < len(texts):  # what follows the last line break was cut by a kill
                reason = reason or f"line {number} is none of a run"
    return lines, reason


@contextmanager
def _no_import_of(package: str) -> Iterator[None]:
    """Lets an import go without an optional package: PyTorch takes longer to load than jax."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]  # Python's way to say "not there"
    try:
        yield
    finally:
        del sys.modules[package]
