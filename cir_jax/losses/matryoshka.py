# SPDX-License-Identifier: Apache-2.0
"""Losses of vectors whose first values serve as shorter vectors.

The loss of a step is the sum of its losses at several widths: of the first so many values of every
query and every row, at unit length again. Source: equation 1 of Kusupati et al., "Matryoshka
Representation Learning", arXiv 2205.13147, with all weights 1.
"""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Protocol

import jax

from cir_jax.errors import UserError
from cir_jax.towers.layers import unit

KEY = "loss.matryoshka"


def cut(vectors: jax.Array, width: int) -> jax.Array:
    """[..., D] -> [..., width] of unit length; 0 leaves them as they are."""
    return unit(vectors[..., :width]) if width else vectors


def summed(
    loss: Callable[[int], tuple[jax.Array, dict[str, jax.Array]]], widths: Sequence[int]
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The sum of the losses at some widths, and what is to be logged.

    Args:
      loss: width -> ([B] losses of vectors that are cut to it, {name: scalar}); 0 are whole ones.
      widths: as `check` returns them; () is the loss of whole vectors alone.

    Returns:
      [B] float32, and {name: scalar}: of the widest vectors, with the mean loss of each width.
    """
    if not widths:
        return loss(0)
    found = {width: loss(width) for width in widths}
    total = functools.reduce(operator.add, (losses for losses, _ in found.values()))
    means = {f"loss_at_{width}": losses.mean() for width, (losses, _) in found.items()}
    return total, found[widths[0]][1] | means


class Rows(Protocol):
    """What is known of a model's targets."""

    @property
    def target_shape(self) -> tuple[int, int]:
        """(K, D)."""
        ...


def check(widths: Sequence[int], model: Rows) -> tuple[int, ...]:
    """The widths of `loss.matryoshka`, the widest first.

    Args:
      widths: of the key; () asks nothing of the model.
      model: its vectors are of D values.

    Raises:
      UserError: one is over D, or there twice; or whole vectors are not among them.
    """
    if not widths:
        return ()
    ordered, width = tuple(sorted(map(int, widths), reverse=True)), model.target_shape[1]
    if len(set(ordered)) < len(ordered) or ordered[0] != width:
        raise UserError(
            f"{KEY}={tuple(widths)}: each width must be there once, and the widest be that of the "
            f"model's vectors, {width}; write for example "
            f"{KEY}={','.join(str(width // n) for n in (1, 2, 4) if width // n)}"
        )
    return ordered
