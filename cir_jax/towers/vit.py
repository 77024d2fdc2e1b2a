# SPDX-License-Identifier: Apache-2.0
"""The Vision Transformer of CLIP: image -> one feature, not normalised."""

import jax
import jax.numpy as jnp
from flax import nnx

from cir_jax.errors import UserError
from cir_jax.towers.clip.sizes import VisionTransformerSize
from cir_jax.towers.layers import Block, LayerNorm, normal, run_blocks


class VisionTransformer(nnx.Module):
    """Patches and a class token through pre-norm blocks; the class token is projected.

    Args:
      size: see `cir_jax.towers.clip.sizes`.
      embedding: D.
      activation: one of `cir_jax.towers.layers.ACTIVATIONS`.
      dtype: compute type.
      remat: recompute blocks in the backward pass.
    """

    def __init__(
        self,
        size: VisionTransformerSize,
        embedding: int,
        *,
        activation: str = "quick_gelu",
        dtype: jnp.dtype = jnp.float32,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        width, patch = size.width, size.patch
        scale = width**-0.5
        self.patch_kernel = normal(rngs, (patch, patch, 3, width), (3 * patch * patch) ** -0.5)
        self.class_token = normal(rngs, (width,), scale)
        self.position = normal(rngs, ((size.image // patch) ** 2 + 1, width), scale)
        self.norm_in = LayerNorm(width)
        self.blocks = Block(
            size, causal=False, activation=activation, rngs=rngs, stack=(size.layers,)
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


def patches(pixels: jax.Array, side: int, kernel: nnx.Param, dtype: jnp.dtype) -> jax.Array:
    """Every whole patch of an image times `kernel`.

    Args:
      pixels: [B, S, S, 3] normalised.
      side: S, of the tower.
      kernel: [patch, patch, 3, C].
      dtype: compute type.

    Returns:
      [B, (S / patch)^2, C], row by row.

    Raises:
      UserError: the image is not of the tower's size.
    """
    batch, height, width, _ = pixels.shape
    if (height, width) != (side, side):
        raise UserError(
            f"image of {height}x{width} pixels, but the tower takes {side}x{side}; "
            "set model.image_size to that of the images, or to 0 for the tower's own"
        )
    # A convolution whose stride is its size is one product per patch; written so, its gradient is a
    # product as well, where a CPU would otherwise run a 16 x 16 convolution.
    patch = kernel.shape[0]
    across = side // patch
    x = pixels[:, : across * patch, : across * patch].astype(dtype)
    x = x.reshape(batch, across, patch, across, patch, 3).transpose(0, 1, 3, 2, 4, 5)
    flat = kernel[...].astype(dtype).reshape(-1, kernel.shape[-1])
    return x.reshape(batch, across * across, -1) @ flat
