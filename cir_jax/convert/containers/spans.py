# SPDX-License-Identifier: Apache-2.0
"""Values on their way between a weight file and memory, of one tensor at a time."""

import math
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from cir_jax.convert.containers import file_kinds
from cir_jax.convert.containers.tensors import DTYPES, Tensor
from cir_jax.errors import UserError

_ALIGNMENT = 64  # bytes, of the buffers of XLA


@dataclass(frozen=True)
class Span:
    """Neighbouring values of a file; opens it each time.

    Attributes:
      path: of the file.
      start: its byte at which the first value starts.
      count: values.
      dtype: a key of DTYPES; the bytes are little-endian.
    """

    path: str | os.PathLike
    start: int
    count: int
    dtype: str

    def read(self) -> np.ndarray:
        """[count] all values.

        Raises:
          UserError: the file is gone, or shorter than it was when its header was read.
        """
        found = empty((self.count,), DTYPES[self.dtype])
        file_kinds.guarded(self.path, lambda file: self._fill(file, found.view(np.uint8)))
        return found

    def view(self, shape: tuple[int, ...], stride: tuple[int, ...]) -> np.ndarray:
        """[*shape] contiguous; the next value along an axis is `stride` values further."""
        found = self.read()
        if math.prod(shape) == 0:
            return np.empty(shape, found.dtype)
        steps = tuple(step * found.itemsize for step in stride)
        strided = np.lib.stride_tricks.as_strided(found, shape, steps)
        return strided if strided.flags.c_contiguous else strided.copy(order="C")

    def _fill(self, file: Any, into: np.ndarray) -> None:
        file.seek(self.start)
        if file.readinto(into.data) != into.nbytes:
            raise UserError(f"{self.path} has become shorter since it was opened; fetch it again")


def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Like `np.empty`, at a multiple of 64 bytes: there jax uses an array of the host in place.

    Anywhere else it copies what goes to a CPU, and a model that is loaded would be held twice.
    """
    size = math.prod(shape) * dtype.itemsize
    held = np.empty(size + _ALIGNMENT, np.uint8)
    start = -held.ctypes.data % _ALIGNMENT
    return held[start : start + size].view(dtype).reshape(shape)


def raw(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, as they go into a file; reads it."""
    values = tensor.read()
    if values.shape != tensor.shape or values.dtype != DTYPES[tensor.dtype]:
        raise ValueError(f"read {values.dtype}{values.shape} for {tensor.dtype}{tensor.shape}")
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
