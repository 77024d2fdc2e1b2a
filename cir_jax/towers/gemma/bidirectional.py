# SPDX-License-Identifier: Apache-2.0
"""The encoder of EmbeddingGemma 2: image and text tokens together, in both directions.

Every layer but the last of each period is local: a token sees those at most `window` away. Few key
heads serve all heads. A signal made of the tokens as they come in joins each layer behind its MLP
("per-layer embeddings"; this model has no table of them). The mean over all tokens, projected, is
the embedding.
Source: `EmbeddingGemma2TextModel` of transformers 5.24. Grouped-query attention: Ainslie et al.,
arXiv 2305.13245.
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cir_jax.runtime.sharding import keep_rows, lookup
from cir_jax.towers.gemma.layers import (
    GatedMlp,
    RMSNorm,
    angles,
    gelu_tanh,
    rms_normalised,
    rotated,
)
from cir_jax.towers.gemma.sizes import PAD, Marks, TextSize
from cir_jax.towers.layers import Dense, normal, rematerialised, stack

LOCAL_THETA, GLOBAL_THETA = 1e4, 1e6  # bases of the rotations


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Places:
    """What attention knows of the tokens of a batch.

    Attributes:
      local, whole: angles of the rotations of local and of global layers, [B, L, W / 2].
      near, seen: bool [B, 1, L, L], which tokens a token sees in them.
    """

    local: jax.Array
    whole: jax.Array
    near: jax.Array
    seen: jax.Array


class Attention(nnx.Module):
    """Self-attention whose key heads each serve several heads, [B, L, C] -> [B, L, C].

    Args:
      width: C.
      heads: heads of the queries.
      keys: heads of keys and values, a divisor of `heads`.
      head: channels of a head.
    """

    def __init__(self, width: int, heads: int, keys: int, head: int, *, rngs: nnx.Rngs):
        std = width**-0.5
        self.query = Dense(width, heads * head, std, bias=False, rngs=rngs)
        self.key = Dense(width, keys * head, std, bias=False, rngs=rngs)
        self.value = Dense(width, keys * head, std, bias=False, rngs=rngs)
        self.out = Dense(heads * head, width, (heads * head) ** -0.5, bias=False, rngs=rngs)
        self.query_norm, self.key_norm = RMSNorm(head), RMSNorm(head)
        self.head = head

    def __call__(self, x: jax.Array, by: jax.Array, mask: jax.Array) -> jax.Array:
        def heads(x: jax.Array) -> jax.Array:
            return x.reshape(*x.shape[:2], -1, self.head)

        query = rotated(self.query_norm(heads(self.query(x))), by)
        key = rotated(self.key_norm(heads(self.key(x))), by)
        value = rms_normalised(heads(self.value(x))).astype(x.dtype)
        # By XLA: which tokens are seen differs between tokens, and heads of global layers have more
        # channels than the kernel of cuDNN takes.
        mixed = jax.nn.dot_product_attention(
            query, key, value, mask=mask, scale=1.0, implementation="xla"
        )
        return self.out(mixed.reshape(*x.shape[:2], -1))


class Layer(nnx.Module):
    """Attention, MLP and signal, each between two norms or before one, [B, L, C] -> [B, L, C].

    Args:
      size: of the encoder.
      is_global: it is a global layer.
    """

    def __init__(self, size: TextSize, *, is_global: bool, rngs: nnx.Rngs):
        width = size.width
        keys, head = size.keys, size.head
        if is_global:
            keys, head = size.global_keys, size.global_head
        self.norm1, self.norm1_out = RMSNorm(width), RMSNorm(width)
        self.attention = Attention(width, size.heads, keys, head, rngs=rngs)
        self.norm2, self.norm2_out = RMSNorm(width), RMSNorm(width)
        self.mlp = GatedMlp(width, size.mlp, rngs=rngs)
        self.gate = Dense(width, size.signal, width**-0.5, bias=False, rngs=rngs)
        self.join = Dense(size.signal, width, size.signal**-0.5, bias=False, rngs=rngs)
        self.norm3_out = RMSNorm(width)
        self.factor = nnx.Param(jnp.ones((1,), jnp.float32))  # of the weights; never trains
        self.is_global = is_global

    def __call__(self, x: jax.Array, signal: jax.Array, places: Places) -> jax.Array:
        """Tokens [B, L, C] and the layer's signal [B, L, P] -> [B, L, C]."""
        by, mask = places.local, places.near
        if self.is_global:
            by, mask = places.whole, places.seen
        x = x + self.norm1_out(self.attention(self.norm1(x), by, mask))
        x = x + self.norm2_out(self.mlp(self.norm2(x)))
        x = x + self.norm3_out(self.join(gelu_tanh(self.gate(x)) * signal))
        return x * self.factor[...].astype(x.dtype).reshape(1, 1, 1)


class Period(nnx.Module):
    """Local layers and a global one behind them."""

    def __init__(self, size: TextSize, *, rngs: nnx.Rngs):
        last = size.period - 1
        self.layers = nnx.List(
            [Layer(size, is_global=n == last, rngs=rngs) for n in range(size.period)]
        )


class Encoder(nnx.Module):
    """Token ids [B, T] and the soft tokens of an image [B, R, C] -> [B, D] float32, raw.

    Args:
      size: see `cir_jax.towers.gemma.sizes`.
      embedding: D.
      marks: token ids around an image.
      dtype: compute type.
      remat: what of a layer is computed again in the backward pass, see `rematerialised` of
        `cir_jax.towers.layers`.
    """

    def __init__(
        self,
        size: TextSize,
        embedding: int,
        marks: Marks,
        *,
        dtype: jnp.dtype = jnp.float32,
        remat: str | bool = "none",
        rngs: nnx.Rngs,
    ):
        width, std = size.width, size.width**-0.5
        self.tokens = normal(rngs, (size.vocabulary, width), std)
        self.signal = Dense(width, size.layers * size.signal, std, bias=False, rngs=rngs)
        self.signal_norm = RMSNorm(size.signal)
        periods = size.layers // size.period
        self.periods = stack(lambda rngs: Period(size, rngs=rngs), periods, rngs)
        self.norm_out = RMSNorm(width)
        self.proj = Dense(width, embedding, std, bias=False, rngs=rngs)
        self.size = size
        self.marks = marks
        self.dtype = dtype
        self.remat = remat

    def __call__(
        self, text: jax.Array, image: jax.Array, has_image: jax.Array | None = None
    ) -> jax.Array:
        """Encodes texts, each with an image where its token of an image is.

        Padding is behind a text. The soft tokens of a text without a token of an image, or whose
        `has_image` is False, are left out, as that token itself is.

        Args:
          text: [B, T] ids, at most one of them that of an image.
          image: [B, R, C].
          has_image: bool [B]; None if all have one.

        Returns:
          [B, D].
        """
        here = text == self.marks.image
        written = here.any(axis=1)
        shown = written if has_image is None else written & has_image
        place = jnp.argmax(here, axis=1)
        # An id of padding may be that of a word too: padding is what has nothing else behind it.
        used = jnp.flip(jnp.cumsum(jnp.flip(text != PAD, 1), axis=1), 1) > 0
        rows = image.shape[1] + 2  # of an image, with the marks around it
        count = jnp.arange(text.shape[1])[None]
        # The image takes the place of its token, or the token goes. Where rows lie in the arrays
        # does not matter: attention and mean go by the positions.
        moved = jnp.where(shown, rows - 1, jnp.where(written, -1, 0))[:, None]
        position = count + jnp.where(count > place[:, None], moved, 0)
        of_image = place[:, None] + jnp.arange(rows)[None]
        positions = jnp.concatenate([of_image, position], axis=1)
        valid = jnp.concatenate(
            [jnp.broadcast_to(shown[:, None], of_image.shape), used & ~here], axis=1
        )
        x = self._tokens(text, image)
        x = self._layers(x, self._places(positions, valid))
        weight = valid[..., None].astype(jnp.float32)
        total = jnp.maximum(weight.sum(axis=1), 1.0)
        mean = (self.norm_out(x).astype(jnp.float32) * weight).sum(axis=1) / total
        return self.proj(mean)

    def _tokens(self, text: jax.Array, image: jax.Array) -> jax.Array:
        """Ids [B, T] and soft tokens [B, R, C] between their marks -> [B, R + 2 + T, C]."""
        marks = jnp.asarray([[self.marks.begin], [self.marks.end]], text.dtype)
        begin, end = (jnp.broadcast_to(mark[None], (len(text), 1)) for mark in marks)
        ids = jnp.concatenate([begin, end, text], axis=1)
        words = keep_rows(lookup(self.tokens[...], ids)) * self.size.width**0.5
        begin, end, text = jnp.split(words.astype(self.dtype), (1, 2), axis=1)
        return jnp.concatenate([begin, image.astype(self.dtype), end, text], axis=1)

    def _places(self, positions: jax.Array, valid: jax.Array) -> Places:
        """Of [B, L] positions, and which of the tokens are there."""
        length = positions.shape[1]
        # A token always sees itself: one that is not there would otherwise see none.
        itself = jnp.eye(length, dtype=bool)[None]
        seen = valid[:, None, :] | itself
        near = seen
        if length - 1 > self.size.window:
            distance = jnp.abs(positions[:, :, None] - positions[:, None, :])
            near = (seen & (distance <= self.size.window)) | itself
        return Places(
            angles(positions, self.size.head, LOCAL_THETA),
            angles(positions, self.size.global_head, GLOBAL_THETA),
            near[:, None],
            seen[:, None],
        )

    def _layers(self, x: jax.Array, places: Places) -> jax.Array:
        size = self.size
        # The signal of all layers at once would be as large as 24 times the tokens. Each layer
        # makes its own, by its part of the one matrix.
        kernels = self.signal.kernel[...].astype(self.dtype)
        kernels = kernels.reshape(size.width, -1, size.period, size.signal).transpose(1, 2, 0, 3)
        scale, first = self.signal_norm.scale[...], x

        def one(x: jax.Array, layer: Layer, kernel: jax.Array) -> jax.Array:
            raw = keep_rows(first @ kernel) * size.width**-0.5
            signal = rms_normalised(raw) * scale.reshape(1, 1, -1)
            return keep_rows(layer(keep_rows(x), signal.astype(x.dtype), places))

        layer = rematerialised(one, self.remat, apart=False)

        def period(x: jax.Array, layers: Any, kernels: jax.Array) -> jax.Array:
            return functools.reduce(
                lambda x, n: layer(x, layers.layers[n], kernels[n]), range(size.period), x
            )

        scan = nnx.scan(period, in_axes=(nnx.Carry, 0, 0), out_axes=nnx.Carry, graph=False)
        return scan(x, self.periods, kernels)
