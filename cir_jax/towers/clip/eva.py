# SPDX-License-Identifier: Apache-2.0
"""The Vision Transformer of EVA-02-CLIP: image -> one feature, not normalised.

Beside learned positions, queries and keys of every layer are turned by angles that row and column
of a patch give (rotary positions); the class token is not turned. Keys have no bias, what attention
gathers is normed before its last product, and so is what the MLP gates:

    fc2(norm(silu(gate x) * fc1 x))

Sources: Fang et al., "EVA-02: A Visual Representation for Neon Genesis", arXiv 2303.11331; Sun et
al., "EVA-CLIP", arXiv 2303.15389; Su et al., "RoFormer", arXiv 2104.09864.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cir_jax.towers.attention import XLA, Attend
from cir_jax.towers.clip.sizes import EvaSize
from cir_jax.towers.layers import Dense, GatedMlp, LayerNorm, normal, run_stack, stack
from cir_jax.towers.patches import patches

EPSILON = 1e-6  # of every norm
GRID = 16  # patches across the images of the pretraining: rows of others are measured in its steps
BASE = 10_000.0  # of the wave lengths
STD = 0.02  # of class token and positions at the start


def angles(size: EvaSize) -> np.ndarray:
    """float32 [1 + (S / patch)^2, C / heads]: the angle of each token and channel, in radians.

    The first half of the channels is turned by the row, the second by the column, by a quarter as
    many wave lengths as a head has channels; two channels beside each other share one.
    """
    across, quarter = size.image // size.patch, size.width // size.heads // 4
    waves = BASE ** -(np.arange(quarter, dtype=np.float32) / quarter)
    steps = np.arange(across, dtype=np.float32) / across * GRID
    by_step = np.repeat(steps[:, None] * waves, 2, axis=1)  # [across, C / heads / 2]
    rows = np.broadcast_to(by_step[:, None], (across, across, 2 * quarter))
    columns = np.broadcast_to(by_step[None], (across, across, 2 * quarter))
    turned = np.concatenate([rows, columns], axis=-1).reshape(across**2, -1)
    return np.concatenate([np.zeros_like(turned[:1]), turned]).astype(np.float32)


def rotated(x: jax.Array, angle: jax.Array, heads: int) -> jax.Array:
    """[B, T, C] with each pair of channels of each head turned by its angle [T, C / heads]."""
    wide = x.astype(jnp.float32).reshape(*x.shape[:2], heads, -1)
    pairs = wide.reshape(*wide.shape[:-1], -1, 2)
    across = jnp.stack([-pairs[..., 1], pairs[..., 0]], axis=-1).reshape(wide.shape)
    angle = angle[None, :, None]
    turned = wide * jnp.cos(angle) + across * jnp.sin(angle)
    return turned.reshape(x.shape).astype(x.dtype)


class EvaAttention(nnx.Module):
    """[B, T, C] -> [B, T, C], with rotary positions and a norm before the last product.

    Args:
      size: width, heads and layers.
      attention: what computes it, see `cir_jax.towers.attention`.
    """

    def __init__(self, size: EvaSize, *, attention: str = XLA, rngs: nnx.Rngs):
        width, std = size.width, size.width**-0.5
        self.query = Dense(width, width, std, rngs=rngs)
        self.key = Dense(width, width, std, bias=False, rngs=rngs)
        self.value = Dense(width, width, std, rngs=rngs)
        self.norm = LayerNorm(width, epsilon=EPSILON)
        self.out = Dense(width, width, (width * 2 * size.layers) ** -0.5, rngs=rngs)
        self.attend = Attend(size.heads, width // size.heads, kind=attention)

    def __call__(self, x: jax.Array, angle: jax.Array) -> jax.Array:
        """`angle`: [T, C / heads], see `angles`."""
        heads = self.attend.heads
        query, key = (rotated(part(x), angle, heads) for part in (self.query, self.key))
        return self.out(self.norm(self.attend(query, key, self.value(x))))


class EvaBlock(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), [B, T, C] -> [B, T, C].

    Args:
      size: width, heads, layers and inner width.
      attention: what computes it, see `cir_jax.towers.attention`.
    """

    def __init__(self, size: EvaSize, *, attention: str = XLA, rngs: nnx.Rngs):
        self.norm1 = LayerNorm(size.width, epsilon=EPSILON)
        self.attention = EvaAttention(size, attention=attention, rngs=rngs)
        self.norm2 = LayerNorm(size.width, epsilon=EPSILON)
        width, inner = size.width, size.mlp or 4 * size.width
        std, out_std = (2 * width) ** -0.5, (width * 2 * size.layers) ** -0.5
        self.mlp = GatedMlp(width, inner, std, out_std, epsilon=EPSILON, rngs=rngs)

    def __call__(self, x: jax.Array, angle: jax.Array) -> jax.Array:
        """`angle`: [T, C / heads], see `angles`."""
        x = x + self.attention(self.norm1(x), angle)
        return x + self.mlp(self.norm2(x))


class EvaTransformer(nnx.Module):
    """Patches and a class token through EVA-02's blocks, [B, S, S, 3] -> [B, D] float32.

    The state of the class token is projected; it is not unit length.

    Args:
      size: see `cir_jax.towers.clip.sizes`.
      embedding: D.
      dtype: compute type.
      remat: what of a block is computed again in the backward pass, see `rematerialised` of
        `cir_jax.towers.layers`.
      attention: what computes it, see `cir_jax.towers.attention`.
    """

    def __init__(
        self,
        size: EvaSize,
        embedding: int,
        *,
        dtype: jnp.dtype = jnp.float32,
        remat: str | bool = "none",
        attention: str = XLA,
        rngs: nnx.Rngs,
    ):
        width, patch = size.width, size.patch
        self.patch_kernel = normal(rngs, (patch, patch, 3, width), (3 * patch * patch) ** -0.5)
        self.patch_bias = nnx.Param(jnp.zeros((width,), jnp.float32))
        self.class_token = normal(rngs, (width,), STD)
        self.position = normal(rngs, ((size.image // patch) ** 2 + 1, width), STD)
        options: dict[str, Any] = {"attention": attention}
        self.blocks = stack(lambda rngs: EvaBlock(size, rngs=rngs, **options), size.layers, rngs)
        self.norm_out = LayerNorm(width, epsilon=EPSILON)
        self.proj = normal(rngs, (width, embedding), width**-0.5)
        self.proj_bias = nnx.Param(jnp.zeros((embedding,), jnp.float32))
        self.size = size
        self.dtype = dtype
        self.remat = remat

    def tokens(self, pixels: jax.Array) -> jax.Array:
        """[B, S, S, 3] normalised -> [B, 1 + (S / patch)^2, C], before the last norm.

        Raises:
          UserError: the image is not of the tower's size.
        """
        x = patches(pixels, self.size.image, self.patch_kernel, self.dtype, self.patch_bias)
        first = jnp.broadcast_to(self.class_token[...].astype(x.dtype)[None, None], x[:, :1].shape)
        x = jnp.concatenate([first, x], axis=1) + self.position[...].astype(x.dtype)[None]
        angle = jnp.asarray(angles(self.size))
        return run_stack(self.blocks, x, lambda x, block, key: block(x, angle), remat=self.remat)

    def __call__(self, pixels: jax.Array) -> jax.Array:
        """[B, S, S, 3] normalised -> [B, D] float32, not unit length."""
        return self.feature(self.tokens(pixels))

    def feature(self, tokens: jax.Array) -> jax.Array:
        """What `tokens` gives, [B, T, C] -> [B, D] float32, not unit length."""
        read = self.norm_out(tokens[:, 0].astype(jnp.float32))
        return read @ self.proj[...] + self.proj_bias[...][None]
