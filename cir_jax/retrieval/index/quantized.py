# SPDX-License-Identifier: Apache-2.0
"""Rows in fewer bytes, and what that costs.

float32   as the model gave them
float16   rounded, 2 bytes a value
int8      each row times 127 / its largest value, rounded; 1 byte a value and 4 a row
"""

import numpy as np
from numpy.typing import NDArray

DTYPES = ("float32", "float16", "int8")


def stored(rows: NDArray[np.float32], dtype: str) -> tuple[NDArray, NDArray[np.float32] | None]:
    """(rows as they are kept, scales [n, K] of int8 or None) of float32 [n, K, D]."""
    if dtype != "int8":
        return rows.astype(dtype, copy=False), None
    largest = np.abs(rows).max(axis=-1)
    scales = (np.where(largest > 0, largest, 1) / np.float32(127)).astype(np.float32)
    return np.rint(rows / scales[..., None]).astype(np.int8), scales


def restored(rows: NDArray, scales: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """float32 [n, K, D] of rows as they are kept; float32 is not copied."""
    if scales is None:
        return rows.astype(np.float32, copy=False)
    return rows.astype(np.float32) * scales[..., None]
