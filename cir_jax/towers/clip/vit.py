# SPDX-License-Identifier: Apache-2.0
"""The Vision Transformer of CLIP: image -> one feature, not normalised.

What differs from OpenAI's in models of open_clip is a `VisionVariant` of `sizes`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cir_jax.towers.attention import XLA
from cir_jax.towers.clip.pool import AttentionPool
from cir_jax.towers.clip.sizes import PLAIN_VISION, VisionTransformerSize, VisionVariant
from cir_jax.towers.layers import Block, LayerNorm, normal, run_blocks, stack
from cir_jax.towers.patches import patches


class VisionTransformer(nnx.Module):
    """Patches and a class token through pre-norm blocks, [B, S, S, 3] -> [B, D] float32.

    The state of the class token is projected, or what the variant reads in its place; it is not
    unit length.

    Args:
      size: see `cir_jax.towers.clip.sizes`.
      embedding: D.
      variant: what differs from OpenAI's.
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
        variant: VisionVariant = PLAIN_VISION,
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
        epsilon = variant.epsilon
        self.norm_in = LayerNorm(width, epsilon=epsilon) if variant.norm_in else None
        options: dict[str, Any] = {
            "activation": activation, "epsilon": epsilon, "layer_scale": variant.scale,
            "attention": attention,
        }  # fmt: skip
        self.blocks = stack(
            lambda rngs: Block(size, causal=False, rngs=rngs, **options), size.layers, rngs
        )
        queries, read = variant.queries, embedding if variant.queries else width
        self.pool = (
            AttentionPool(
                width, embedding, queries, variant.query_heads, attention=attention, rngs=rngs
            )
            if queries
            else None
        )
        self.norm_out = LayerNorm(read, epsilon=epsilon)
        self.proj = normal(rngs, (read, embedding), scale)
        self.variant = variant
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
        x = x if self.norm_in is None else self.norm_in(x)
        return run_blocks(self.blocks, x, remat=self.remat)

    def __call__(self, pixels: jax.Array) -> jax.Array:
        """[B, S, S, 3] normalised -> [B, D] float32, not unit length."""
        return self.feature(self.tokens(pixels))

    def feature(self, tokens: jax.Array) -> jax.Array:
        """What `tokens` gives, [B, T, C] -> [B, D] float32, not unit length."""
        # One token per image costs nothing: no rounding to the compute type in the feature itself.
        if self.pool is not None:
            return self.norm_out(self.pool(tokens).astype(jnp.float32)) @ self.proj[...]
        if self.variant.pool == "class":
            return self.norm_out(tokens[:, 0].astype(jnp.float32)) @ self.proj[...]
        rest = tokens[:, 1:].astype(jnp.float32)
        if self.variant.pool == "mean":
            return self.norm_out(rest.mean(axis=1)) @ self.proj[...]
        return self.norm_out(rest).mean(axis=1) @ self.proj[...]
