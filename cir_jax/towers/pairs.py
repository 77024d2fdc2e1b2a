# SPDX-License-Identifier: Apache-2.0
"""One pass of an encoder over two batches of images.

Two passes over the same weights have two gradients, which devices reduce one after the other and
then add; and weights that are split over devices are gathered twice.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def in_one_pass(
    apply: Callable[[jax.Array], Any], first: jax.Array, second: jax.Array
) -> tuple[Any, Any]:
    """(`apply(first)`, `apply(second)`), by one call.

    Rows take turns, first[0], second[0], first[1], ...: where a batch is split over devices in
    runs of rows, each device goes on with the rows it has. One batch behind the other would move
    half of all rows to another device.

    Args:
      apply: [2 B, ...] -> pytree of [2 B, ...], each row from its own row alone.
      first: [B, ...].
      second: [B, ...], of the same shape.
    """
    both = jnp.stack([first, second], axis=1)
    out = apply(both.reshape(-1, *first.shape[1:]))
    split = jax.tree.map(lambda x: x.reshape(-1, 2, *x.shape[1:]), out)
    return jax.tree.map(lambda x: x[:, 0], split), jax.tree.map(lambda x: x[:, 1], split)
