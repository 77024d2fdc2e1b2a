# SPDX-License-Identifier: Apache-2.0
"""The image encoder of EmbeddingGemma 2: patches to soft tokens of the encoder behind it.

A transformer of norms before and behind each part, with learned positions along both sides and
rotations by both; the patches of each square of `pool` x `pool` are then averaged, and projected
into the width of the tokens. Its images are square. An image of other sides is no mere padding: the
published processor gives it another number of patches along each side, in the same budget.
Source: `Gemma4VisionModel` of transformers 5.24, of which EmbeddingGemma 2 has 16 layers.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cir_jax.towers.attention import XLA, Attend
from cir_jax.towers.gemma.layers import GatedMlp, RMSNorm, angles, rms_normalised, rotated
from cir_jax.towers.gemma.sizes import VisionSize
from cir_jax.towers.layers import Dense, normal, run_stack, stack
from cir_jax.towers.patches import patches

THETA = 100.0  # base of the rotations


class Attention(nnx.Module):
    """Multi-head self-attention of normalised queries, keys and values, [B, N, C] -> [B, N, C].

    Args:
      size: of the encoder.
      attention: what computes it, see `cir_jax.towers.attention`.
    """

    def __init__(self, size: VisionSize, *, attention: str = XLA, rngs: nnx.Rngs):
        width, inner = size.width, size.heads * size.head
        self.query = Dense(width, inner, width**-0.5, bias=False, rngs=rngs)
        self.key = Dense(width, inner, width**-0.5, bias=False, rngs=rngs)
        self.value = Dense(width, inner, width**-0.5, bias=False, rngs=rngs)
        self.out = Dense(inner, width, inner**-0.5, bias=False, rngs=rngs)
        self.query_norm, self.key_norm = RMSNorm(size.head), RMSNorm(size.head)
        # The norms of queries and keys have taken the place of the usual scale.
        self.attend = Attend(size.heads, size.head, scale=1.0, kind=attention)

    def __call__(self, x: jax.Array, by: tuple[jax.Array, jax.Array]) -> jax.Array:
        """`by`: angles of both sides, [1, N, W / 4] each."""

        def heads(x: jax.Array) -> jax.Array:
            return x.reshape(*x.shape[:2], self.attend.heads, self.attend.width)

        def turned(x: jax.Array) -> jax.Array:
            """The first half of the channels by the column of a patch, the second by its row."""
            halves = zip(jnp.split(x, 2, axis=-1), by, strict=True)
            return jnp.concatenate([rotated(half, angle) for half, angle in halves], axis=-1)

        query = turned(self.query_norm(heads(self.query(x))))
        key = turned(self.key_norm(heads(self.key(x))))
        value = rms_normalised(heads(self.value(x))).astype(x.dtype)
        query, key, value = (each.reshape(*x.shape[:2], -1) for each in (query, key, value))
        return self.out(self.attend(query, key, value))


class Block(nnx.Module):
    """x + norm(attention(norm(x))), then x + norm(mlp(norm(x))), [B, N, C] -> [B, N, C]."""

    def __init__(self, size: VisionSize, *, attention: str = XLA, rngs: nnx.Rngs):
        self.norm1, self.norm1_out = RMSNorm(size.width), RMSNorm(size.width)
        self.attention = Attention(size, attention=attention, rngs=rngs)
        self.norm2, self.norm2_out = RMSNorm(size.width), RMSNorm(size.width)
        self.mlp = GatedMlp(size.width, size.mlp, rngs=rngs)

    def __call__(self, x: jax.Array, by: tuple[jax.Array, jax.Array]) -> jax.Array:
        x = x + self.norm1_out(self.attention(self.norm1(x), by))
        return x + self.norm2_out(self.mlp(self.norm2(x)))


class VisionEncoder(nnx.Module):
    """Pixels [B, S, S, 3] -> soft tokens [B, R, C'] float32, row by row.

    Args:
      size: see `cir_jax.towers.gemma.sizes`.
      out: C', width of the encoder that reads the tokens.
      dtype: compute type.
      remat: what of a layer is computed again in the backward pass, see `rematerialised` of
        `cir_jax.towers.layers`.
      attention: what computes it, see `cir_jax.towers.attention`.
    """

    def __init__(
        self,
        size: VisionSize,
        out: int,
        *,
        dtype: jnp.dtype = jnp.float32,
        remat: str | bool = "none",
        attention: str = XLA,
        rngs: nnx.Rngs,
    ):
        values = 3 * size.patch**2
        self.patch = Dense(values, size.width, values**-0.5, bias=False, rngs=rngs)
        self.position = normal(rngs, (2, size.positions, size.width), size.width**-0.5)
        options: dict[str, Any] = {"attention": attention}
        self.blocks = stack(lambda rngs: Block(size, rngs=rngs, **options), size.layers, rngs)
        self.proj = Dense(size.width, out, size.width**-0.5, bias=False, rngs=rngs)
        self.size = size
        self.dtype = dtype
        self.remat = remat

    def __call__(self, pixels: jax.Array) -> jax.Array:
        """[B, S, S, 3] of -1 to 1 -> [B, R, C'].

        Raises:
          UserError: the images are of another size.
        """
        size = self.size
        across = size.image // size.patch
        kernel = self.patch.kernel[...].reshape(size.patch, size.patch, 3, -1)
        columns, rows = self.position[0, :across], self.position[1, :across]
        position = (rows[:, None] + columns[None]).reshape(1, across**2, -1)
        x = patches(pixels, size.image, kernel, self.dtype) + position.astype(self.dtype)
        row, column = np.divmod(np.arange(across**2), across)
        by = tuple(angles(jnp.asarray(p)[None], size.head // 2, THETA) for p in (column, row))
        x = run_stack(self.blocks, x, lambda x, block, key: block(x, by), remat=self.remat)
        k = across // size.pool
        squares = x.astype(jnp.float32).reshape(len(x), k, size.pool, k, size.pool, -1)
        pooled = squares.mean(axis=(2, 4)).reshape(len(x), k * k, -1) * size.width**0.5
        return self.proj(rms_normalised(pooled).astype(self.dtype)).astype(jnp.float32)
