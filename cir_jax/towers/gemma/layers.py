# SPDX-License-Identifier: Apache-2.0
"""Parts that both encoders of Gemma have: RMS norm, rotated positions, gated MLP.

Sources: Zhang and Sennrich, "Root Mean Square Layer Normalization", arXiv 1910.07467; Su et al.,
"RoFormer" (rotary positions), arXiv 2104.09864; Shazeer, "GLU Variants Improve Transformer", arXiv
2002.05202.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cir_jax.towers.layers import Dense

EPSILON = 1e-6  # of every norm


def rms_normalised(x: jax.Array) -> jax.Array:
    """[..., C] -> float32 [..., C] over the root of the mean of its squares."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + EPSILON)


class RMSNorm(nnx.Module):
    """`rms_normalised` times a scale, [..., C] -> [..., C], in the type of x.

    Args:
      width: C.
    """

    # nnx.RMSNorm multiplies in the wider of the types of input and scale, and returns it.
    def __init__(self, width: int):
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (1,) * (x.ndim - 1) + (-1,)
        return (rms_normalised(x) * self.scale[...].reshape(shape)).astype(x.dtype)


def gelu_tanh(x: jax.Array) -> jax.Array:
    """The approximation of GELU by tanh, which every Gemma is trained with."""
    return jax.nn.gelu(x, approximate=True)


class GatedMlp(nnx.Module):
    """down(gelu(gate(x)) * up(x)), [..., C] -> [..., C], without biases.

    Args:
      width: C.
      inner: width between the products.
    """

    def __init__(self, width: int, inner: int, *, rngs: nnx.Rngs):
        self.gate = Dense(width, inner, width**-0.5, bias=False, rngs=rngs)
        self.up = Dense(width, inner, width**-0.5, bias=False, rngs=rngs)
        self.down = Dense(inner, width, inner**-0.5, bias=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(gelu_tanh(self.gate(x)) * self.up(x))


def angles(positions: jax.Array, width: int, theta: float) -> jax.Array:
    """Positions [..., T] -> angles [..., T, W / 2] of the pairs of channels of a head, float32.

    Args:
      positions: whole numbers.
      width: W, channels that are rotated.
      theta: base of the wave lengths, which grow from 2 pi to nearly 2 pi theta.
    """
    frequency = 1.0 / theta ** (np.arange(0, width, 2, dtype=np.float32) / np.float32(width))
    shape = (1,) * positions.ndim + (-1,)
    return positions.astype(jnp.float32)[..., None] * jnp.asarray(frequency).reshape(shape)


def rotated(x: jax.Array, by: jax.Array) -> jax.Array:
    """Rotates channel i of a head with channel i + W / 2.

    Args:
      x: [B, T, H, W].
      by: `angles`, [B, T, W / 2] or [1, T, W / 2].

    Returns:
      [B, T, H, W] in the type of x.
    """
    cos, sin = jnp.cos(by)[:, :, None], jnp.sin(by)[:, :, None]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
