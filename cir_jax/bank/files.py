# SPDX-License-Identifier: Apache-2.0
"""A bank on disk: written batch by batch, taken up again after an interruption, never half read.

    targets.npy      float32 [N, K, D]
    references.npy   float32 [M, R, C], or the bits of bfloat16 as uint16, or not there
    targets.sums     checksums of blocks of their rows, see `sums`; likewise references.sums
    bank.json        what they were made of, and the version of this format; written last, so
                     without it there is no bank
    .lock            held by the run that builds

While it grows, arrays and sums are called `.part` and `part.json` says how much of them is
certainly on disk and of what it is made. A row of BLIP's references is 887 KB: no process holds all
of them. One run at a time builds in a folder, and one of its processes writes there: see `folders`.
"""

import json
import os
import shutil
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from cir_jax import files, progress
from cir_jax.bank import folders, npy
from cir_jax.bank.sums import Growing, Sums
from cir_jax.errors import UserError
from cir_jax.runtime import checksums

VERSION = 2  # of the folder of a bank, its references included; version 1 had no checksums
RECORD = "bank.json"
PARTIAL = "part.json"
# What a record raises that is JSON of another structure: its own checksum is no secret.
_ODD = (AttributeError, KeyError, TypeError, OverflowError, ZeroDivisionError, RecursionError)
COMMIT = 30.0  # seconds between two moments at which what was written is made certain

Arrays = Mapping[str, tuple[tuple[int, ...], Any]]  # name -> (shape, dtype)


def load(
    folder: str | Path, made_of: dict[str, str], arrays: Arrays | None = None
) -> dict[str, np.ndarray] | None:
    """The arrays in `folder`, memory-mapped; None if there is no bank. Their rows: `check`.

    Args:
      folder: of the bank.
      made_of: part -> fingerprint, of all that its rows depend on.
      arrays: name -> (shape, dtype) that they must have; None for any.

    Raises:
      UserError: the bank there was made of something else, and the message says what differs; or
        one of its files is damaged, or of a newer version than this code reads.
    """
    folder = Path(folder)
    if not (folder / RECORD).is_file():
        return None
    recorded = _record(folder)
    recorded.pop("version", None)
    summed = recorded.pop("checksums", {})
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
    with _reading(folder):
        return {
            name: npy.mapped(
                folder / f"{name}.npy", (arrays or {}).get(name), summed.get(name, {}).get("header")
            )
            for name in names
        }


def sums_of(rows: Any) -> Sums | None:
    """The checksums of an array that `load` gave; None for a bank of before there were any.

    Raises:
      UserError: they are damaged, or cannot be read.
    """
    file = Path(rows.filename)
    record = _record(file.parent).get("checksums", {}).get(file.stem)
    if record is None:
        return None
    with _reading(file.parent):
        return Sums.read(file.with_suffix(".sums"), rows, record)


def check(rows: Any, spans: Sequence[tuple[int, int]]) -> bool:
    """Checks rows of an array that `load` gave; False for a bank of before there were checksums.

    Args:
      rows: the array.
      spans: (first, behind the last) of the rows that are about to be used.

    Raises:
      UserError: a row is not what was written, or cannot be read.
    """
    found = sums_of(rows)
    if found is None:
        return False
    size = rows.nbytes // max(len(rows), 1)
    with _reading(found.file.parent):
        found.check(((start * size, stop * size) for start, stop in spans), rows)
    return True


class Writer:
    """Arrays whose rows come one batch after the other. Use it in a `with`; then `finish`.

    Args:
      folder: of the bank, made if need be; nobody else writes it, see `folders.lock`.
      arrays: name -> (shape, dtype) of the whole array.
      made_of: as in `load`.

    Attributes:
      done: items, as `commit` counted them, whose rows are there from before.

    Raises:
      UserError: a newer version than this code writes has begun a bank there.
    """

    def __init__(self, folder: str | Path, arrays: Arrays, made_of: dict[str, str]):
        self.folder = Path(folder)
        self._arrays = arrays
        self._made_of = made_of
        self._files: dict[str, Any] = {}
        self._sums = {
            name: Growing(self._part(self._sums_file(name)), npy.row_bytes(*array))
            for name, array in arrays.items()
        }
        self._tails: dict[str, str] = {}
        self._rows = dict.fromkeys(arrays, 0)
        self._committed = time.monotonic()
        self.done = 0
        recorded = _partial_record(self.folder / PARTIAL)
        files.check_version(recorded, VERSION, f"the bank that was begun in {self.folder}")
        if recorded.get("made_of") == made_of and self._long_enough(recorded):
            self.done, self._rows = recorded["done"], recorded["rows"]
            self._tails = recorded.get("tails", {})

    def missing(self) -> int:
        """Bytes that are still to be written."""
        return sum(
            (shape[0] - self._rows[name]) * npy.row_bytes(shape, kind)
            for name, (shape, kind) in self._arrays.items()
        )

    def lacks_room(self) -> str:
        """What to say if the disk is too small for what is missing; "" if it is not."""
        folders.make(self.folder)
        needed, free = self.missing(), shutil.disk_usage(self.folder).free + self._cut_off()
        if needed <= free:
            return ""
        return (
            f"the bank needs {files.gigabytes(needed)} in {self.folder}, and "
            f"{files.gigabytes(free)} are free there; make room, set loss.bank_path to a folder on "
            "a larger disk, or set loss.references=recompute"
        )

    def start(self, done: int, rows: dict[str, int]) -> int:
        """Opens the files behind the rows of the first `done` items; what follows is cut off.

        Returns:
          `done`, or 0 if the rows that are there are not those that were written.

        Raises:
          UserError: they cannot be written.
        """
        folders.make(self.folder)
        tails = self._tails if rows == self._rows else {}
        if done < self.done or not done:
            # Whoever made the record: it would vouch for rows that are about to be others.
            (self.folder / PARTIAL).unlink(missing_ok=True)
        self.done, self._rows = done, dict(rows)
        # The record of what was begun may have been made by anybody.
        fitting = all(0 <= rows[name] <= shape[0] for name, (shape, _) in self._arrays.items())
        if not fitting or not all(self._start(name, tails.get(name)) for name in self._arrays):
            progress.say(f"the rows in {self.folder} are damaged: its bank is built anew")
            return self.start(0, dict.fromkeys(rows, 0))
        return done

    def _start(self, name: str, tail: str | None) -> bool:
        shape, kind = self._arrays[name]
        final, sums, done = self._final(name), self._sums_file(name), self.done
        path = self._part(final)
        size = self._rows[name] * npy.row_bytes(shape, kind)
        with _writing(path):
            for one in (final, sums):
                if not done:
                    one.unlink(missing_ok=True)
                elif not self._part(one).exists() and one.exists():
                    one.replace(self._part(one))  # `finish` was cut off
            if name in self._files:
                self._files[name].close()
            file = self._files[name] = path.open("r+b" if done else "w+b")
            offset = npy.write_header(file, shape, kind)
            if not self._sums[name].start(size, file, offset, tail):
                return False
            file.seek(offset + size)
            file.truncate()
        return True

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        for file in (*self._files.values(), *self._sums.values()):
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
        content = rows.reshape(-1).view(np.uint8).data
        with self._writing(name, len(content)):
            self._files[name].write(content)
            self._sums[name].add(content)
        self._rows[name] += len(rows)

    def commit(self, done: int, every: float | None = None) -> None:
        """Notes that all rows of the first `done` items are written, every few seconds."""
        if time.monotonic() - self._committed < (COMMIT if every is None else every):
            return
        for name, file in self._files.items():
            with self._writing(name):
                file.flush()
                os.fsync(file.fileno())
                self._sums[name].flush()
        tails = {name: sums.tail() for name, sums in self._sums.items()}
        progressed = {"done": done, "rows": self._rows, "tails": tails}
        record = {"version": VERSION, "made_of": self._made_of} | progressed
        files.put(self.folder / PARTIAL, checksums.sealed(record))
        self._committed = time.monotonic()
        self.done = done

    def finish(self, done: int) -> None:
        """Makes a bank of the rows of all `done` items; the record comes last."""
        short = {n: (self._rows[n], a[0][0]) for n, a in self._arrays.items()}
        if any(have != want for have, want in short.values()):
            raise ValueError(f"rows written and wanted differ: {short}")
        self.commit(done, every=0.0)
        summed = {}
        for name, file in self._files.items():
            with self._writing(name):
                header = npy.header_checksum(file)
                file.close()
                summed[name] = self._sums[name].finish() | {"header": header}
                for one in (self._final(name), self._sums_file(name)):
                    self._part(one).replace(one)
        record = {"version": VERSION, **self._made_of, "checksums": summed}
        files.put(self.folder / RECORD, checksums.sealed(record))
        (self.folder / PARTIAL).unlink()

    def _cut_off(self) -> int:
        """Bytes there now that `start` gives back to the disk."""
        most = {n: self._rows[n] * npy.row_bytes(*a) for n, a in self._arrays.items() if self.done}
        finals = [(n, self._final(n)) for n in self._arrays]
        places = [(n, p) for n, final in finals for p in (self._part(final), final)]
        return sum(max(p.stat().st_size - most.get(n, 0), 0) for n, p in places if p.is_file())

    def _final(self, name: str) -> Path:
        return self.folder / f"{name}.npy"

    def _sums_file(self, name: str) -> Path:
        return self.folder / f"{name}.sums"

    def _part(self, final: Path) -> Path:
        return final.with_name(f"{final.name}.part")

    def _writing(self, name: str, need: int = 0) -> AbstractContextManager[None]:
        """Says how much is still to be written if there is no room for it."""
        return _writing(self._part(self._final(name)), self.missing() or need)

    def _long_enough(self, recorded: dict[str, Any]) -> bool:
        """Whether the files hold all rows that `part.json` vouches for."""
        counted, tails = recorded.get("rows"), recorded.get("tails", {})
        if not isinstance(counted, dict) or set(counted) != set(self._arrays):
            return False
        numbers = (recorded.get("done"), *counted.values())
        if not all(type(n) is int and n >= 0 for n in numbers) or not isinstance(tails, dict):
            return False
        for name, (shape, kind) in self._arrays.items():
            path, rows = self._part(self._final(name)), recorded["rows"][name]
            if rows == shape[0] and not path.is_file():
                path = self._final(name)  # `finish` was cut off
            if not path.is_file() or path.stat().st_size < rows * npy.row_bytes(shape, kind):
                return False
        return True


class Store:
    """References on disk, read row by row with plain reads, which other threads need not wait for.

    They lie in the folder of a bank, whose `bank.json` says their version; `load` has checked it.
    A block of rows is checked when the first of them is read.

    Args:
      rows: the memory-mapped array that `load` gave.
    """

    def __init__(self, rows: Any):
        self._path, self._offset, self.shape = str(rows.filename), rows.offset, rows.shape
        self._bytes = rows.dtype.itemsize * int(np.prod(self.shape[1:]))
        self._sums = sums_of(rows)
        self._file = os.open(self._path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)

    def read(self, rows: Sequence[int] | np.ndarray, pool: Executor) -> np.ndarray:
        """bfloat16 [b, R, C].

        Raises:
          UserError: the file has become shorter, or a row is not what was written.
        """
        out = np.empty((len(rows), *self.shape[1:]), np.uint16)

        def one(at: int) -> bool:
            content = out[at].reshape(-1).view(np.uint8)
            place = int(rows[at]) * self._bytes
            count = os.preadv(self._file, [content], self._offset + place)
            if count == self._bytes:
                self._check(place, memoryview(content))
            return count == self._bytes

        if not all(pool.map(one, range(len(rows)))):
            raise UserError(f"{self._path} is damaged (it ends too early); delete its folder")
        return out.view(ml_dtypes.bfloat16)

    def _check(self, place: int, row: memoryview) -> None:
        """Checks the block of a row before its first use: `row` itself, where that is all of it."""
        sums = self._sums
        if sums is None or sums.seen[place // sums.block]:
            return
        folder = Path(self._path).parent
        with _reading(folder):
            if sums.block == self._bytes:
                sums.compare(place // sums.block, row)
            else:
                sums.check([(place, place + self._bytes)])


def _damaged(folder: Path, error: Exception) -> UserError:
    return UserError(f"the bank in {folder} is damaged ({error}); delete it")


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Tells what is damaged from what cannot be read at the moment."""
    try:
        yield
    except (checksums.Damaged, FileNotFoundError) as error:
        raise _damaged(folder, error) from None
    except UserError:
        raise
    except (*npy.UNREADABLE, *_ODD) as error:
        raise _damaged(folder, error) from None
    except OSError as error:
        raise UserError(
            f"the bank in {folder} could not be read ({error}); if the storage was away for a "
            "moment, give the same command again"
        ) from None


@contextmanager
def _writing(path: Path, need: int = 0) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise files.full(path, error, need) from None


def _record(folder: Path) -> dict[str, Any]:
    """What `bank.json` holds.

    Raises:
      UserError: it is damaged, cannot be read, or is of a newer version than this code reads.
    """
    with _reading(folder):
        text = (folder / RECORD).read_bytes()
        content = dict(json.loads(text))
        if checksums.OWN in content or content.get("version", 1) != 1:  # version 1 had none
            content = checksums.opened(text, RECORD)
    files.check_version(content, VERSION, f"the bank in {folder}")
    return content


def _partial_record(path: Path) -> dict[str, Any]:
    """What `part.json` holds; {} where there is none, or a damaged one: the build begins anew."""
    try:
        content = dict(json.loads(path.read_bytes()))
        if checksums.OWN in content:
            content = checksums.opened(path.read_bytes(), PARTIAL)
        if content.get("version", 1) not in range(1, VERSION + 1):
            return content  # of which the caller says so
        rows, tails = dict(content["rows"]), dict(content.get("tails", {}))
        counts = (content["done"], *rows.values())
        if not all(type(n) is int and n >= 0 for n in counts) or not all(
            isinstance(tail, str) for tail in tails.values()
        ):
            raise ValueError("it counts no rows")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        progress.say(f"{path} is damaged ({error}): the bank that was begun there is built anew")
        return {}
    return content
