# SPDX-License-Identifier: Apache-2.0
"""Checksums of the rows of a bank, block by block, so that a part of a file can be checked alone.

    targets.sums    uint64, little-endian: XXH3 of each block of rows of targets.npy, in their order

A block is about 64 KB of whole rows, or one row that is longer. While a bank grows its sums grow
with it, of what was computed and not of what the disk gives back.
"""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import xxhash

from cir_jax.runtime.checksums import Damaged

_BLOCK = 1 << 16  # bytes
_THREADS = 8  # that check
_TOGETHER = 16  # blocks that one of them reads at a time


def rows_of_block(row_bytes: int) -> int:
    """Rows whose checksum is taken together."""
    return max(1, _BLOCK // max(row_bytes, 1))


class Growing:
    """The sums of rows that are appended to a file.

    Args:
      path: of the file of sums.
      row_bytes: of a row.
    """

    def __init__(self, path: Path, row_bytes: int):
        self._path, self._bytes = path, rows_of_block(row_bytes) * row_bytes
        self._file: BinaryIO | None = None
        self._digest, self._filled = xxhash.xxh3_64(), 0

    def start(self, size: int, rows: BinaryIO, offset: int, tail: str | None) -> bool:
        """Goes on behind the first `size` bytes of rows.

        Args:
          size: of the rows that are there.
          rows: their file, open for reading.
          offset: where they begin in it.
          tail: `tail()` as it was noted behind them; None where it was not, for rows that were
            cut off within a block, or were made before there were sums.

        Returns:
          False if the rows at hand are not those that were added: nothing is started then.
        """
        whole, rest = divmod(size, self._bytes)
        content = os.pread(rows.fileno(), rest, offset + whole * self._bytes)
        digest = xxhash.xxh3_64(content)
        if len(content) < rest or (tail is not None and digest.hexdigest() != tail):
            return False
        self._digest, self._filled = digest, rest
        there = self._path.is_file() and self._path.stat().st_size >= 8 * whole
        self.close()
        self._file = self._path.open("r+b" if there else "w+b")
        if not there:  # made before there were sums
            for block in range(whole):
                self._file.write(self._read(rows, offset, block).to_bytes(8, "little"))
        self._file.seek(8 * whole)
        self._file.truncate()
        return True

    def add(self, content: memoryview) -> None:
        """Takes the bytes of more rows."""
        assert self._file is not None
        while len(content):
            part = content[: self._bytes - self._filled]
            self._digest.update(part)
            self._filled += len(part)
            content = content[len(part) :]
            if self._filled == self._bytes:
                self._file.write(self._digest.intdigest().to_bytes(8, "little"))
                self._digest, self._filled = xxhash.xxh3_64(), 0

    def tail(self) -> str:
        """The checksum of the rows of the last block, which is not full."""
        return self._digest.hexdigest()

    def flush(self) -> None:
        """Makes certain what was written."""
        assert self._file is not None
        self._file.flush()
        os.fsync(self._file.fileno())

    def finish(self) -> dict[str, Any]:
        """Writes the sum of the last block; what `Sums` takes as its record."""
        assert self._file is not None
        if self._filled:
            self._file.write(self._digest.intdigest().to_bytes(8, "little"))
        self.flush()
        self._file.close()
        return {"block": self._bytes, "sums": xxhash.xxh3_128_hexdigest(self._path.read_bytes())}

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()

    def _read(self, rows: BinaryIO, offset: int, block: int) -> int:
        return xxhash.xxh3_64_intdigest(
            os.pread(rows.fileno(), self._bytes, offset + block * self._bytes)
        )


@dataclass(frozen=True)
class Sums:
    """The sums of a file of rows, which a bank has finished.

    Attributes:
      file: of the rows.
      offset: bytes before the first row.
      size: bytes of all rows.
      block: bytes of a block.
      sums: uint64 [blocks].
      seen: bool [blocks], those that were checked.
    """

    file: Path
    offset: int
    size: int
    block: int
    sums: np.ndarray
    seen: np.ndarray

    @classmethod
    def read(cls, path: Path, rows: Any, record: dict[str, Any]) -> "Sums":
        """The sums in `path`.

        Args:
          path: of the file of sums.
          rows: the memory-mapped array of rows.
          record: as `Growing.finish` gave it.

        Raises:
          Damaged: they are missing, or not what was written.
          OSError: they cannot be read.
        """
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise Damaged(f"{path.name} is missing") from None
        if xxhash.xxh3_128_hexdigest(content) != record["sums"]:
            raise Damaged(f"{path.name} is not what was written")
        found = np.frombuffer(content, "<u8")
        if len(found) != -(-rows.nbytes // record["block"]):
            raise Damaged(
                f"{Path(rows.filename).name} has {len(rows):,} rows, and others were written"
            )
        seen = np.zeros(len(found), bool)
        file = Path(rows.filename)
        return cls(file, rows.offset, rows.nbytes, record["block"], found, seen)

    def check(self, spans: Iterable[tuple[int, int]], rows: Any = None) -> None:
        """Checks the blocks that hold these spans of bytes [start, stop), once each.

        Args:
          spans: of the rows.
          rows: the memory-mapped array, if it is read next: then nothing is read twice. None reads
            the file, which may have become shorter; a process does not outlive that in a mapping.

        Raises:
          Damaged: one is not what was written.
          OSError: one cannot be read.
        """
        wanted = np.zeros(len(self.sums), bool)
        for start, stop in spans:
            wanted[start // self.block : -(-stop // self.block)] = True
        todo = np.flatnonzero(wanted & ~self.seen)
        parts = np.split(todo, np.flatnonzero(np.diff(todo) > 1) + 1) if len(todo) else []
        together = [
            (int(part[i]), int(part[min(i + _TOGETHER, len(part)) - 1]) + 1)
            for part in parts
            for i in range(0, len(part), _TOGETHER)
        ]
        if not together:
            return
        mapped = None if rows is None else memoryview(rows.reshape(-1).view(np.uint8))
        with self.file.open("rb", buffering=0) as file, ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(lambda span: self._check(file.fileno(), span, mapped), together))

    def _check(self, file: int, span: tuple[int, int], mapped: memoryview | None) -> None:
        start, stop = span[0] * self.block, min(span[1] * self.block, self.size)
        if mapped is None:
            mapped = memoryview(os.pread(file, stop - start, self.offset + start))
        else:
            mapped = mapped[start:stop]
        for block in range(*span):
            self.compare(block, mapped[block * self.block - start :][: self.block])

    def compare(self, block: int, content: memoryview) -> None:
        """Checks a block that was read; its checksum fails where it was read short.

        Raises:
          Damaged: it is not what was written.
        """
        if xxhash.xxh3_64_intdigest(content) != int(self.sums[block]):
            stop = min((block + 1) * self.block, self.size)
            raise Damaged(
                f"bytes {block * self.block:,} to {stop:,} of its rows in {self.file.name} fail "
                "their checksum"
            )
        self.seen[block] = True
