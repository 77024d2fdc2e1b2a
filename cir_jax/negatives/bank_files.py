# SPDX-License-Identifier: Apache-2.0
"""A bank on disk: written batch by batch, taken up again after an interruption, never half read.

    targets.npy      float32 [N, K, D]
    references.npy   float32 [M, R, C], or the bits of bfloat16 as uint16, or not there
    bank.json        what they were made of; written last, so without it there is no bank

While it grows, the arrays are called `.npy.part` and `part.json` says how much of them is certainly
on disk and of what it is made. A row of BLIP's references is 887 KB: no process holds all of them.
"""

import json
import os
import shutil
import time
import uuid
import weakref
from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from jax.experimental import multihost_utils

from cir_jax.errors import UserError
from cir_jax.negatives.references import gigabytes
from cir_jax.runtime import files

RECORD = "bank.json"
PARTIAL = "part.json"
COMMIT = 30.0  # seconds between two moments at which what was written is made certain


def load(folder: str | Path, made_of: dict[str, str]) -> dict[str, np.ndarray] | None:
    """The arrays in `folder`, memory-mapped; None if there is no bank.

    Raises:
      UserError: the bank there was made of something else, and the message says what differs; or
        one of its files is damaged.
    """
    folder = Path(folder)
    if not (folder / RECORD).is_file():
        return None
    names = ["targets", *(["references"] if "references" in made_of else [])]
    try:
        then = json.loads((folder / RECORD).read_text())
        differ = [part for part in made_of | then if made_of.get(part) != then.get(part)]
        rows = {
            name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names if not differ
        }
    except (OSError, ValueError, EOFError, TypeError) as error:
        raise UserError(f"the bank in {folder} is damaged ({error}); delete it") from None
    if differ:
        details = "; ".join(
            f"{part}: {str(then.get(part))[:40]} there, {str(made_of.get(part))[:40]} now"
            for part in differ
        )
        raise UserError(
            f"the bank in {folder} was made of other {', '.join(differ)} ({details}); delete it, "
            "or set loss.bank_path to another folder"
        )
    return rows


def writes(folder: str | Path) -> bool:
    """Whether this process writes `folder`: the first of those that see the same one.

    Hosts may share the folder or have one each by the same path, so each process leaves a file of
    its own there and looks whose it finds.
    """
    if jax.process_count() == 1:
        return True
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    mine = jax.process_index()
    code = np.frombuffer(uuid.uuid4().bytes[:4], np.int32)
    code = int(multihost_utils.broadcast_one_to_all(code)[0]) & 0xFFFFFFFF
    marks = [folder / f".{code:08x}-{i}" for i in range(jax.process_count())]
    marks[mine].touch()
    multihost_utils.sync_global_devices(f"bank marks {code}")
    first = next(i for i, mark in enumerate(marks) if mark.exists())
    multihost_utils.sync_global_devices(f"bank marks seen {code}")
    marks[mine].unlink()
    return first == mine


class Writer:
    """Arrays whose rows come one batch after the other. Use it in a `with`; then `finish`.

    Args:
      folder: of the bank; made if need be.
      arrays: name -> (shape, dtype) of the whole array.
      made_of: as in `load`.

    Attributes:
      done: items, as `commit` counted them, whose rows are there from before.
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
        then = _record(self.folder / PARTIAL)
        if then.get("made_of") == made_of and self._long_enough(then):
            self.done, self._rows = then["done"], then["rows"]

    def missing(self) -> int:
        """Bytes that are still to be written."""
        return sum(
            (shape[0] - self._rows[name]) * _row_bytes(shape, kind)
            for name, (shape, kind) in self._arrays.items()
        )

    def lacks_room(self) -> str:
        """What to say if the disk is too small for what is missing; "" if it is not."""
        self.folder.mkdir(parents=True, exist_ok=True)
        needed, free = self.missing(), shutil.disk_usage(self.folder).free
        if needed <= free:
            return ""
        return (
            f"the bank needs {gigabytes(needed)} in {self.folder}, and {gigabytes(free)} are free "
            "there; make room, set loss.bank_path to a folder on a larger disk, or set "
            "loss.references=recompute"
        )

    def start(self, done: int, rows: dict[str, int]) -> None:
        """Opens the files behind the rows of the first `done` items; what follows is cut off."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if done < self.done:
            (self.folder / PARTIAL).unlink()
        self.done, self._rows = done, dict(rows)
        for name, (shape, kind) in self._arrays.items():
            path = self._partial(name)
            file = self._files[name] = path.open("r+b" if done else "wb")
            described = {"descr": _stored(kind), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, described)
            file.seek(file.tell() + self._rows[name] * _row_bytes(shape, kind))
            file.truncate()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()

    def add(self, name: str, rows: np.ndarray) -> None:
        """Appends rows to an array.

        Raises:
          UserError: the disk is full or fails.
        """
        rows = np.ascontiguousarray(rows, self._arrays[name][1])
        try:
            self._files[name].write(rows.view(np.uint8).data)
        except OSError as error:
            raise files.full(self._partial(name), error) from None
        self._rows[name] += len(rows)

    def commit(self, done: int, every: float | None = None) -> None:
        """Notes that all rows of the first `done` items are written, every few seconds."""
        if time.monotonic() - self._committed < (COMMIT if every is None else every):
            return
        for name, file in self._files.items():
            try:
                file.flush()
                os.fsync(file.fileno())
            except OSError as error:
                raise files.full(self._partial(name), error) from None
        record = {"made_of": self._made_of, "done": done, "rows": self._rows}
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
            file.close()
            self._partial(name).replace(self.folder / f"{name}.npy")
        with files.whole(self.folder / RECORD) as file:
            file.write(json.dumps(self._made_of, indent=2).encode())
        (self.folder / PARTIAL).unlink()

    def _partial(self, name: str) -> Path:
        return self.folder / f"{name}.npy.part"

    def _long_enough(self, then: dict[str, Any]) -> bool:
        if set(then.get("rows", ())) != set(self._arrays):
            return False
        for name, (shape, kind) in self._arrays.items():
            path = self._partial(name)
            if not path.is_file() or path.stat().st_size < then["rows"][name] * _row_bytes(
                shape, kind
            ):
                return False
        return True


class Store:
    """References on disk, read row by row with plain reads, which other threads need not wait for.

    Args:
      rows: the array that `load` gave.
    """

    def __init__(self, rows: np.memmap):
        self._path, self._offset, self.shape = rows.filename, rows.offset, rows.shape
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
            found = os.preadv(self._file, [out[at].reshape(-1).view(np.uint8)], place)
            return found - self._bytes

        if any(pool.map(one, range(len(rows)))):
            raise UserError(f"{self._path} is damaged (it ends too early); delete its folder")
        return out.view(ml_dtypes.bfloat16)


def _record(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _stored(kind: Any) -> str:
    return "<u2" if np.dtype(kind) == ml_dtypes.bfloat16 else np.dtype(kind).str


def _row_bytes(shape: tuple[int, ...], kind: Any) -> int:
    return int(np.prod(shape[1:])) * np.dtype(kind).itemsize
