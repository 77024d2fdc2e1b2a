# SPDX-License-Identifier: Apache-2.0
"""Segments: files that rows are appended to once, and that never change afterwards.

    segments/S/rows.npy    [n, K, D] float32, float16 or int8
    segments/S/rows.sums   checksums of blocks of its rows, see `cir_jax.bank.sums`
    segments/S/scales.npy, scales.sums   float32 [n, K] of int8

While a segment grows its files are called `.part`. Checksums are of what was computed, not of what
the disk gives back.
"""

import math
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from cir_jax import files
from cir_jax.bank import npy
from cir_jax.bank.sums import Growing, Sums
from cir_jax.retrieval.index import quantized, records
from cir_jax.runtime.checksums import Damaged

SEGMENT_BYTES = 1 << 30  # of a full segment
_THREADS = 8  # that check
_TOGETHER = 256  # blocks that one of them checks at a time


@dataclass(frozen=True, eq=False)
class Segment:
    """Rows of an index, memory-mapped; those that the catalogue does not name are dead.

    Attributes:
      number: of the segment.
      rows: [n, K, D] in the type of the index.
      scales: float32 [n, K] of int8, else None.
    """

    number: int
    rows: NDArray[Any]
    scales: NDArray[np.float32] | None = None

    def take(self, at: NDArray[np.int64]) -> NDArray[np.float32]:
        """float32 [m, K, D] of some images."""
        return quantized.restored(*self.kept(at))

    def kept(self, at: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
        """(rows [m, K, D], scales [m, K] or None) of some images, as they are kept."""
        return self.rows[at], None if self.scales is None else self.scales[at]


def shapes(dtype: str, rows_per_image: int, embedding: int) -> dict[str, tuple[tuple, str]]:
    """Name -> (shape of one image, type) of the arrays of a segment."""
    found: dict[str, tuple[tuple, str]] = {"rows": ((rows_per_image, embedding), dtype)}
    if dtype == "int8":
        found["scales"] = ((rows_per_image,), "float32")
    return found


def folder_of(folder: str | Path, number: int) -> Path:
    """The folder of a segment."""
    return Path(folder) / records.SEGMENTS / str(number)


def opened(
    folder: str | Path, number: int, entry: dict[str, Any], arrays: dict[str, tuple[tuple, str]]
) -> Segment:
    """A segment.

    Args:
      folder: of the index.
      number: of the segment.
      entry: what `Writer.finish` gave.
      arrays: see `shapes`.

    Raises:
      Damaged: a file is missing, or its header is not what was written.
      OSError: it cannot be read.
    """
    found = {}
    for name, (shape, kind) in arrays.items():
        path = folder_of(folder, number) / f"{name}.npy"
        try:
            wanted = (entry["rows"], *shape), np.dtype(kind)
            found[name] = npy.mapped(path, wanted, entry["arrays"][name]["header"])
        except FileNotFoundError:
            raise Damaged(f"{path} is missing") from None
        except npy.UNREADABLE as error:
            raise Damaged(f"{path}: {error}") from None
    return Segment(number, found["rows"], found.get("scales"))


def damaged_rows(folder: str | Path, segment: Segment, entry: dict[str, Any]) -> np.ndarray:
    """bool [n]: the rows of a segment that are not what was written.

    Every byte is read once, 0.1 s per GB where it is in memory already.

    Raises:
      OSError: a file cannot be read.
    """
    bad = np.zeros(len(segment.rows), bool)
    for name, array in (("rows", segment.rows), ("scales", segment.scales)):
        if array is None or not len(array):
            continue
        path = folder_of(folder, segment.number) / f"{name}.sums"
        try:
            sums = Sums.read(path, array, entry["arrays"][name])
        except Damaged:
            bad[:] = True
            continue
        each = array.nbytes // len(array)
        for block in _damaged_blocks(sums, array):
            bad[block * sums.block // each : -(-(block + 1) * sums.block // each)] = True
    return bad


def _damaged_blocks(sums: Sums, array: NDArray[Any]) -> list[int]:
    content = memoryview(array.reshape(-1).view(np.uint8))  # type: ignore[arg-type]

    def check(start: int) -> list[int]:
        found = []
        for block in range(start, min(start + _TOGETHER, len(sums.sums))):
            try:
                sums.compare(block, content[block * sums.block : (block + 1) * sums.block])
            except Damaged:
                found.append(block)
        return found

    with ThreadPoolExecutor(_THREADS) as pool:
        parts = pool.map(check, range(0, len(sums.sums), _TOGETHER))
        return [block for part in parts for block in part]


class _Array:
    """One array of a segment that grows."""

    def __init__(self, path: Path, shape: tuple, kind: str):
        self.path, self._shape, self._kind = path, shape, kind
        self._part = path.with_name(f"{path.name}.part")
        self._sums_path = path.with_suffix(".sums")
        self._sums_part = path.with_name(f"{path.stem}.sums.part")
        self.row_bytes = math.prod(shape) * np.dtype(kind).itemsize
        self._sums = Growing(self._sums_part, self.row_bytes)
        self._file: BinaryIO | None = None

    def start(self, done: int, tail: str | None) -> bool:
        """Goes on behind `done` rows; False if these are not those that were added."""
        for final, part in ((self.path, self._part), (self._sums_path, self._sums_part)):
            if done and not part.exists() and final.exists():
                final.replace(part)  # `finish` was cut off
        if done and not self._part.exists():
            return False
        file = self._file = self._part.open("r+b" if done else "w+b")
        offset = npy.write_header(file, (0, *self._shape), self._kind)
        if not self._sums.start(done * self.row_bytes, file, offset, tail):
            return False
        file.seek(offset + done * self.row_bytes)
        file.truncate()
        return True

    def add(self, rows: NDArray[Any]) -> None:
        assert self._file is not None
        content = np.ascontiguousarray(rows, self._kind).reshape(-1).view(np.uint8).data
        self._file.write(content)
        self._sums.add(content)

    def flush(self) -> str:
        """Makes certain what was added; the tail that `start` takes."""
        assert self._file is not None
        self._file.flush()
        os.fsync(self._file.fileno())
        self._sums.flush()
        return self._sums.tail()

    def finish(self, rows: int) -> dict[str, Any]:
        assert self._file is not None
        npy.write_header(self._file, (rows, *self._shape), self._kind)
        self._file.flush()
        os.fsync(self._file.fileno())
        header = npy.header_checksum(self._file)
        self._file.close()
        summed = self._sums.finish()
        self._part.replace(self.path)
        self._sums_part.replace(self._sums_path)
        return summed | {"header": header}

    def close(self) -> None:
        with suppress(OSError):  # on a full disk closing fails as well
            if self._file is not None:
                self._file.close()
            self._sums.close()


class Writer:
    """A segment that grows; `close` it, or `finish` it.

    Args:
      folder: of the index.
      number: of the segment.
      dtype, rows_per_image, embedding: of the index.

    Attributes:
      number: see there.
      rows: images that it has.

    Raises:
      UserError: by all methods: the disk is full or fails.
    """

    def __init__(
        self, folder: str | Path, number: int, dtype: str, rows_per_image: int, embedding: int
    ):
        self.number, self.rows, self._dtype = number, 0, dtype
        self._folder = folder_of(folder, number)
        found = shapes(dtype, rows_per_image, embedding)
        self._arrays = {
            name: _Array(self._folder / f"{name}.npy", *array) for name, array in found.items()
        }

    @property
    def row_bytes(self) -> int:
        """Bytes of an image."""
        return sum(array.row_bytes for array in self._arrays.values())

    @property
    def most(self) -> int:
        """Images of a full segment."""
        return max(SEGMENT_BYTES // self.row_bytes, 1)

    def start(self, done: int = 0, tails: dict[str, str] | None = None) -> bool:
        """Goes on behind the first `done` images, whose `tails` `flush` gave.

        Returns:
          False if what is there is not what was added.
        """
        with self._writing():
            self._folder.mkdir(parents=True, exist_ok=True)
            self.rows = done
            return all(a.start(done, (tails or {}).get(name)) for name, a in self._arrays.items())

    def add(self, rows: NDArray[np.float32]) -> None:
        """Appends float32 [n, K, D]."""
        self.add_kept(*quantized.stored(rows, self._dtype))

    def add_kept(self, rows: NDArray[Any], scales: NDArray[np.float32] | None) -> None:
        """Appends rows [n, K, D], and scales [n, K] of int8, as they are kept."""
        with self._writing():
            self._arrays["rows"].add(rows)
            if scales is not None:
                self._arrays["scales"].add(scales)
        self.rows += len(rows)

    def flush(self) -> dict[str, str]:
        """Makes certain what was added; what `start` takes."""
        with self._writing():
            return {name: array.flush() for name, array in self._arrays.items()}

    def finish(self) -> dict[str, Any]:
        """Closes the segment; its entry in the record of a generation."""
        with self._writing():
            found = {name: array.finish(self.rows) for name, array in self._arrays.items()}
        return {"rows": self.rows, "arrays": found}

    def close(self) -> None:
        """Closes the files as they are."""
        for array in self._arrays.values():
            array.close()

    def _writing(self) -> "_Writing":
        return _Writing(self._folder)


class _Writing:
    """Whatever the system says in this `with` becomes an error that names the folder."""

    def __init__(self, folder: Path):
        self._folder = folder

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, OSError):
            raise files.full(self._folder, error) from None
