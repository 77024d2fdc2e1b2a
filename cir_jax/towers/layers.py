# SPDX-License-Identifier: Apache-2.0
"""Layers of the encoders: dense, layer norm, attention, and a pre-norm transformer run by scan.

Parameters are float32; matrix products run in the compute type; normalisation and softmax run in
float32. `stack=(L,)` gives every parameter a leading layer axis, so that one compiled block serves
all layers: a 24-layer tower compiles as fast as a single layer.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cir_jax.data import pixels as pixel_constants


def normal(rngs: nnx.Rngs, shape: tuple[int, ...], std: float) -> nnx.Param:
    """A float32 parameter drawn from N(0, std^2)."""
    return nnx.Param(std * jax.random.normal(rngs.params(), shape, jnp.float32))


def quick_gelu(x: jax.Array) -> jax.Array:
    """x * sigmoid(1.702 x), the activation of every released CLIP."""
    return x * jax.nn.sigmoid(1.702 * x)


def gelu(x: jax.Array) -> jax.Array:
    """x * Phi(x) by the error function; the usual approximation by tanh is another function."""
    return jax.nn.gelu(x, approximate=False)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": gelu}


DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}  # compute types


def normalize(pixels: jax.Array) -> jax.Array:
    """uint8 [..., 3] -> float32, CLIP's mean and deviation; float input passes unchanged.

    Done on the device: a quarter of the bytes cross to it.
    """
    if pixels.dtype != jnp.uint8:
        return pixels
    mean = jnp.asarray(pixel_constants.IMAGE_MEAN, jnp.float32)
    deviation = jnp.asarray(pixel_constants.IMAGE_STD, jnp.float32)
    shape = (1,) * (pixels.ndim - 1) + (3,)
    scaled = pixels.astype(jnp.float32) / 255.0
    return (scaled - mean.reshape(shape)) / deviation.reshape(shape)


def unit(x: jax.Array) -> jax.Array:
    """Divides by the norm over the last axis, or by 1e-12 if that is larger; float32."""
    x = x.astype(jnp.float32)
    # The limit is put on the square: the gradient of a norm at zero is not a number.
    squared = jnp.square(x).sum(axis=-1, keepdims=True)
    return x / jnp.sqrt(jnp.maximum(squared, 1e-24))


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes values with probability `rate` and scales up the rest; nothing without a key."""
    if key is None or rate == 0:
        return x
    kept = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(kept, x / (1 - rate), jnp.zeros((), x.dtype))


class Dense(nnx.Module):
    """x @ kernel + bias, [..., I] -> [..., O]."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        std: float,
        *,
        bias: bool = True,
        rngs: nnx.Rngs,
        stack: tuple = (),
    ):
        self.kernel = normal(rngs, (*stack, inputs, outputs), std)
        self.bias = nnx.Param(jnp.zeros((*stack, outputs), jnp.float32)) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        product = x @ self.kernel[...].astype(x.dtype)
        if self.bias is None:
            return product
        bias = self.bias[...].astype(x.dtype)
        return product + bias.reshape((1,) * (x.ndim - 1) + (-1,))


class LayerNorm(nnx.Module):
    """Normalises the last axis in float32; the result has the type of its input."""

    def __init__(self, width: int, *, epsilon: float = 1e-5, stack: tuple = ()):
        self.scale = nnx.Param(jnp.ones((*stack, width), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((*stack, width), jnp.float32))
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        wide = wide - wide.mean(axis=-1, keepdims=True)
        variance = jnp.square(wide).mean(axis=-1, keepdims=True)
        wide = wide * jax.lax.rsqrt(variance + self.epsilon)
        shape = (1,) * (x.ndim - 1) + (-1,)
        return (wide * self.scale[...].reshape(shape) + self.bias[...].reshape(shape)).astype(
            x.dtype
        )


class Attention(nnx.Module):
    """Multi-head self-attention, [B, T, C] -> [B, T, C]; softmax in float32."""

    def __init__(
        self,
        width: int,
        heads: int,
        std: float,
        out_std: float,
        *,
        causal: bool,
        key_bias: bool = True,
        rngs: nnx.Rngs,
        stack: tuple = (),
    ):
        # Separate kernels: a shard of the fused one would mix queries, keys and values.
        self.query = Dense(width, width, std, rngs=rngs, stack=stack)
        self.key = Dense(width, width, std, bias=key_bias, rngs=rngs, stack=stack)
        self.value = Dense(width, width, std, rngs=rngs, stack=stack)
        self.out = Dense(width, width, out_std, rngs=rngs, stack=stack)
        self.heads = heads
        self.causal = causal

    def __call__(self, x: jax.Array) -> jax.Array:
        batch, length, width = x.shape

        def split(y: jax.Array) -> jax.Array:
            return y.reshape(batch, length, self.heads, width // self.heads)

        mixed = jax.nn.dot_product_attention(
            split(self.query(x)), split(self.key(x)), split(self.value(x)), is_causal=self.causal
        )
        return self.out(mixed.reshape(batch, length, width))


class Mlp(nnx.Module):
    """C -> inner width -> C, with one of ACTIVATIONS between."""

    def __init__(
        self,
        width: int,
        inner: int,
        std: float,
        out_std: float,
        *,
        activation: str,
        rngs: nnx.Rngs,
        stack: tuple = (),
    ):
        self.fc1 = Dense(width, inner, std, rngs=rngs, stack=stack)
        self.fc2 = Dense(inner, width, out_std, rngs=rngs, stack=stack)
        self.activation = activation

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc2(ACTIVATIONS[self.activation](self.fc1(x)))


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)).

    Args:
      size: width, heads, layers and inner width (0 means four times the width).
      causal: a token sees itself and what is before it.
      activation: one of ACTIVATIONS.
      epsilon: of both norms.
      key_bias: False leaves the bias of the attention keys out.
      stack: (layers,), or () for a single block.
    """

    def __init__(
        self,
        size: Any,
        *,
        causal: bool,
        activation: str,
        epsilon: float = 1e-5,
        key_bias: bool = True,
        rngs: nnx.Rngs,
        stack: tuple,
    ):
        width, heads, layers = size.width, size.heads, size.layers
        # Standard deviations of the CLIP paper's initialisation.
        std, out_std, mlp_std = width**-0.5, (width * 2 * layers) ** -0.5, (2 * width) ** -0.5
        self.norm1 = LayerNorm(width, epsilon=epsilon, stack=stack)
        self.attention = Attention(
            width,
            heads,
            std,
            out_std,
            causal=causal,
            key_bias=key_bias,
            rngs=rngs,
            stack=stack,
        )
        self.norm2 = LayerNorm(width, epsilon=epsilon, stack=stack)
        inner = size.mlp or 4 * width
        self.mlp = Mlp(
            width, inner, mlp_std, out_std, activation=activation, rngs=rngs, stack=stack
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def run_blocks(blocks: Block, x: jax.Array, *, remat: bool) -> jax.Array:
    """Applies the stacked layers of `blocks` one after the other, [B, T, C] -> [B, T, C]."""
    return run_stack(blocks, x, lambda block, x, key: block(x), remat=remat)


def run_stack(
    stack: nnx.Module,
    x: jax.Array,
    apply: Callable[[Any, jax.Array, jax.Array | None], jax.Array],
    key: jax.Array | None = None,
    *,
    remat: bool,
) -> jax.Array:
    """Applies the layers of a module whose parameters have a leading layer axis, by one scan.

    Args:
      stack: the module.
      x: what goes through, [B, T, C].
      apply: (one layer, x, its dropout key or None) -> x.
      key: of the dropout; None for none.
      remat: keep only the input of each layer and compute the rest again in the backward pass.
    """
    graph, stacked = nnx.split(stack)
    count = len(jax.tree.leaves(stacked)[0])
    keys = None if key is None else jax.random.split(key, count)

    def layer(x: jax.Array, row: tuple) -> tuple[jax.Array, None]:
        params, key = row
        return apply(nnx.merge(graph, params), x, key), None

    # A scan already keeps the two passes apart; the barriers of prevent_cse would only cost time.
    body: Callable = jax.checkpoint(layer, prevent_cse=False) if remat else layer
    return jax.lax.scan(body, x, (stacked, keys))[0]
