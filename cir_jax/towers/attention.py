# SPDX-License-Identifier: Apache-2.0
"""Attention of all towers, and what computes it: XLA, or the kernel of cuDNN.

XLA multiplies, takes the softmax in float32 and multiplies again: it stores a score for every
query, key and head, [B, H, T, U]. The kernel of cuDNN (flash attention: Dao et al., arXiv
2205.14135) goes through the keys in blocks and stores none. It runs on NVIDIA GPUs, in bfloat16.
"""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from cir_jax import progress
from cir_jax.errors import UserError

XLA, CUDNN, AUTO = "xla", "cudnn", "auto"
_LEAST = -1e30  # logit of a masked key: its weight is exactly zero in float32
_LENGTH = 64  # tokens of the attention that is compiled to see whether the kernel works


@dataclass(frozen=True)
class Attend:
    """How a module attends: what a kernel has to be able to do, and which one does it.

    Attributes:
      heads: H.
      width: channels of a head.
      causal: a query sees itself and what is before it.
      masks: some of its calls have a mask.
      written_out: XLA runs our own operations, which may drop weights, in place of those of
        `jax.nn.dot_product_attention`. Gradients of the two differ in the last bit, so a tower
        stays with what its released runs were made with.
      kind: XLA or CUDNN.
      scale: of the scores; None is 1 / sqrt(width).
    """

    heads: int
    width: int
    causal: bool = False
    masks: bool = False
    written_out: bool = False
    kind: str = XLA
    scale: float | None = None

    def __call__(
        self,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        mask: jax.Array | None = None,
        drop: Callable[[jax.Array], jax.Array] | None = None,
    ) -> jax.Array:
        """softmax(scale query key) value for each head.

        Args:
          query: [B, T, C], C = heads x width.
          key: [B, U, C].
          value: [B, U, C].
          mask: [B, U] bool, False for keys that nobody sees, all of them behind those that are
            seen; or [B, T, U], where that depends on the query, and which XLA always computes. None
            if all is seen. Every query sees a key.
          drop: dropout of the weights [B, H, T, U], which XLA always computes; None for none.

        Returns:
          [B, T, C] in the type of the query.
        """
        shape = query.shape
        query, key, value = (
            x.reshape(*x.shape[:2], self.heads, self.width) for x in (query, key, value)
        )
        if drop is None and self.kind == CUDNN and (mask is None or mask.ndim == 2):
            return _by_kernel(query, key, value, mask, self.causal, self.scale).reshape(shape)
        if mask is not None:
            mask = mask[:, None, None] if mask.ndim == 2 else mask[:, None]
        if drop is not None or self.written_out:
            assert not self.causal, "no causal tower is written out or drops weights"
            assert self.scale is None, "nor one with a scale of its own"
            return _written_out(query, key, value, mask, drop).reshape(shape)
        mixed = jax.nn.dot_product_attention(
            query,
            key,
            value,
            mask=mask,
            is_causal=self.causal,
            scale=self.scale,
            implementation="xla",
        )
        return mixed.reshape(shape)


def _written_out(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None,
    drop: Callable[[jax.Array], jax.Array] | None,
) -> jax.Array:
    """Of [B, T, H, width] and a mask that spreads to [B, H, T, U]."""
    logits = jnp.einsum("bthd,buhd->bhtu", query, key, preferred_element_type=jnp.float32)
    logits = logits * query.shape[-1] ** -0.5
    if mask is not None:
        logits = jnp.where(mask, logits, _LEAST)
    weights = jax.nn.softmax(logits, axis=-1)
    weights = weights if drop is None else drop(weights)
    return jnp.einsum("bhtu,buhd->bthd", weights.astype(query.dtype), value)


def _by_kernel(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None,
    causal: bool,
    scale: float | None,
) -> jax.Array:
    # A number of keys, not a mask: the kernel takes masks as a bias, whose gradient it then stores,
    # and not for every length.
    seen = None if mask is None else mask.sum(axis=1, dtype=jnp.int32)
    try:
        return jax.nn.dot_product_attention(
            query,
            key,
            value,
            is_causal=causal,
            scale=scale,
            key_value_seq_lengths=seen,
            implementation="cudnn",
        )
    except (NotImplementedError, RuntimeError, ValueError) as error:
        shapes = f"queries {query.shape} and keys {key.shape} of {query.dtype}"
        raise UserError(_failed(f"it does not take {shapes} ({_first(error)})")) from None


@contextlib.contextmanager
def named(kind: Callable[[], str]) -> Iterator[None]:
    """Makes an error of the kernel, from where programs are compiled and run, one of its key.

    Args:
      kind: XLA or CUDNN, what the programs attend with; called where it is needed.

    Raises:
      UserError: the kernel failed; the message says what to set.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "cudnn" not in str(error).lower() or kind() != CUDNN:
            raise
        raise UserError(_failed(_first(error))) from None


def _failed(how: str) -> str:
    return (
        f"model.attention=cudnn: cuDNN failed: {how}. Set model.attention=xla, with which a run "
        "can also be resumed"
    )


def _first(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"


def resolve(asked: str, dtype: str, found: Iterable[Attend]) -> str:
    """XLA or CUDNN: what `model.attention` comes to on the devices of this process.

    Args:
      asked: XLA, CUDNN or AUTO.
      dtype: compute type of the towers.
      found: how the modules of a model attend.

    Raises:
      UserError: CUDNN was asked for and cannot be.
    """
    if asked == XLA:
        return XLA
    reason = _lacks(dtype) or next(filter(None, map(_refuses, dict.fromkeys(found))), "")
    if not reason:
        return CUDNN
    if asked == CUDNN:
        raise UserError(
            f"model.attention=cudnn cannot be used here: {reason}. Give model.attention=xla, which "
            "runs everywhere, or auto"
        )
    if _platform() == "gpu":
        progress.say(f"model.attention=auto is xla: {reason}")
    return XLA


def _lacks(dtype: str) -> str:
    """Why no attention can be by the kernel; "" if it may."""
    if (platform := _platform()) != "gpu":
        return f"it needs an NVIDIA GPU, and the devices are of the platform {platform!r}"
    if dtype != "bfloat16":
        return f"it needs model.dtype=bfloat16 (now {dtype})"
    return ""


def _refuses(one: Attend) -> str:
    """Why this attention cannot be by the kernel; "" if it can."""
    if one.width % 8 or one.width > 256:
        return f"a head has {one.width} channels, not a multiple of 8 up to 256"
    try:
        _compile(replace(one, kind=CUDNN))
    except Exception as error:  # whatever jax, XLA and cuDNN say, of a version that is not known
        return _first(error)
    return ""


@functools.lru_cache(maxsize=64)
def _compile(one: Attend) -> None:
    """Compiles an attention and its gradient, of one text of a few tokens."""
    x = jax.ShapeDtypeStruct((1, _LENGTH, one.heads * one.width), jnp.bfloat16)
    mask = jax.ShapeDtypeStruct((1, _LENGTH), bool) if one.masks else None

    def total(query, key, value, mask):
        return one(query, key, value, mask).astype(jnp.float32).sum()

    jax.jit(jax.grad(total, argnums=(0, 1, 2))).lower(x, x, x, mask).compile()


def _platform() -> str:
    return jax.default_backend()
