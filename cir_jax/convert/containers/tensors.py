# SPDX-License-Identifier: Apache-2.0
"""One tensor of a weight file that has not been read yet.

A file of 10 GB is gone through tensor by tensor: what is held in memory is the model and the tensor
at hand, never the file.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import ml_dtypes
import numpy as np

# Name of a type in messages and records -> how its bytes are read. bfloat16 is none of numpy's own.
DTYPES = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "int64": np.dtype(np.int64),
    "int32": np.dtype(np.int32),
    "int16": np.dtype(np.int16),
    "int8": np.dtype(np.int8),
    "uint8": np.dtype(np.uint8),
    "bool": np.dtype(np.bool_),
}
FLOATS = ("float64", "float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Tensor:
    """Shape, type and where to get the values.

    Attributes:
      shape: as the file says it.
      dtype: a key of DTYPES.
      read: () -> C-contiguous array of that shape and type; reads the file each time.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


def of(values: np.ndarray | np.generic) -> Tensor:
    """A tensor that is in memory already, of one of DTYPES."""
    array = np.asarray(values)
    names = {known: name for name, known in DTYPES.items()}
    dtype = names[array.dtype]
    # ascontiguousarray would make a vector of a scalar.
    return Tensor(array.shape, dtype, lambda: array.copy(order="C"))
