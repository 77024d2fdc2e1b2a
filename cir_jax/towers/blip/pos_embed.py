# SPDX-License-Identifier: Apache-2.0
"""Learned positions of an image transformer for images of another size.

The grid of positions is interpolated bicubically, as the released code of BLIP does when weights of
224 pixels start a model of 384: PyTorch's convolution with a = -0.75, whose pixels are areas
(`align_corners=False`), without a wider kernel where it shrinks. The class token keeps its own.
Source of the kernel: Keys, "Cubic Convolution Interpolation for Digital Image Processing", 1981.
"""

import math

import numpy as np

from cir_jax import progress
from cir_jax.convert.containers.tensors import Tensor
from cir_jax.errors import UserError

SHARPNESS = -0.75  # a of the kernel


def fitted(tensor: Tensor, rows: int, where: str) -> Tensor:
    """The positions [1, 1 + n^2, C] of a file as [1, rows, C]; they are read when it is.

    A tensor of other axes is returned as it is: the comparison with the model names it.

    Args:
      tensor: class token first.
      rows: 1 + the patches of the model's images, a square.
      where: the file, for the message that says so.

    Raises:
      UserError: the patches of the file are no square.
    """
    if len(tensor.shape) != 3 or tensor.shape[1] in (0, rows):
        return tensor
    old, new = grid(tensor.shape[1], where), grid(rows, "the model")
    progress.say(f"{where}: positions of {old}x{old} patches, interpolated to {new}x{new}")

    def read() -> np.ndarray:
        return interpolated(tensor.read().astype(np.float32), new)

    return Tensor((tensor.shape[0], rows, tensor.shape[2]), "float32", read)


def grid(rows: int, where: str) -> int:
    """Patches along a side of an image of so many positions, class token included.

    Raises:
      UserError: they are no square.
    """
    side = math.isqrt(max(rows - 1, 0))
    if not side or side * side != rows - 1:
        raise UserError(
            f"{where} has {rows} positions, which are not a square of patches and a class token; "
            "give other weights"
        )
    return side


def interpolated(values: np.ndarray, side: int) -> np.ndarray:
    """float32 [1, 1 + n^2, C], class token first -> [1, 1 + side^2, C]."""
    old, width = math.isqrt(values.shape[1] - 1), values.shape[2]
    matrix = _weights(old, side)
    pixels = values[0, 1:].reshape(old, old, width).astype(np.float64)
    pixels = np.einsum("ai,bj,ijc->abc", matrix, matrix, pixels, optimize=True)
    pixels = pixels.reshape(1, side * side, width).astype(np.float32)
    return np.concatenate([values[:, :1], pixels], axis=1)


def _weights(old: int, new: int) -> np.ndarray:
    """[new, old] weight of every old row in every new one; what is outside repeats the edge."""
    place = (np.arange(new) + 0.5) * old / new - 0.5
    first = np.floor(place).astype(int) - 1
    matrix = np.zeros((new, old))
    for tap in range(4):
        distance = np.abs(place - (first + tap))
        column = np.clip(first + tap, 0, old - 1)
        np.add.at(matrix, (np.arange(new), column), _kernel(distance))
    return matrix


def _kernel(x: np.ndarray) -> np.ndarray:
    """Keys' kernel at distances from 0 to 2."""
    a = SHARPNESS
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, far)
