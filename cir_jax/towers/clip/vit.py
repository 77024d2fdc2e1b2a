# SPDX-License-Identifier: Apache-2.0
"""The Vision Transformer of CLIP: image -> one feature, not normalised."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cir_jax.towers.attention import XLA
from cir_jax.towers.clip.sizes import VisionTransformerSize
from cir_jax.towers.layers import Block, LayerNorm, normal, patches, run_blocks, stack


class VisionTransformer(nnx.Module):
    """Patches and a class token through pre-norm blocks, [B, S, S, 3] -> [B, D] float32.

    The state of the class token is projected; it is not unit length.

    Args:
      size: see `cir_jax.towers.clip.sizes`.
      embedding: D.
      activation: one of `cir_jax.towers.layers.ACTIVATIONS`.
      dtype: compute type.
      remat: what of a block is computed again in the backward pass, see `rematerialised` of
        `cir_jax.towers.layers`.
      attention: what computes it, see `cir_jax.towers.attention`.
    """

    def __init__(
        self,
        size: VisionTransformerSize,
        embedding: int,
        *,
        activation: str = "quick_gelu",
        dtype: jnp.dtype = jnp.float32,
        remat: str | bool = "none",
        attention: str = XLA,
        rngs: nnx.Rngs,
    ):
        width, patch = size.width, size.patch
        scale = width**-0.5
        self.patch_kernel = normal(rngs, (patch, patch, 3, width), (3 * patch * patch) ** -0.5)
        self.class_token = normal(rngs, (width,), scale)
        self.position = normal(rngs, ((size.image // patch) ** 2 + 1, width), scale)
        self.norm_in = LayerNorm(width)
        options: dict[str, Any] = {"activation": activation, "attention": attention}
        self.blocks = stack(
            lambda rngs: Block(size, causal=False, rngs=rngs, **options), size.layers, rngs
        )
        self.norm_out = LayerNorm(width)
        self.proj = normal(rngs, (width, embedding), scale)
        self.size = size
        self.dtype = dtype
        self.remat = remat

    def tokens(self, pixels: jax.Array) -> jax.Array:
        """[B, S, S, 3] normalised -> [B, 1 + (S / patch)^2, C], before the last norm.

        Raises:
          UserError: the image is not of the tower's size.
        """
        x = patches(pixels, self.size.image, self.patch_kernel, self.dtype)
        first = jnp.broadcast_to(self.class_token[...].astype(x.dtype)[None, None], x[:, :1].shape)
        x = jnp.concatenate([first, x], axis=1) + self.position[...].astype(x.dtype)[None]
        return run_blocks(self.blocks, self.norm_in(x), remat=self.remat)

    def __call__(self, pixels: jax.Array) -> jax.Array:
        """[B, S, S, 3] normalised -> [B, D] float32, not unit length."""
        return self.feature(self.tokens(pixels))

    def feature(self, tokens: jax.Array) -> jax.Array:
        """What `tokens` gives, [B, T, C] -> [B, D] float32, not unit length."""
        # One token per image costs nothing: no rounding to the compute type in the feature itself.
        return self.norm_out(tokens[:, 0].astype(jnp.float32)) @ self.proj[...]
