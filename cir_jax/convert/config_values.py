# SPDX-License-Identifier: Apache-2.0
"""Values out of the configs of other projects: whole numbers, sides, the normalisation of pixels.

A config is JSON that somebody may have edited: "12" for 12 or a side of 224.0 is said by its key
instead of failing later in the middle of a network.
"""

from typing import Any

from cir_jax.data.pixels import IMAGE_MEAN, IMAGE_STD
from cir_jax.errors import UserError

TOLERANCE = 1e-4  # of a mean or deviation: some configs round them to four digits


def whole_number(value: Any, key: str, where: str) -> int:
    """`value` if it is a whole number of at least 1.

    Raises:
      UserError: it is not; `where` and `key` are named.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{where} has {key}={value!r}; it must be a whole number of at least 1")
    return value


def square_side(value: Any, key: str, where: str) -> int:
    """Side of a square that is written as one number or as a pair of equal ones.

    Raises:
      UserError: it is no number, or the two differ: our images and patches are square.
    """
    if isinstance(value, (list, tuple)):
        if len(value) != 2 or value[0] != value[1]:
            raise UserError(
                f"{where} has {key}={list(value)!r}; images and patches are square here, so this "
                "model cannot be used"
            )
        value = value[0]
    return whole_number(value, key, where)


def check_normalisation(mean: Any, std: Any, where: str) -> None:
    """Raises UserError unless mean and deviation of the pixels are CLIP's; None says they are."""
    for key, value, ours in (("mean", mean, IMAGE_MEAN), ("std", std, IMAGE_STD)):
        if value is None:
            continue
        same = isinstance(value, (list, tuple)) and len(value) == len(ours)
        if not same or any(not close(a, b, TOLERANCE) for a, b in zip(value, ours, strict=True)):
            raise UserError(
                f"{where} has an image {key} of {value!r}; pixels are normalised here by CLIP's, "
                f"{list(ours)}, and to weights that learned from others every image would look "
                "wrong; take weights that were trained with CLIP's"
            )


def close(value: Any, ours: float, tolerance: float) -> bool:
    """Whether `value` is a number, and no further than `tolerance` from ours."""
    return isinstance(value, (int, float)) and abs(value - ours) <= tolerance
