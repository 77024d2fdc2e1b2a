# SPDX-License-Identifier: Apache-2.0
"""The text transformer of CLIP: token ids -> one feature, not normalised."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cir_jax.errors import UserError
from cir_jax.runtime.sharding import keep_rows, lookup
from cir_jax.towers import packed
from cir_jax.towers.attention import XLA
from cir_jax.towers.clip.sizes import CONTEXT, VOCABULARY, TextSize
from cir_jax.towers.layers import Block, LayerNorm, normal, run_blocks, stack
from cir_jax.towers.packed import Packed, Text


class TextTransformer(nnx.Module):
    """A causal transformer, read at the end-of-text token, [B, T] ids -> [B, D] float32.

    Nothing behind that token is seen by it, so a text may be cut to any length that keeps it: the
    feature does not change, and the cost falls with the length. For the same reason texts may lie
    one behind the other in a row, as `cir_jax.data.packing` has them.

    Args:
      size: see `cir_jax.towers.clip.sizes`.
      embedding: D.
      context: positions; 0 means CLIP's 77.
      activation: one of `cir_jax.towers.layers.ACTIVATIONS`.
      dtype: compute type.
      remat: what of a block is computed again in the backward pass, see `rematerialised` of
        `cir_jax.towers.layers`.
      attention: what computes it, see `cir_jax.towers.attention`.
    """

    def __init__(
        self,
        size: TextSize,
        embedding: int,
        *,
        context: int = 0,
        activation: str = "quick_gelu",
        dtype: jnp.dtype = jnp.float32,
        remat: str | bool = "none",
        attention: str = XLA,
        rngs: nnx.Rngs,
    ):
        self.token_embedding = normal(rngs, (VOCABULARY, size.width), 0.02)
        self.position = normal(rngs, (context or CONTEXT, size.width), 0.01)
        options: dict[str, Any] = {"activation": activation, "attention": attention}
        self.blocks = stack(
            lambda rngs: Block(size, causal=True, rngs=rngs, **options), size.layers, rngs
        )
        self.norm_out = LayerNorm(size.width)
        self.proj = normal(rngs, (size.width, embedding), size.width**-0.5)
        self.dtype = dtype
        self.remat = remat

    def tokens(self, text: Text) -> jax.Array:
        """[B, T] ids -> [B, T, C], after the last norm; of packed texts [P, L, C].

        Raises:
          UserError: T is over the context.
        """
        if isinstance(text, Packed):
            ids, mask = text.tokens, packed.same_text(text)
            positions = self.position[...][text.position]
        else:
            ids, mask = text, None
            length, context = text.shape[1], self.position.shape[0]
            if length > context:
                raise UserError(f"text of {length} tokens is over the context of {context}; cut it")
            positions = self.position[...][None, :length]
        x = keep_rows(lookup(self.token_embedding[...], ids)) + positions
        return self.norm_out(run_blocks(self.blocks, x.astype(self.dtype), mask, remat=self.remat))

    def __call__(self, text: Text) -> jax.Array:
        """[B, T] ids, or B packed texts -> [B, D] float32, not unit length."""
        return self.feature(self.tokens(text), text)

    def feature(self, tokens: jax.Array, text: Text) -> jax.Array:
        """What `tokens` gives for `text`, [B, T, C] -> [B, D] float32, not unit length."""
        if isinstance(text, Packed):
            x = packed.at_ends(tokens, text).astype(jnp.float32) @ self.proj[...]
            return packed.in_order(x, text)
        last = jnp.argmax(text, axis=-1)  # end-of-text has the largest id
        x = jnp.take_along_axis(tokens, last[:, None, None], axis=1)[:, 0]
        return x.astype(jnp.float32) @ self.proj[...]
