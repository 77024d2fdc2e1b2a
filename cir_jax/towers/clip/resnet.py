# SPDX-License-Identifier: Apache-2.0
"""The modified ResNet of CLIP: image -> one feature, not normalised.

Differences from a plain ResNet: a stem of three convolutions and an average pool, strides done by
average pools, and an attention pool in place of the last mean. BatchNorm stays in evaluation mode
even in training, as in every released CLIP4CIR run: its statistics never change, while its scale
and bias are ordinary parameters.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cir_jax.errors import UserError
from cir_jax.runtime.sharding import keep_rows
from cir_jax.towers.attention import Attend
from cir_jax.towers.clip.sizes import ResNetSize
from cir_jax.towers.layers import Dense, draw, in_type_of_input, normal, rematerialised

EXPANSION = 4  # output channels of a bottleneck per inner channel


def average_pool(x: jax.Array, stride: int) -> jax.Array:
    """[B, H, W, C] -> [B, H // stride, W // stride, C]; a rest at the border is dropped."""
    if stride == 1:
        return x
    batch, height, width, channels = x.shape
    rows, columns = height // stride, width // stride
    x = x[:, : rows * stride, : columns * stride]
    return x.reshape(batch, rows, stride, columns, stride, channels).mean(axis=(2, 4))


class Conv(nnx.Conv):
    """A square convolution without bias, padded to keep the size at stride 1, in the type of x.

    [B, H, W, I] -> [B, H / stride, W / stride, O].

    Args:
      inputs: I.
      outputs: O.
      side: of the kernel; odd.
      stride: 1 or 2.
    """

    def __init__(self, inputs: int, outputs: int, side: int, *, stride: int = 1, rngs: nnx.Rngs):
        std = (2 / (side * side * inputs)) ** 0.5
        super().__init__(
            inputs,
            outputs,
            (side, side),
            stride,
            padding=(side - 1) // 2,  # as in PyTorch; "SAME" pads less on one side at stride 2
            use_bias=False,
            kernel_init=lambda key, shape, dtype: draw(key, shape, std),
            promote_dtype=in_type_of_input,
            rngs=rngs,
        )

    def __call__(self, x: jax.Array, out_sharding: Any = None) -> jax.Array:
        return keep_rows(super().__call__(keep_rows(x), out_sharding))


class FixedBatchNorm(nnx.Module):
    """BatchNorm in evaluation mode, [B, H, W, C] -> [B, H, W, C] in float32, in the type of x.

    `mean` and `var` are statistics, not parameters.

    Args:
      channels: C.
      scale: of the start.
      epsilon: is added to the variance; PyTorch's default, with which CLIP was trained.
    """

    # nnx.BatchNorm subtracts the mean from every value first. Ours is one multiplication and one
    # addition a value; with random statistics 38 % of the float32 values differ in the last bit.
    def __init__(self, channels: int, *, scale: float = 1.0, epsilon: float = 1e-5):
        self.scale = nnx.Param(jnp.full((channels,), scale, jnp.float32))
        self.bias = nnx.Param(jnp.zeros((channels,), jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros((channels,), jnp.float32))
        self.var = nnx.BatchStat(jnp.ones((channels,), jnp.float32))
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        factor = self.scale[...] * jax.lax.rsqrt(self.var[...] + self.epsilon)
        offset = self.bias[...] - self.mean[...] * factor
        shape = (1, 1, 1, -1)
        wide = x.astype(jnp.float32) * factor.reshape(shape) + offset.reshape(shape)
        return wide.astype(x.dtype)


class Bottleneck(nnx.Module):
    """1x1, 3x3, pool, 1x1, plus a shortcut that is pooled and projected where shapes differ.

    [B, H, W, C] -> [B, H / stride, W / stride, 4 planes].

    Args:
      inputs: C.
      planes: channels of the inner convolutions.
      stride: of the pool.
    """

    def __init__(self, inputs: int, planes: int, stride: int, *, rngs: nnx.Rngs):
        outputs = planes * EXPANSION
        self.conv1 = Conv(inputs, planes, 1, rngs=rngs)
        self.norm1 = FixedBatchNorm(planes)
        self.conv2 = Conv(planes, planes, 3, rngs=rngs)
        self.norm2 = FixedBatchNorm(planes)
        self.conv3 = Conv(planes, outputs, 1, rngs=rngs)
        # A small start keeps the residual stream from growing with depth: with fixed statistics
        # nothing else would, when a tower is trained from nothing.
        self.norm3 = FixedBatchNorm(outputs, scale=0.2)
        self.stride = stride
        self.projects = stride > 1 or inputs != outputs
        if self.projects:
            self.shortcut_conv = Conv(inputs, outputs, 1, rngs=rngs)
            self.shortcut_norm = FixedBatchNorm(outputs)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = jax.nn.relu(self.norm1(self.conv1(x)))
        y = average_pool(jax.nn.relu(self.norm2(self.conv2(y))), self.stride)
        y = self.norm3(self.conv3(y))
        if self.projects:
            x = self.shortcut_norm(self.shortcut_conv(average_pool(x, self.stride)))
        return jax.nn.relu(x + y)


class AttentionPool(nnx.Module):
    """Attention whose only query is the mean over positions, [B, H, W, C] -> [B, D] float32.

    Args:
      spatial: H = W.
      width: C.
      heads: number of heads, a divisor of C.
      outputs: D.
    """

    def __init__(self, spatial: int, width: int, heads: int, outputs: int, *, rngs: nnx.Rngs):
        std = width**-0.5
        self.position = normal(rngs, (spatial * spatial + 1, width), std)
        self.query = Dense(width, width, std, rngs=rngs)
        self.key = Dense(width, width, std, rngs=rngs)
        self.value = Dense(width, width, std, rngs=rngs)
        self.out = Dense(width, outputs, std, rngs=rngs)
        self.attend = Attend(heads, width // heads)  # one query has no scores worth a kernel

    def __call__(self, x: jax.Array) -> jax.Array:
        batch, _, _, width = x.shape
        x = x.reshape(batch, -1, width)
        x = jnp.concatenate([x.mean(axis=1, keepdims=True), x], axis=1)
        x = x + self.position[...].astype(x.dtype)[None]
        mixed = self.attend(self.query(x[:, :1]), self.key(x), self.value(x))
        # One row per image costs nothing: no rounding to the compute type in the feature itself.
        return self.out(mixed.reshape(batch, width).astype(jnp.float32))


class ModifiedResNet(nnx.Module):
    """The ResNet of CLIP, [B, S, S, 3] -> [B, D] float32, not unit length.

    Args:
      size: see `cir_jax.towers.clip.sizes`.
      embedding: D.
      dtype: compute type.
      remat: what of a bottleneck is computed again in the backward pass, see `rematerialised` of
        `cir_jax.towers.layers`.
    """

    def __init__(
        self,
        size: ResNetSize,
        embedding: int,
        *,
        dtype: jnp.dtype = jnp.float32,
        remat: str | bool = "none",
        rngs: nnx.Rngs,
    ):
        width = size.width
        self.conv1 = Conv(3, width // 2, 3, stride=2, rngs=rngs)
        self.norm1 = FixedBatchNorm(width // 2)
        self.conv2 = Conv(width // 2, width // 2, 3, rngs=rngs)
        self.norm2 = FixedBatchNorm(width // 2)
        self.conv3 = Conv(width // 2, width, 3, rngs=rngs)
        self.norm3 = FixedBatchNorm(width)
        inputs = width
        for number, blocks in enumerate(size.blocks, start=1):
            planes = width * 2 ** (number - 1)
            stage = []
            for i in range(blocks):
                stride = 2 if number > 1 and i == 0 else 1
                stage.append(Bottleneck(inputs, planes, stride, rngs=rngs))
                inputs = planes * EXPANSION
            setattr(self, f"stage{number}", nnx.List(stage))
        self.pool = AttentionPool(size.image // 32, inputs, size.heads, embedding, rngs=rngs)
        self.size = size
        self.dtype = dtype
        self.remat = remat

    def features(self, pixels: jax.Array) -> jax.Array:
        """[B, S, S, 3] normalised -> [B, S/32, S/32, C], before the attention pool.

        Raises:
          UserError: the image is not of the tower's size.
        """
        _, height, width, _ = pixels.shape
        side = self.size.image
        if (height, width) != (side, side):
            raise UserError(
                f"image of {height}x{width} pixels, but the tower takes {side}x{side}; "
                "set model.image_size=0"
            )
        x = pixels.astype(self.dtype)
        for number in (1, 2, 3):
            conv, norm = getattr(self, f"conv{number}"), getattr(self, f"norm{number}")
            x = jax.nn.relu(norm(conv(x)))
        x = average_pool(x, 2)
        for number in (1, 2, 3, 4):
            for block in getattr(self, f"stage{number}"):
                x = self._run(block, x)
        return x

    def __call__(self, pixels: jax.Array) -> jax.Array:
        """[B, S, S, 3] normalised -> [B, D] float32, not unit length."""
        return self.pool(self.features(pixels))

    def _run(self, block: Bottleneck, x: jax.Array) -> jax.Array:
        return rematerialised(Bottleneck.__call__, self.remat, apart=True)(block, x)
