# SPDX-License-Identifier: Apache-2.0
"""Layers of the encoders: dense, layer norm, attention, and a pre-norm transformer run by scan.

Parameters are float32; matrix products run in the type of their input, which a tower casts to its
compute type; normalisation and softmax run in float32. `stack` makes all layers of a tower one
module whose parameters have a leading layer axis, and `run_stack` runs it: one compiled block
serves all layers, so that a 24-layer tower compiles as fast as a single layer.

Parts of flax stand wherever they have our parameters and give our bits. Where not, the part is ours
and a comment says why.
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import flatten_dict

from cir_jax.errors import UserError, nearest
from cir_jax.runtime.sharding import keep_rows
from cir_jax.towers.attention import XLA, Attend
from cir_jax.towers.clip.sizes import TextSize, VisionTransformerSize

LAYERS = "layers"  # name of the axis over which `stack` maps
STACKED = "stacked"  # attribute of a module that `stack` made
FEW = 8  # a product over n values is made again if both its sides are over n times this
M = TypeVar("M", bound=nnx.Module)
F = TypeVar("F", bound=Callable)


def draw(key: jax.Array, shape: tuple[int, ...], std: float) -> jax.Array:
    """Float32 values from N(0, std^2); inside `stack`, those of one layer."""
    try:
        layers = jax.lax.axis_size(LAYERS)
    except NameError:  # no layer of a stack
        return std * jax.random.normal(key, shape, jnp.float32)
    # All layers are rows of one draw from one key. A key per layer would do as well, but the values
    # of a seed would not be those of earlier releases. It costs nothing: XLA sees that taking row i
    # for layer i is the draw itself.
    return (std * jax.random.normal(key, (layers, *shape), jnp.float32))[jax.lax.axis_index(LAYERS)]


def normal(rngs: nnx.Rngs, shape: tuple[int, ...], std: float) -> nnx.Param:
    """A float32 parameter drawn from N(0, std^2)."""
    return nnx.Param(draw(rngs.params(), shape, std))


def quick_gelu(x: jax.Array) -> jax.Array:
    """x * sigmoid(1.702 x), the activation of every released CLIP."""
    return x * jax.nn.sigmoid(1.702 * x)


def gelu(x: jax.Array) -> jax.Array:
    """x * Phi(x) by the error function; the usual approximation by tanh is another function."""
    return jax.nn.gelu(x, approximate=False)


def gelu_tanh(x: jax.Array) -> jax.Array:
    """The approximation of `gelu` by tanh."""
    return jax.nn.gelu(x, approximate=True)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": gelu, "gelu_tanh": gelu_tanh, "relu": jax.nn.relu}


DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}  # compute types


def unit(x: jax.Array) -> jax.Array:
    """[..., D] -> [..., D] float32, over its norm, or over 1e-12 if that is larger."""
    x = x.astype(jnp.float32)
    # The limit is put on the square: the gradient of a norm at zero is not a number.
    squared = jnp.square(x).sum(axis=-1, keepdims=True)
    return x / jnp.sqrt(jnp.maximum(squared, 1e-24))


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes values with probability `rate` and scales up the rest; nothing without a key."""
    # The key comes with the call: a layer that held one would add it to the parameters.
    return nnx.Dropout(rate, deterministic=key is None)(x, rngs=key)


def in_type_of_input(arrays: Any, /, *, dtype: Any = None, inexact: bool = True) -> Any:
    """Input and parameters of a layer of flax, all in the type of the input.

    flax would take the wider type, and so compute in float32 whatever the input is.
    """
    x, *parameters = arrays
    return x, *(p if p is None else p.astype(x.dtype) for p in parameters)


class Dense(nnx.Linear):
    """x @ kernel + bias, [..., I] -> [..., O], in the type of x.

    Args:
      inputs: I.
      outputs: O.
      std: of the random kernel; the bias starts at zero.
      bias: False leaves it out.
    """

    def __init__(self, inputs: int, outputs: int, std: float, *, bias: bool = True, rngs: nnx.Rngs):
        key = rngs.params()
        super().__init__(
            inputs,
            outputs,
            use_bias=bias,
            kernel_init=lambda _, shape, dtype: draw(key, shape, std),
            promote_dtype=in_type_of_input,
            # nnx.Linear also takes a key for the zeros of the bias. Taken from `rngs` it would
            # change what every later layer draws from the same seed.
            rngs=nnx.Rngs(0),
        )

    def __call__(self, x: jax.Array, out_sharding: Any = None) -> jax.Array:
        return keep_rows(super().__call__(keep_rows(x), out_sharding))


class LayerNorm(nnx.Module):
    """Normalises the last axis, [..., C] -> [..., C], in float32; the result has the type of x.

    Args:
      width: C.
      epsilon: is added to the variance. 1e-5 is that of CLIP and PyTorch's default; it is part of
        the weights, since other values give other features.
    """

    # nnx.LayerNorm multiplies by (scale * 1 / deviation), not by one after the other. With random
    # scales a third of its float32 values differ from ours in the last bit (by 1.5e-7 of the
    # largest at most), where ours are those that trained runs and stored banks were made with.
    def __init__(self, width: int, *, epsilon: float = 1e-5):
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((width,), jnp.float32))
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        # bfloat16 keeps 8 bits: where the mean is far from zero, differences to it are lost.
        wide = x.astype(jnp.float32)
        wide = wide - wide.mean(axis=-1, keepdims=True)
        variance = jnp.square(wide).mean(axis=-1, keepdims=True)
        wide = wide * jax.lax.rsqrt(variance + self.epsilon)
        shape = (1,) * (x.ndim - 1) + (-1,)
        return (wide * self.scale[...].reshape(shape) + self.bias[...].reshape(shape)).astype(
            x.dtype
        )


class Attention(nnx.Module):
    """Multi-head self-attention, [B, T, C] -> [B, T, C]; softmax in float32.

    Args:
      width: C.
      heads: number of heads, a divisor of C.
      std: of the random kernels of queries, keys and values.
      out_std: of the random output kernel.
      causal: a token sees itself and what is before it.
      masks: some calls have a mask.
      key_bias: False leaves the bias of the keys out, as EVA does. It would add the same to all
        logits of a query, so the softmax does not see it.
      attention: what computes it, see `cir_jax.towers.attention`.
    """

    # nnx.MultiHeadAttention splits its kernels by heads, [C, H, C / H]; ours are [C, C], as
    # checkpoints, sharding rules and weight rules name them.
    def __init__(
        self,
        width: int,
        heads: int,
        std: float,
        out_std: float,
        *,
        causal: bool,
        masks: bool = False,
        key_bias: bool = True,
        attention: str = XLA,
        rngs: nnx.Rngs,
    ):
        # Separate kernels: a shard of the fused one would mix queries, keys and values.
        self.query = Dense(width, width, std, rngs=rngs)
        self.key = Dense(width, width, std, bias=key_bias, rngs=rngs)
        self.value = Dense(width, width, std, rngs=rngs)
        self.out = Dense(width, width, out_std, rngs=rngs)
        self.attend = Attend(heads, width // heads, causal, masks, kind=attention)

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """`mask`: bool, as `Attend` takes it; None if all is seen."""
        return self.out(self.attend(self.query(x), self.key(x), self.value(x), mask))


class Mlp(nnx.Module):
    """[..., C] -> [..., inner] -> [..., C], with one of ACTIVATIONS between.

    Args:
      width: C.
      inner: width between the two products.
      std: of the first random kernel.
      out_std: of the second.
      activation: one of ACTIVATIONS.
    """

    def __init__(
        self,
        width: int,
        inner: int,
        std: float,
        out_std: float,
        *,
        activation: str,
        rngs: nnx.Rngs,
    ):
        self.fc1 = Dense(width, inner, std, rngs=rngs)
        self.fc2 = Dense(inner, width, out_std, rngs=rngs)
        self.activation = activation

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc2(ACTIVATIONS[self.activation](self.fc1(x)))


class GatedMlp(nnx.Module):
    """[..., C] -> [..., inner] -> [..., C]: fc2(silu(gate x) * fc1 x), a SwiGLU.

    Source: Shazeer, "GLU Variants Improve Transformer", arXiv 2002.05202.

    Args:
      width: C.
      inner: width between the products.
      std: of the first two random kernels.
      out_std: of the last.
      epsilon: of a norm before the last product; None for no norm.
    """

    def __init__(
        self,
        width: int,
        inner: int,
        std: float,
        out_std: float,
        *,
        epsilon: float | None = None,
        rngs: nnx.Rngs,
    ):
        self.gate = Dense(width, inner, std, rngs=rngs)
        self.fc1 = Dense(width, inner, std, rngs=rngs)
        self.norm = None if epsilon is None else LayerNorm(inner, epsilon=epsilon)
        self.fc2 = Dense(inner, width, out_std, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = jax.nn.silu(self.gate(x)) * self.fc1(x)
        return self.fc2(x if self.norm is None else self.norm(x))


class LayerScale(nnx.Module):
    """x times a learned vector, [..., C] -> [..., C], in the type of x; it starts as x itself.

    Source: Touvron et al., "Going deeper with Image Transformers", ICCV 2021.

    Args:
      width: C.
    """

    def __init__(self, width: int):
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        return x * self.scale[...].astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), [B, T, C] -> [B, T, C].

    Args:
      size: width, heads, layers and inner width (0 means four times the width).
      causal: a token sees itself and what is before it.
      activation: one of ACTIVATIONS.
      epsilon: of both norms.
      key_bias: False leaves the bias of the attention keys out.
      layer_scale: what is added is multiplied by a learned vector each time.
      gated: the MLP is a `GatedMlp`, whatever the activation is.
      masks: some calls have a mask.
      attention: what computes it, see `cir_jax.towers.attention`.
    """

    def __init__(
        self,
        size: VisionTransformerSize | TextSize,
        *,
        causal: bool,
        activation: str,
        epsilon: float = 1e-5,
        key_bias: bool = True,
        layer_scale: bool = False,
        gated: bool = False,
        masks: bool = False,
        attention: str = XLA,
        rngs: nnx.Rngs,
    ):
        width, heads, layers = size.width, size.heads, size.layers
        # Standard deviations of the CLIP paper's initialisation. The two that add to the residual
        # stream are smaller in a deeper tower, so that its variance does not grow with the depth.
        std, out_std, mlp_std = width**-0.5, (width * 2 * layers) ** -0.5, (2 * width) ** -0.5
        self.norm1 = LayerNorm(width, epsilon=epsilon)
        options: dict[str, Any] = {"key_bias": key_bias, "attention": attention, "rngs": rngs}
        options["masks"] = masks
        self.attention = Attention(width, heads, std, out_std, causal=causal, **options)
        self.norm2 = LayerNorm(width, epsilon=epsilon)
        inner = size.mlp or 4 * width
        self.mlp: Mlp | GatedMlp
        if gated:
            self.mlp = GatedMlp(width, inner, mlp_std, out_std, rngs=rngs)
        else:
            self.mlp = Mlp(width, inner, mlp_std, out_std, activation=activation, rngs=rngs)
        self.layer_scale1 = LayerScale(width) if layer_scale else None
        self.layer_scale2 = LayerScale(width) if layer_scale else None

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        added = self.attention(self.norm1(x), mask)
        x = x + (added if self.layer_scale1 is None else self.layer_scale1(added))
        added = self.mlp(self.norm2(x))
        return x + (added if self.layer_scale2 is None else self.layer_scale2(added))


def stack(make: Callable[[nnx.Rngs], M], layers: int, rngs: nnx.Rngs) -> M:
    """One module for many layers: what `make` gives, every parameter with a leading layer axis.

    Args:
      make: rngs -> one layer. Its random parameters are drawn by `normal` or `Dense`.
      layers: L, length of the new axis.
      rngs: `make` takes as many keys from it as for a single layer.

    Raises:
      UserError: no layers.
    """
    if layers < 1:
        raise UserError(f"a tower of {layers} layers, where it needs at least 1; name another size")
    mapped = nnx.vmap(make, in_axes=None, out_axes=0, axis_size=layers, axis_name=LAYERS)
    module = mapped(rngs)
    setattr(module, STACKED, True)
    return module


def stacked_keys(model: nnx.Module) -> set[tuple]:
    """Key tuples of the parameters that have a leading layer axis, see `stack`."""
    return {
        (*place, *keys)
        for place, module in nnx.iter_graph(model)
        if getattr(module, STACKED, False)
        for keys in flatten_dict(nnx.to_pure_dict(nnx.state(module)))
    }


def weights_times_values(primitive: Any, *operands: Any, **parameters: Any) -> bool:
    """Which values `model.remat=products` keeps: products of weights and activations.

    Convolutions are such products. Those within attention are of activations alone: the scores are
    the largest values of a layer, and both products together 1-3 % of its work, so they are made
    again, as norms and activation functions are. So is a product over so few values that its
    output is larger than what making it again costs: the second one of an adapter.
    """
    if primitive is jax.lax.conv_general_dilated_p:
        return True
    if not jax.checkpoint_policies.dots_with_no_batch_dims_saveable(
        primitive, *operands, **parameters
    ):
        return False
    (contracted, _), _ = parameters["dimension_numbers"]
    values = math.prod(operands[0].shape[axis] for axis in contracted)
    return values * FEW >= min(math.prod(x.shape) // values for x in operands)


# What is kept of a layer for the backward pass: name -> policy of `jax.checkpoint`.
_KEEPS: dict[str, Callable | None] = {"products": weights_times_values, "layers": None}
REMAT = ("none", *_KEEPS)
_REMAT_BEFORE = {False: "none", True: "layers"}


def rematerialised(layer: F, remat: str | bool, *, apart: bool) -> F:
    """A function that makes a part of its values again in the backward pass.

    Args:
      layer: of arrays and modules.
      remat: one of REMAT: "none" gives the function as it is; "products" keeps what
        `weights_times_values` says; "layers" keeps the inputs alone. False and True are "none" and
        "layers".
      apart: the compiler must be kept from joining the two passes, which a scan does by itself; the
        barriers that this takes cost time.

    Raises:
      UserError: there is no such way.
    """
    name = _REMAT_BEFORE[remat] if isinstance(remat, bool) else remat
    if name not in REMAT:
        near = nearest(name, REMAT)
        raise UserError(f"remat={remat!r} is unknown; use {', '.join(REMAT)}.{near}")
    if name == "none":
        return layer
    return nnx.remat(layer, prevent_cse=apart, policy=_KEEPS[name], graph=False)


def run_blocks(
    blocks: Block, x: jax.Array, mask: jax.Array | None = None, *, remat: str | bool
) -> jax.Array:
    """Applies the stacked layers of `blocks` one after the other, [B, T, C] -> [B, T, C].

    `mask` is that of their attention.
    """
    return run_stack(blocks, x, lambda x, block, key: block(x, mask), remat=remat)


def run_stack(
    stacked: nnx.Module,
    x: jax.Array,
    apply: Callable[[jax.Array, Any, jax.Array | None], jax.Array],
    key: jax.Array | None = None,
    *,
    remat: str | bool,
) -> jax.Array:
    """Applies the layers of what `stack` gives one after the other, by one scan.

    Args:
      stacked: the module.
      x: what goes through, [B, T, C].
      apply: (x, one layer, its dropout key or None) -> x.
      key: of the dropout; None for none.
      remat: what of each layer is computed again in the backward pass, see `rematerialised`.
    """
    layers = len(jax.tree.leaves(nnx.state(stacked))[0])
    keys = None if key is None else jax.random.split(key, layers)
    # graph=False takes a module as its arrays. Otherwise flax would also write them back after the
    # scan, which it refuses for a module that was made outside of the function being traced.

    def layer(x: jax.Array, block: Any, key: jax.Array | None) -> jax.Array:
        return keep_rows(apply(keep_rows(x), block, key))

    body = rematerialised(layer, remat, apart=False)
    scan = nnx.scan(body, in_axes=(nnx.Carry, 0, 0), out_axes=nnx.Carry, graph=False)
    return scan(x, stacked, keys)
