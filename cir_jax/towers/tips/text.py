# SPDX-License-Identifier: Apache-2.0
"""The text transformer of TIPSv2: token ids -> one feature, not normalised.

    x = sqrt(C) * embedding + (sin, cos)(t / 10000^(i / (C / 2 - 1)))
    feature = mean over the tokens of the text of norm(blocks(x))

Every token sees all others of its text, none sees padding; the MLPs have a ReLU. So a text may be
cut to any length that keeps its tokens. Source: Maninis et al., "TIPS", ICLR 2025, arXiv
2410.16512.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cir_jax.errors import UserError
from cir_jax.runtime.sharding import keep_rows, lookup
from cir_jax.towers.attention import XLA
from cir_jax.towers.layers import Block, LayerNorm, normal, run_blocks, stack
from cir_jax.towers.packed import Packed, Text
from cir_jax.towers.tips.sizes import CONTEXT, PADDING, TipsSize

EPSILON = 1e-5  # of every norm
FEW = 1e-8  # is added to the number of tokens, which may be none
BASE = 10_000.0  # of the wave lengths


def positions(context: int, width: int) -> np.ndarray:
    """float32 [T, C]: sines of the first half of the channels, cosines of the second."""
    half = width // 2
    # In float32 from the start, as the weights were trained: an angle of 63 has its last bits.
    waves = np.exp(np.arange(half, dtype=np.float32) * np.float32(-math.log(BASE) / (half - 1)))
    angle = np.arange(context, dtype=np.float32)[:, None] * waves
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)


class TextEncoder(nnx.Module):
    """[B, T] ids -> [B, C] float32, not unit length.

    Args:
      size: see `cir_jax.towers.tips.sizes`.
      context: text positions; 0 means 64.
      dtype: compute type.
      remat: what of a block is computed again in the backward pass, see `rematerialised` of
        `cir_jax.towers.layers`.
      attention: what computes it, see `cir_jax.towers.attention`.
    """

    def __init__(
        self,
        size: TipsSize,
        *,
        context: int = 0,
        dtype: jnp.dtype = jnp.float32,
        remat: str | bool = "none",
        attention: str = XLA,
        rngs: nnx.Rngs,
    ):
        text = size.text
        self.context = context or CONTEXT
        self.token_embedding = normal(rngs, (size.vocabulary, text.width), text.width**-0.5)
        options: dict[str, Any] = {
            "causal": False, "activation": "relu", "epsilon": EPSILON, "masks": True,
            "attention": attention,
        }  # fmt: skip
        self.blocks = stack(lambda rngs: Block(text, rngs=rngs, **options), text.layers, rngs)
        self.norm_out = LayerNorm(text.width, epsilon=EPSILON)
        self.size = size
        self.dtype = dtype
        self.remat = remat

    def mask(self, text: jax.Array) -> jax.Array:
        """[B, T] ids -> [B, T] bool, what is seen. Of an empty text it is its first padding, which
        keeps the softmax from being over nothing, and which the feature leaves out."""
        first = (jnp.arange(text.shape[1]) == 0)[None]
        return (text != PADDING) | first

    def tokens(self, text: Text) -> jax.Array:
        """[B, T] ids -> [B, T, C], after the last norm.

        Raises:
          UserError: T is over the context.
        """
        assert not isinstance(text, Packed)  # `Encoder.packs_texts`
        length, width = text.shape[1], self.size.text.width
        if length > self.context:
            raise UserError(
                f"text of {length} tokens is over the context of {self.context}; cut it"
            )
        x = keep_rows(lookup(self.token_embedding[...], text)) * width**0.5
        x = x + jnp.asarray(positions(self.context, width))[None, :length]
        x = run_blocks(self.blocks, x.astype(self.dtype), self.mask(text), remat=self.remat)
        return self.norm_out(x)

    def __call__(self, text: Text) -> jax.Array:
        """[B, T] ids -> [B, C] float32, not unit length."""
        return self.feature(self.tokens(text), text)

    def feature(self, tokens: jax.Array, text: Text) -> jax.Array:
        """What `tokens` gives for `text`, [B, T, C] -> [B, C] float32, not unit length."""
        assert not isinstance(text, Packed)
        read = (text != PADDING).astype(jnp.float32)[..., None]
        total = (tokens.astype(jnp.float32) * read).sum(axis=1)
        return total / (read.sum(axis=1) + FEW)
