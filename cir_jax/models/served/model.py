# SPDX-License-Identifier: Apache-2.0
"""Vectors of an embedder of others, compared as they are, or under a small head that trains.

    i, t   = the embedder's vectors of the reference image and of the text       [B, D] each
    c      = the embedder's vector of both in one input, or i + t                [B, D]
    query  = unit(c + |c| W2 gelu(W1 [unit(i), unit(c)] + b1))                   [B, D]

W2 starts at zero, so a model that was not trained is the embedder itself, to the last bit. The
target is the unit vector of the image. Files and texts become vectors before they get here, see
`cir_jax.embedders.inputs`: nothing of the embedder trains; bank and gallery are its own vectors.
"""

import math
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from cir_jax import files
from cir_jax.embedders.inputs import NAME, SERVER, Inputs, side
from cir_jax.towers.layers import DTYPES, Dense, gelu, unit

TOKENIZER = NAME
CUT_PADDING = False  # a text is the D values of a vector
REFERENCE_ROWS = "per_image"
PLAIN = True
# The keys of the section `model` that say what is asked of whom.
_ASKED = (
    "tower", "url", "form", "composition", "prompts", "width", "dimensions", "max_side",
    "per_request", "concurrency", "per_minute", "timeout", "wait", "key_variable", "cache",
)  # fmt: skip


class Head(nnx.Module):
    """What is added to a query, in parts of its length; nothing before it is trained.

    Args:
      width: D.
      hidden: of the inner layer.
      dtype: compute type of the matrix products.
    """

    def __init__(self, width: int, hidden: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.first = Dense(2 * width, hidden, (2 * width) ** -0.5, rngs=rngs)
        self.last = Dense(hidden, width, 0.0, bias=False, rngs=rngs)
        self.dtype = dtype

    def __call__(self, image: jax.Array, query: jax.Array) -> jax.Array:
        """[B, D] and [B, D] of length 1 -> [B, D] float32."""
        both = jnp.concatenate([image, query], axis=-1).astype(self.dtype)
        return self.last(gelu(self.first(both))).astype(jnp.float32)


class Model(nnx.Module):
    """R = K = 1, C = D. See `cir_jax.contract`."""

    def __init__(self, config: Any, *, rngs: nnx.Rngs):
        self.width, self.together = width(config), config.composition == SERVER
        self.head = Head(self.width, config.hidden, dtype=DTYPES[config.dtype], rngs=rngs)
        self.logit_scale = nnx.Param(jnp.asarray(math.log(1 / 0.07), jnp.float32))

    def reference(self, pixels: jax.Array, text: jax.Array | None) -> jax.Array:
        """[B, S, S, 3] -> [B, 1, D] vectors as they came; the text is not used."""
        return self._vectors(pixels)[:, None]

    def target(self, pixels: jax.Array) -> jax.Array:
        """[B, S, S, 3] -> [B, 1, D] unit vectors."""
        return unit(self._vectors(pixels))[:, None]

    def compose(self, reference: jax.Array, text: jax.Array) -> jax.Array:
        """[B, 1, D] and [B, T] bits of vectors -> [B, D] unit queries."""
        return self.fuse(reference, self.text_features(text))

    def text_features(self, text: jax.Array) -> jax.Array:
        """[B, T] bits -> [B, D] float32: of a text, or of an image and a text."""
        values = jax.lax.bitcast_convert_type(text.astype(jnp.int32), jnp.float32)
        short = self.width - values.shape[1]
        return jnp.pad(values[:, : self.width], ((0, 0), (0, max(short, 0))))

    def fuse(self, reference: jax.Array, features: jax.Array) -> jax.Array:
        """[B, 1, D] and [B, D] -> [B, D] unit queries."""
        image = reference[:, 0].astype(jnp.float32)
        query = features if self.together else image + features
        added = self.head(unit(image), unit(query))
        length = jnp.linalg.norm(query, axis=-1, keepdims=True)
        return unit(query + length * added)

    def _vectors(self, pixels: jax.Array) -> jax.Array:
        return pixels.reshape(len(pixels), -1)[:, : self.width].astype(jnp.float32)


def embedder(config: Any) -> Inputs:
    """What asks the embedder; the same for the same config, so that nothing is opened twice."""
    return _embedder(tuple((key, config[key]) for key in _ASKED), str(files.cache()))


@lru_cache(maxsize=4)
def _embedder(values: tuple[tuple[str, Any], ...], cache: str) -> Inputs:
    del cache  # where vectors are kept by default; it may change in one process
    return Inputs(ConfigDict(dict(values)))


def width(config: Any) -> int:
    """D; the embedder is asked where the config does not say it."""
    return config.width or embedder(config).width()


def image_size(config: Any) -> int:
    """S, side of the array in which a vector travels."""
    return side(width(config))


def roles(config: Any) -> list[tuple[str, str]]:
    """The head is the query; nothing is the index."""
    return [(r"head/.*", "query"), (r"logit_scale", "pretrain")]


def sharding(config: Any) -> list[tuple[str, tuple]]:
    """The head over "model": outputs of its first product, inputs of its second."""
    return [
        (r"head/first/kernel", (None, "model")),
        (r"head/first/bias", ("model",)),
        (r"head/last/kernel", ("model", None)),
        (r".*", ()),
    ]
