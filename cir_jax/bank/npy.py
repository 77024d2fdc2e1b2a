# SPDX-License-Identifier: Apache-2.0
"""The .npy files of a bank: numpy's header, checked before it is believed, and rows behind it."""

import math
import tokenize
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
import xxhash

# What numpy raises for an array that is cut off, or whose header is damaged.
UNREADABLE = (ValueError, EOFError, SyntaxError, TypeError, tokenize.TokenError)


def row_bytes(shape: tuple[int, ...], kind: Any) -> int:
    """Bytes of one row of an array of this shape and dtype."""
    return math.prod(shape[1:]) * np.dtype(kind).itemsize


def write_header(file: BinaryIO, shape: tuple[int, ...], kind: Any) -> int:
    """Writes the header to the start of a file; its length."""
    described = {"descr": _stored(kind), "fortran_order": False, "shape": shape}
    file.seek(0)
    np.lib.format.write_array_header_1_0(file, described)
    file.flush()
    return file.tell()


def header_checksum(file: BinaryIO) -> str:
    """The checksum of the header at the start of a file."""
    file.seek(0)
    start = file.read(10)  # of version 1.0: the length of what follows is in the last two bytes
    return xxhash.xxh3_128_hexdigest(start + file.read(int.from_bytes(start[8:10], "little")))


def mapped(file: Path, wanted: Any = None, header: str | None = None) -> np.ndarray:
    """A memory-mapped array.

    Args:
      file: of the array.
      wanted: (shape, dtype) that it must have; None for any.
      header: the checksum of its header; None for an array of before there were any.

    Raises:
      ValueError: it is something else; and all of UNREADABLE.
      OSError: it cannot be read.
    """
    if header is not None:
        with file.open("rb") as opened:
            if header_checksum(opened) != header:
                raise ValueError(f"the header of {file.name} is not what was written")
    rows = np.load(file, mmap_mode="r")
    if wanted is not None:
        shape, kind = wanted
        if rows.shape != tuple(shape) or rows.dtype.str != _stored(kind):
            raise ValueError(
                f"{file.name} says that it holds {rows.dtype} {list(rows.shape)}, and "
                f"{np.dtype(_stored(kind))} {list(shape)} were written"
            )
    return rows


def _stored(kind: Any) -> str:
    """bfloat16 is unknown to numpy: its bits are kept."""
    return "<u2" if np.dtype(kind) == ml_dtypes.bfloat16 else np.dtype(kind).str
