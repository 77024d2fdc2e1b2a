# SPDX-License-Identifier: Apache-2.0
"""The text tower of SigLIP: token ids -> one feature, not normalised.

Every position sees every other, also those that only fill the text up, and the last one is read. So
a text is always as long as it was in training: neither is its padding cut, nor do several texts lie
in one row, where they could not see theirs.

Source: Zhai et al., arXiv 2303.15343, by its released code.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cir_jax.errors import UserError
from cir_jax.runtime.sharding import keep_rows
from cir_jax.towers.attention import XLA
from cir_jax.towers.layers import Block, Dense, LayerNorm, normal, run_blocks, stack
from cir_jax.towers.packed import Packed, Text
from cir_jax.towers.siglip.sizes import SiglipTextSize
from cir_jax.towers.siglip.vit import ACTIVATION, EPSILON


class SiglipTextTransformer(nnx.Module):
    """A transformer without a mask, read at its last position, [B, T] ids -> [B, D] float32.

    Args:
      size: see `cir_jax.towers.siglip.sizes`.
      embedding: D.
      pad: id that a shorter text is filled up with.
      context: positions; 0 means those of the size.
      dtype: compute type.
      remat: what of a block is computed again in the backward pass, see `rematerialised` of
        `cir_jax.towers.layers`.
      attention: what computes it, see `cir_jax.towers.attention`.
    """

    def __init__(
        self,
        size: SiglipTextSize,
        embedding: int,
        pad: int,
        *,
        context: int = 0,
        dtype: jnp.dtype = jnp.float32,
        remat: str | bool = "none",
        attention: str = XLA,
        rngs: nnx.Rngs,
    ):
        width = size.width
        self.token_embedding = normal(rngs, (size.words, width), 0.02)
        self.position = normal(rngs, (context or size.context, width), 0.01)
        options: dict[str, Any] = {
            "activation": ACTIVATION, "epsilon": EPSILON, "attention": attention,
        }  # fmt: skip
        self.blocks = stack(
            lambda rngs: Block(size, causal=False, rngs=rngs, **options), size.layers, rngs
        )
        self.norm_out = LayerNorm(width, epsilon=EPSILON)
        self.head = Dense(width, embedding, width**-0.5, rngs=rngs)
        self.pad = pad
        self.dtype = dtype
        self.remat = remat

    def tokens(self, text: Text) -> jax.Array:
        """[B, T] ids -> [B, context, C], after the last norm; a shorter text is filled up.

        Raises:
          UserError: T is over the context.
        """
        assert not isinstance(text, Packed)  # no PACKS_TEXTS
        length, context = text.shape[1], self.position.shape[0]
        if length > context:
            raise UserError(f"text of {length} tokens is over the context of {context}; cut it")
        ids = jnp.pad(text, ((0, 0), (0, context - length)), constant_values=self.pad)
        x = keep_rows(self.token_embedding[...][ids]) + self.position[...][None]
        return self.norm_out(run_blocks(self.blocks, x.astype(self.dtype), remat=self.remat))

    def __call__(self, text: Text) -> jax.Array:
        """[B, T] ids -> [B, D] float32, not unit length."""
        return self.feature(self.tokens(text), text)

    def feature(self, tokens: jax.Array, text: Text) -> jax.Array:
        """What `tokens` gives, [B, context, C] -> [B, D] float32, not unit length."""
        return self.head(tokens[:, -1].astype(jnp.float32))
