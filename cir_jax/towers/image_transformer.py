# SPDX-License-Identifier: Apache-2.0
"""The Vision Transformer of BLIP and of BLIP-2 (EVA-CLIP-g): image -> all of its tokens.

Unlike CLIP's it has a bias in the patch projection, no norm before the blocks, the exact GELU,
norms with epsilon 1e-6, and no projection at the end: a text encoder attends to the tokens.
Sources: Li et al., BLIP, ICML 2022; Fang et al., EVA, CVPR 2023, whose attention keys have no bias
and whose blocks are followed by no norm.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cir_jax.towers.attention import XLA
from cir_jax.towers.clip.sizes import VisionTransformerSize
from cir_jax.towers.layers import Block, LayerNorm, normal, run_blocks, stack
from cir_jax.towers.patches import patches

EPSILON = 1e-6  # of every norm, as in the released code of both
STD = 0.02  # of class token and positions at the start


class ImageTransformer(nnx.Module):
    """Patches and a class token through pre-norm blocks, [B, S, S, 3] -> [B, T, C] float32.

    T = 1 + (S / patch)^2, class token first; positions are learned. Class token and positions have
    a leading axis of one, as in the published weights.

    Args:
      size: see `cir_jax.towers.clip.sizes`; `mlp` is the inner width of the MLPs.
      key_bias: False leaves the bias of the attention keys out.
      final_norm: a norm of every token after the last block.
      dtype: compute type.
      remat: what of a block is computed again in the backward pass, see `rematerialised` of
        `cir_jax.towers.layers`.
      attention: what computes it, see `cir_jax.towers.attention`.
    """

    def __init__(
        self,
        size: VisionTransformerSize,
        *,
        key_bias: bool = True,
        final_norm: bool = True,
        dtype: jnp.dtype = jnp.float32,
        remat: str | bool = "none",
        attention: str = XLA,
        rngs: nnx.Rngs,
    ):
        width, patch = size.width, size.patch
        self.patch_kernel = normal(rngs, (patch, patch, 3, width), (3 * patch * patch) ** -0.5)
        self.patch_bias = nnx.Param(jnp.zeros((width,), jnp.float32))
        self.class_token = normal(rngs, (1, 1, width), STD)
        self.position = normal(rngs, (1, positions(size), width), STD)
        options: dict[str, Any] = {
            "activation": "gelu", "epsilon": EPSILON, "key_bias": key_bias, "attention": attention,
        }  # fmt: skip
        self.blocks = stack(
            lambda rngs: Block(size, causal=False, rngs=rngs, **options), size.layers, rngs
        )
        self.norm_out = LayerNorm(width, epsilon=EPSILON) if final_norm else None
        self.size = size
        self.dtype = dtype
        self.remat = remat

    def embed(self, pixels: jax.Array) -> jax.Array:
        """[B, S, S, 3] normalised -> [B, 1 + (S / patch)^2, C], what enters the first block.

        Raises:
          UserError: the image is not of the tower's size.
        """
        x = patches(pixels, self.size.image, self.patch_kernel, self.dtype, self.patch_bias)
        first = jnp.broadcast_to(self.class_token[...].astype(x.dtype), x[:, :1].shape)
        return jnp.concatenate([first, x], axis=1) + self.position[...].astype(x.dtype)

    def __call__(self, pixels: jax.Array) -> jax.Array:
        """[B, S, S, 3] normalised -> [B, 1 + (S / patch)^2, C] float32, class token first."""
        x = run_blocks(self.blocks, self.embed(pixels), remat=self.remat).astype(jnp.float32)
        return x if self.norm_out is None else self.norm_out(x)


def positions(size: VisionTransformerSize) -> int:
    """Tokens of an image: its whole patches and the class token."""
    return (size.image // size.patch) ** 2 + 1
