# SPDX-License-Identifier: Apache-2.0
"""A bank on disk: written batch by batch, taken up again after an interruption, never half read.

    targets.npy      float32 [N, K, D]
    references.npy   float32 [M, R, C], or the bits of bfloat16 as uint16, or not there
    bank.json        what they were made of, and the version of this format; written last, so
                     without it there is no bank
    .lock            held by the run that builds

While it grows, the arrays are called `.npy.part` and `part.json` says how much of them is certainly
on disk and of what it is made. A row of BLIP's references is 887 KB: no process holds all of them.
One run at a time builds in a folder (`lock`), and one of its processes writes there (`is_writer`).
"""

import json
import os
import shutil
import time
import uuid
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from filelock import FileLock, Timeout
from jax.experimental import multihost_utils

from cir_jax import files
from cir_jax.errors import UserError

VERSION = 1  # of the folder of a bank, its references included
RECORD = "bank.json"
PARTIAL = "part.json"
LOCK = ".lock"  # stays there: deleting it would let two runs in
COMMIT = 30.0  # seconds between two moments at which what was written is made certain


def make_folder(folder: str | Path) -> None:
    """Makes the folder of a bank.

    Raises:
      UserError: there can be no such folder.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unfit(folder, error) from None


def lock(folder: str | Path) -> FileLock:
    """Keeps other runs from building in `folder`, until it is released or the process ends.

    Raises:
      UserError: another run is building there, or the folder cannot be written.
    """
    file_lock = FileLock(Path(folder) / LOCK)
    try:
        file_lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"another run is building the bank in {folder}; wait for it, or set loss.bank_path to "
            "another folder"
        ) from None
    except OSError as error:
        raise _unfit(folder, error) from None
    return file_lock


def is_writer(folder: str | Path) -> bool:
    """Whether this process writes `folder`: the first of those that see the same one.

    Hosts may share the folder or have one each by the same path, so each process leaves a file of
    its own there and looks whose it finds.
    """
    if jax.process_count() == 1:
        return True
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    this = jax.process_index()
    drawn = np.frombuffer(uuid.uuid4().bytes[:4], np.int32)
    code = int(multihost_utils.broadcast_one_to_all(drawn)[0]) & 0xFFFFFFFF
    marks = [folder / f".{code:08x}-{i}" for i in range(jax.process_count())]
    marks[this].touch()
    multihost_utils.sync_global_devices(f"bank marks {code}")
    first = next(i for i, mark in enumerate(marks) if mark.exists())
    multihost_utils.sync_global_devices(f"bank marks seen {code}")
    marks[this].unlink()
    return first == this


def load(folder: str | Path, made_of: dict[str, str]) -> dict[str, np.ndarray] | None:
    """The arrays in `folder`, memory-mapped; None if there is no bank.

    Raises:
      UserError: the bank there was made of something else, and the message says what differs; or
        one of its files is damaged, or of a newer version than this code reads.
    """
    folder = Path(folder)
    if not (folder / RECORD).is_file():
        return None
    try:
        recorded = dict(json.loads((folder / RECORD).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise _damaged(folder, error) from None
    files.check_version(recorded, VERSION, f"the bank in {folder}")
    recorded.pop("version", None)
    differ = [part for part in made_of | recorded if made_of.get(part) != recorded.get(part)]
    if differ:
        details = "; ".join(
            f"{part}: {str(recorded.get(part))[:40]} there, {str(made_of.get(part))[:40]} now"
            for part in differ
        )
        raise UserError(
            f"the bank in {folder} was made of other {', '.join(differ)} ({details}); delete it, "
            "or set loss.bank_path to another folder"
        )
    names = ["targets", *(["references"] if "references" in made_of else [])]
    try:
        return {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names}
    except (OSError, ValueError, EOFError) as error:
        raise _damaged(folder, error) from None


class Writer:
    """Arrays whose rows come one batch after the other. Use it in a `with`; then `finish`.

    Args:
      folder: of the bank, made if need be; nobody else writes it, see `lock`.
      arrays: name -> (shape, dtype) of the whole array.
      made_of: as in `load`.

    Attributes:
      done: items, as `commit` counted them, whose rows are there from before.

    Raises:
      UserError: a newer version than this code writes has begun a bank there.
    """

    def __init__(
        self,
        folder: str | Path,
        arrays: dict[str, tuple[tuple[int, ...], Any]],
        made_of: dict[str, str],
    ):
        self.folder = Path(folder)
        self._arrays = arrays
        self._made_of = made_of
        self._files: dict[str, Any] = {}
        self._rows = dict.fromkeys(arrays, 0)
        self._committed = time.monotonic()
        self.done = 0
        recorded = _partial_record(self.folder / PARTIAL)
        files.check_version(recorded, VERSION, f"the bank that was begun in {self.folder}")
        if recorded.get("made_of") == made_of and self._long_enough(recorded):
            self.done, self._rows = recorded["done"], recorded["rows"]

    def missing(self) -> int:
        """Bytes that are still to be written."""
        return sum(
            (shape[0] - self._rows[name]) * _row_bytes(shape, kind)
            for name, (shape, kind) in self._arrays.items()
        )

    def lacks_room(self) -> str:
        """What to say if the disk is too small for what is missing; "" if it is not."""
        make_folder(self.folder)
        needed, free = self.missing(), shutil.disk_usage(self.folder).free + self._cut_off()
        if needed <= free:
            return ""
        return (
            f"the bank needs {files.gigabytes(needed)} in {self.folder}, and {files.gigabytes(free)} are free "
            "there; make room, set loss.bank_path to a folder on a larger disk, or set "
            "loss.references=recompute"
        )

    def start(self, done: int, rows: dict[str, int]) -> None:
        """Opens the files behind the rows of the first `done` items; what follows is cut off.

        Raises:
          UserError: they cannot be written.
        """
        make_folder(self.folder)
        if done < self.done or not done:
            # Whoever made the record: it would vouch for rows that are about to be others.
            (self.folder / PARTIAL).unlink(missing_ok=True)
        self.done, self._rows = done, dict(rows)
        for name, (shape, kind) in self._arrays.items():
            path, final = self._partial(name), self._final(name)
            with _writing(path):
                if not done:
                    final.unlink(missing_ok=True)
                elif not path.exists():
                    final.replace(path)  # `finish` was cut off
                file = self._files[name] = path.open("r+b" if done else "wb")
                described = {"descr": _stored(kind), "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, described)
                file.seek(file.tell() + self._rows[name] * _row_bytes(shape, kind))
                file.truncate()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            # Rows count once `commit` has them on disk. On a full one closing fails as well, and
            # that must not hide what was said about it.
            with suppress(OSError):
                file.close()

    def add(self, name: str, rows: np.ndarray) -> None:
        """Appends rows to an array.

        Raises:
          UserError: the disk is full or fails.
        """
        rows = np.ascontiguousarray(rows, self._arrays[name][1])
        with _writing(self._partial(name)):
            self._files[name].write(rows.view(np.uint8).data)
        self._rows[name] += len(rows)

    def commit(self, done: int, every: float | None = None) -> None:
        """Notes that all rows of the first `done` items are written, every few seconds."""
        if time.monotonic() - self._committed < (COMMIT if every is None else every):
            return
        for name, file in self._files.items():
            with _writing(self._partial(name)):
                file.flush()
                os.fsync(file.fileno())
        progressed = {"done": done, "rows": self._rows}
        record = {"version": VERSION, "made_of": self._made_of} | progressed
        with files.whole(self.folder / PARTIAL) as file:
            file.write(json.dumps(record).encode())
        self._committed = time.monotonic()
        self.done = done

    def finish(self, done: int) -> None:
        """Makes a bank of the rows of all `done` items; the record comes last."""
        short = {n: (self._rows[n], a[0][0]) for n, a in self._arrays.items()}
        if any(have != want for have, want in short.values()):
            raise ValueError(f"rows written and wanted differ: {short}")
        self.commit(done, every=0.0)
        for name, file in self._files.items():
            with _writing(self._final(name)):
                file.close()
                self._partial(name).replace(self._final(name))
        with files.whole(self.folder / RECORD) as file:
            file.write(json.dumps({"version": VERSION} | self._made_of, indent=2).encode())
        (self.folder / PARTIAL).unlink()

    def _cut_off(self) -> int:
        """Bytes there now that `start` gives back to the disk."""
        most = {n: self._rows[n] * _row_bytes(*a) for n, a in self._arrays.items() if self.done}
        places = [(n, p) for n in self._arrays for p in (self._partial(n), self._final(n))]
        return sum(max(p.stat().st_size - most.get(n, 0), 0) for n, p in places if p.is_file())

    def _final(self, name: str) -> Path:
        return self.folder / f"{name}.npy"

    def _partial(self, name: str) -> Path:
        return self.folder / f"{name}.npy.part"

    def _long_enough(self, recorded: dict[str, Any]) -> bool:
        """Whether the files hold all rows that `part.json` vouches for."""
        if set(recorded.get("rows", ())) != set(self._arrays):
            return False
        for name, (shape, kind) in self._arrays.items():
            path, rows = self._partial(name), recorded["rows"][name]
            if rows == shape[0] and not path.is_file():
                path = self._final(name)  # `finish` was cut off
            if not path.is_file() or path.stat().st_size < rows * _row_bytes(shape, kind):
                return False
        return True


class Store:
    """References on disk, read row by row with plain reads, which other threads need not wait for.

    They lie in the folder of a bank, whose `bank.json` says their version; `load` has checked it.

    Args:
      rows: the memory-mapped array that `load` gave.
    """

    def __init__(self, rows: Any):
        self._path, self._offset, self.shape = str(rows.filename), rows.offset, rows.shape
        self._bytes = rows.dtype.itemsize * int(np.prod(self.shape[1:]))
        self._file = os.open(self._path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)

    def read(self, rows: Sequence[int] | np.ndarray, pool: Executor) -> np.ndarray:
        """bfloat16 [b, R, C].

        Raises:
          UserError: the file has become shorter.
        """
        out = np.empty((len(rows), *self.shape[1:]), np.uint16)

        def one(at: int) -> int:
            place = self._offset + int(rows[at]) * self._bytes
            count = os.preadv(self._file, [out[at].reshape(-1).view(np.uint8)], place)
            return count - self._bytes

        if any(pool.map(one, range(len(rows)))):
            raise UserError(f"{self._path} is damaged (it ends too early); delete its folder")
        return out.view(ml_dtypes.bfloat16)


def _unfit(folder: str | Path, error: OSError) -> UserError:
    return UserError(
        f"the bank cannot be in {folder} ({error.strerror or error}); set loss.bank_path to a "
        "folder that can be written"
    )


def _damaged(folder: Path, error: Exception) -> UserError:
    return UserError(f"the bank in {folder} is damaged ({error}); delete it")


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise files.full(path, error) from None


def _partial_record(path: Path) -> dict[str, Any]:
    """What `part.json` holds; {} where there is none, or a damaged one: the build begins anew."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _stored(kind: Any) -> str:
    return "<u2" if np.dtype(kind) == ml_dtypes.bfloat16 else np.dtype(kind).str


def _row_bytes(shape: tuple[int, ...], kind: Any) -> int:
    return int(np.prod(shape[1:])) * np.dtype(kind).itemsize
