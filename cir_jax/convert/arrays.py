# SPDX-License-Identifier: Apache-2.0
"""Large arrays of weights: copied, widened and looked over without a second one in memory."""

import numpy as np

from cir_jax.convert.containers.spans import empty
from cir_jax.convert.containers.tensors import DTYPES

FLOAT32 = DTYPES["float32"]
_STRIP = 16  # float32 values that fill one line of a processor's cache


def copy(into: np.ndarray, values: np.ndarray) -> None:
    """Assigns values, cast to the type of `into`, of which `values` may be a transposed view.

    numpy writes a transposed array value by value, each to another line of the cache; strips along
    the last axis fill whole lines, which is some 3 times as fast.
    """
    if values.ndim < 2 or values.strides[-1] == values.itemsize:
        into[...] = values
        return
    for start in range(0, values.shape[-1], _STRIP):
        strip = (..., slice(start, start + _STRIP))
        into[strip] = values[strip]


def float32(values: np.ndarray) -> np.ndarray:
    """The same values as float32; those that are float32 are not copied."""
    if values.dtype == FLOAT32:
        return values
    wide = empty(values.shape, FLOAT32)
    with np.errstate(over="ignore"):  # what is over float32 is infinite, and named as such
        wide[...] = values
    return wide


def finite(values: np.ndarray) -> bool:
    """Whether all are finite; unlike `np.isfinite(values)` it makes no second array."""
    with np.errstate(invalid="ignore"):
        return bool(np.isfinite(values.min(initial=0)) and np.isfinite(values.max(initial=0)))
