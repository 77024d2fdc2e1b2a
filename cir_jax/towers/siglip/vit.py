# SPDX-License-Identifier: Apache-2.0
"""The image tower of SigLIP: patches alone, pooled by attention of one learned query.

Source: Zhai et al., arXiv 2303.15343, by its released code; the pooling is the "multihead attention
pooling" of Zhai et al., "Scaling Vision Transformers" (arXiv 2106.04560), section 3.2.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cir_jax.towers.attention import XLA, Attend
from cir_jax.towers.clip.sizes import VisionTransformerSize
from cir_jax.towers.layers import (
    Block,
    Dense,
    LayerNorm,
    Mlp,
    normal,
    run_blocks,
    stack,
)
from cir_jax.towers.patches import patches

ACTIVATION = "gelu_tanh"
EPSILON = 1e-6  # of every norm


class PoolAttention(nnx.Module):
    """One query per image over all of its tokens: [B, 1, C] and [B, T, C] -> [B, 1, C].

    Args:
      width: C.
      heads: number of heads, a divisor of C.
    """

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
        std = width**-0.5
        self.query = Dense(width, width, std, rngs=rngs)
        self.key = Dense(width, width, std, rngs=rngs)
        self.value = Dense(width, width, std, rngs=rngs)
        self.out = Dense(width, width, std, rngs=rngs)
        # Always by XLA: of one query there is next to nothing to store.
        self.attend = Attend(heads, width // heads)

    def __call__(self, probe: jax.Array, x: jax.Array) -> jax.Array:
        return self.out(self.attend(self.query(probe), self.key(x), self.value(x)))


class MapHead(nnx.Module):
    """Attention of a learned query, and an MLP beside what it found: [B, T, C] -> [B, C] float32.

    Args:
      size: of the tower.
    """

    def __init__(self, size: VisionTransformerSize, *, rngs: nnx.Rngs):
        width = size.width
        self.probe = normal(rngs, (1, 1, width), width**-0.5)
        self.attention = PoolAttention(width, size.heads, rngs=rngs)
        self.norm = LayerNorm(width, epsilon=EPSILON)
        inner, std = size.mlp or 4 * width, (2 * width) ** -0.5
        self.mlp = Mlp(width, inner, std, std, activation=ACTIVATION, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        probe = jnp.broadcast_to(self.probe[...].astype(x.dtype), (len(x), 1, x.shape[-1]))
        # One token per image costs nothing: no rounding to the compute type in the feature itself.
        found = self.attention(probe, x)[:, 0].astype(jnp.float32)
        return found + self.mlp(self.norm(found))


class SiglipVisionTransformer(nnx.Module):
    """Patches through pre-norm blocks and a `MapHead`, [B, S, S, 3] -> [B, C] float32.

    The feature is not of unit length.

    Args:
      size: see `cir_jax.towers.siglip.sizes`.
      dtype: compute type.
      remat: what of a block is computed again in the backward pass, see `rematerialised` of
        `cir_jax.towers.layers`.
      attention: what computes that of the blocks, see `cir_jax.towers.attention`.
    """

    def __init__(
        self,
        size: VisionTransformerSize,
        *,
        dtype: jnp.dtype = jnp.float32,
        remat: str | bool = "none",
        attention: str = XLA,
        rngs: nnx.Rngs,
    ):
        width, patch = size.width, size.patch
        self.patch_kernel = normal(rngs, (patch, patch, 3, width), (3 * patch * patch) ** -0.5)
        self.patch_bias = nnx.Param(jnp.zeros((width,), jnp.float32))
        self.position = normal(rngs, ((size.image // patch) ** 2, width), width**-0.5)
        options: dict[str, Any] = {
            "activation": ACTIVATION, "epsilon": EPSILON, "attention": attention,
        }  # fmt: skip
        self.blocks = stack(
            lambda rngs: Block(size, causal=False, rngs=rngs, **options), size.layers, rngs
        )
        self.norm_out = LayerNorm(width, epsilon=EPSILON)
        self.head = MapHead(size, rngs=rngs)
        self.size = size
        self.dtype = dtype
        self.remat = remat

    def tokens(self, pixels: jax.Array) -> jax.Array:
        """[B, S, S, 3] normalised -> [B, (S / patch)^2, C], before the last norm.

        Raises:
          UserError: the image is not of the tower's size.
        """
        x = patches(pixels, self.size.image, self.patch_kernel, self.dtype, self.patch_bias)
        x = x + self.position[...].astype(x.dtype)[None]
        return run_blocks(self.blocks, x, remat=self.remat)

    def __call__(self, pixels: jax.Array) -> jax.Array:
        """[B, S, S, 3] normalised -> [B, C] float32, not unit length."""
        return self.feature(self.tokens(pixels))

    def feature(self, tokens: jax.Array) -> jax.Array:
        """What `tokens` gives, [B, T, C] -> [B, C] float32, not unit length."""
        return self.head(self.norm_out(tokens))
