# SPDX-License-Identifier: Apache-2.0
"""Packed texts in a program, see `cir_jax.data.packing`: what a text tower does with them.

A tower that takes them keeps texts of a row apart (`same_text`), looks positions up by their
number, and reads each text at its end (`at_ends`).
"""

from dataclasses import fields

import jax
import jax.numpy as jnp

from cir_jax.data.packing import Packed

# They go through jit as their arrays. The class itself is below jax: workers that pack have none.
jax.tree_util.register_dataclass(Packed, [one.name for one in fields(Packed)], [])

Text = jax.Array | Packed  # [B, T] ids, or B packed texts


def same_text(packed: Packed) -> jax.Array:
    """[P, L, L] bool: whether two tokens of a row belong to one text.

    Places without a text see each other, so that no softmax is over nothing.
    """
    segment = packed.segment
    return segment[:, :, None] == segment[:, None, :]


def at_ends(x: jax.Array, packed: Packed) -> jax.Array:
    """[P, L, C] of every token -> [B, C], each text at its end, share by share.

    Nothing leaves its device here: the tokens of a share are on one. `in_order` sorts the rows.
    """
    shares, each = packed.end.shape
    x = x.reshape(shares, -1, x.shape[-1])
    found = jnp.take_along_axis(x, packed.end[:, :, None], axis=1)
    return found.reshape(shares * each, x.shape[-1])


def in_order(x: jax.Array, packed: Packed) -> jax.Array:
    """[B, ...] share by share, as `at_ends` gives it -> [B, ...] as the rows of the batch are."""
    return jnp.take(x, packed.order, axis=0, unique_indices=True, mode="clip")
