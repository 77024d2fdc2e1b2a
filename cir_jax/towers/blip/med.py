# SPDX-License-Identifier: Apache-2.0
"""The text encoder of BLIP that looks at an image: a BERT with cross-attention in every layer.

Source: Li et al., "BLIP: Bootstrapping Language-Image Pre-training for Unified Vision-Language
Understanding and Generation", ICML 2022, section 3.1, the image-grounded text encoder. Post-norm;
embeddings are of words and positions alone, without token types; there is no pooler.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cir_jax.errors import UserError
from cir_jax.towers import bert
from cir_jax.towers.attention import XLA
from cir_jax.towers.blip.sizes import CONTEXT, VOCABULARY
from cir_jax.towers.clip.sizes import TextSize
from cir_jax.towers.layers import run_stack, stack

PAD = 0  # token id that nobody attends to


class Layer(nnx.Module):
    """Self-attention, cross-attention to the image, MLP, [B, T, C] -> [B, T, C].

    Args:
      size: see `cir_jax.towers.clip.sizes`.
      image_width: C', width of the image tokens.
      rate: dropout.
      attention: what computes it, see `cir_jax.towers.attention`.
    """

    def __init__(
        self,
        size: TextSize,
        image_width: int,
        *,
        rate: float = 0.0,
        attention: str = XLA,
        rngs: nnx.Rngs,
    ):
        options: dict[str, Any] = {"rate": rate, "rngs": rngs}
        both = {"attention": attention, **options}
        self.attention = bert.Attention(size.width, size.heads, **both)
        self.cross = bert.Attention(size.width, size.heads, source=image_width, **both)
        self.mlp = bert.Mlp(size.width, size.mlp or 4 * size.width, **options)

    def __call__(
        self, x: jax.Array, image: jax.Array, mask: jax.Array, key: jax.Array | None = None
    ) -> jax.Array:
        """[B, T, C], image tokens [B, R, C'] and [B, T] bool -> [B, T, C]."""
        keys = (None, None, None) if key is None else jax.random.split(key, 3)
        x = self.attention(x, x, mask, key=keys[0])
        return self.mlp(self.cross(x, image, key=keys[1]), keys[2])


class TextEncoder(nnx.Module):
    """Token ids [B, T] and image tokens [B, R, C'] -> one state per token, [B, T, C].

    Nobody attends to padding, so a text may be padded to any length: its states do not change.

    Args:
      size: see `cir_jax.towers.clip.sizes`.
      image_width: width of the image tokens.
      context: positions; 0 means BERT's 512.
      rate: dropout, behind the embeddings, in both attentions and behind every product that ends
        in a norm.
      dtype: compute type.
      remat: what of a layer is computed again in the backward pass, see `rematerialised` of
        `cir_jax.towers.layers`.
      attention: what computes it, see `cir_jax.towers.attention`.
    """

    def __init__(
        self,
        size: TextSize,
        image_width: int,
        *,
        context: int = 0,
        rate: float = 0.0,
        dtype: jnp.dtype = jnp.float32,
        remat: str | bool = "none",
        attention: str = XLA,
        rngs: nnx.Rngs,
    ):
        self.embeddings = bert.Embeddings(VOCABULARY, context or CONTEXT, size.width, rngs=rngs)
        options: dict[str, Any] = {"rate": rate, "attention": attention}
        self.layers = stack(
            lambda rngs: Layer(size, image_width, rngs=rngs, **options), size.layers, rngs
        )
        self.rate = rate
        self.dtype = dtype
        self.remat = remat

    def __call__(
        self, text: jax.Array, image: jax.Array, key: jax.Array | None = None
    ) -> jax.Array:
        """[B, T] ids and [B, R, C'] image tokens -> [B, T, C], in the compute type.

        `key` is the dropout key, None for none.

        Raises:
          UserError: T is over the context.
        """
        context = self.embeddings.positions.shape[0]
        if text.shape[1] > context:
            raise UserError(
                f"text of {text.shape[1]} tokens is over the context of {context}; cut it"
            )
        first, rest = (None, None) if key is None else jax.random.split(key)
        mask, image = text != PAD, image.astype(self.dtype)
        x = self.embeddings.finish(self.embeddings.lookup(text), self.rate, first)

        def apply(x: jax.Array, layer: Layer, key: jax.Array | None) -> jax.Array:
            return layer(x, image, mask, key)

        return run_stack(self.layers, x.astype(self.dtype), apply, rest, remat=self.remat)
