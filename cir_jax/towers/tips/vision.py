# SPDX-License-Identifier: Apache-2.0
"""The Vision Transformer of TIPSv2: image -> one feature, not normalised.

A DINOv2 with registers: patches with a bias, a class token, register tokens without a position,
pre-norm blocks with layer scale and the exact GELU (or a gated MLP), norms with epsilon 1e-6. The
feature is the normed class token. Sources: Cao et al., "TIPSv2", arXiv 2604.12012; Oquab et al.,
"DINOv2", arXiv 2304.07193; Darcet et al., "Vision Transformers Need Registers", arXiv 2309.16588.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cir_jax.towers.attention import XLA
from cir_jax.towers.layers import Block, LayerNorm, normal, run_blocks, stack
from cir_jax.towers.patches import patches
from cir_jax.towers.tips.sizes import TipsSize

EPSILON = 1e-6  # of every norm
STD = 0.02  # of tokens and positions at the start


class ImageEncoder(nnx.Module):
    """[B, S, S, 3] -> [B, C] float32, not unit length.

    Args:
      size: see `cir_jax.towers.tips.sizes`.
      dtype: compute type.
      remat: what of a block is computed again in the backward pass, see `rematerialised` of
        `cir_jax.towers.layers`.
      attention: what computes it, see `cir_jax.towers.attention`.
    """

    def __init__(
        self,
        size: TipsSize,
        *,
        dtype: jnp.dtype = jnp.float32,
        remat: str | bool = "none",
        attention: str = XLA,
        rngs: nnx.Rngs,
    ):
        vision = size.vision
        width, patch = vision.width, vision.patch
        self.patch_kernel = normal(rngs, (patch, patch, 3, width), (3 * patch * patch) ** -0.5)
        self.patch_bias = nnx.Param(jnp.zeros((width,), jnp.float32))
        self.class_token = normal(rngs, (width,), STD)
        self.registers = normal(rngs, (size.registers, width), STD)
        self.position = normal(rngs, ((vision.image // patch) ** 2 + 1, width), STD)
        # In place of hidden patches while TIPS was trained; nothing here reads it.
        self.mask_token = nnx.Param(jnp.zeros((width,), jnp.float32))
        options: dict[str, Any] = {
            "causal": False, "activation": "gelu", "epsilon": EPSILON, "layer_scale": True,
            "gated": size.gated, "attention": attention,
        }  # fmt: skip
        self.blocks = stack(lambda rngs: Block(vision, rngs=rngs, **options), vision.layers, rngs)
        self.norm_out = LayerNorm(width, epsilon=EPSILON)
        self.size = size
        self.dtype = dtype
        self.remat = remat

    def tokens(self, pixels: jax.Array) -> jax.Array:
        """[B, S, S, 3] normalised -> [B, 1 + registers + (S / patch)^2, C], before the last norm.

        Raises:
          UserError: the image is not of the tower's size.
        """
        x = patches(pixels, self.size.vision.image, self.patch_kernel, self.dtype, self.patch_bias)
        position = self.position[...].astype(x.dtype)
        # Class token and registers, of which the first alone has a position.
        first = self.class_token[...].astype(x.dtype)[None] + position[:1]
        first = jnp.concatenate([first, self.registers[...].astype(x.dtype)])
        first = jnp.broadcast_to(first[None], (len(x), *first.shape))
        x = jnp.concatenate([first, x + position[None, 1:]], axis=1)
        return run_blocks(self.blocks, x, remat=self.remat)

    def __call__(self, pixels: jax.Array) -> jax.Array:
        """[B, S, S, 3] normalised -> [B, C] float32, not unit length."""
        return self.feature(self.tokens(pixels))

    def feature(self, tokens: jax.Array) -> jax.Array:
        """What `tokens` gives, [B, T, C] -> [B, C] float32, not unit length."""
        return self.norm_out(tokens[:, 0].astype(jnp.float32))
