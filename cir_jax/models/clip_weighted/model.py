# SPDX-License-Identifier: Apache-2.0
"""The sum of CLIP's features, with a head that says how much of each a query takes.

    v, t   = raw image feature of the reference, raw text feature          [B, D] each
    a, b   = W2 relu(W1 [unit(v), unit(t)])                                [B, 1] each
    query  = unit((1 + a) v + (1 + b) t)                                   [B, D]

W1 and W2 have biases. W2 starts at zero, so that a model starts as `clip_sum` to the bit: the sum
is of raw features, as there, and only the head reads them normalised: how long they are is not the
same from one CLIP to another. A text alone is composed as in `clip_sum`.

Images are still one vector each, so that banks, indexes and vector stores are those of `clip_sum`.
The idea of a weight per query for each side of a linear mix is that of SRAIN, arXiv 2608.22500,
which estimates the weights in another way; here the head trains by the loss of the stage, with
whatever else the stage trains.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cir_jax.models import clip_sum
from cir_jax.towers.layers import Dense, unit

TOKENIZER = clip_sum.TOKENIZER
CUT_PADDING = clip_sum.CUT_PADDING
PACKS_TEXTS = clip_sum.PACKS_TEXTS
REFERENCE_ROWS = clip_sum.REFERENCE_ROWS
NEW = (r"head/.*",)  # weights of CLIP, or a run of `clip_sum`, are enough to start from
image_size, sharding = clip_sum.image_size, clip_sum.sharding  # the head is whole on each device
HIDDEN = 256


class Head(nnx.Module):
    """Raw image and text features -> what is added to a weight of one of each.

    It computes in float32 whatever the towers do: it is too small for another type to save time.

    Args:
      width: D.
    """

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        # The input is two unit vectors, so that each value before the relu has variance 1.
        self.hidden = Dense(2 * width, HIDDEN, 0.5**0.5, rngs=rngs)
        self.output = Dense(HIDDEN, 2, 0.0, rngs=rngs)

    def __call__(self, image: jax.Array, text: jax.Array) -> jax.Array:
        """[B, D] and [B, D] -> [B, 2] float32, of the image and of the text."""
        both = jnp.concatenate([unit(image), unit(text)], axis=-1)
        return self.output(jax.nn.relu(self.hidden(both)))


class Model(clip_sum.Model):
    """R = K = 1, C = D. See `cir_jax.contract`."""

    def __init__(self, config: Any, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        self.head = Head(self.encoder.embedding, rngs=rngs)

    def weights(self, reference: jax.Array, features: jax.Array) -> jax.Array:
        """[B, 1, D] and [B, D] -> [B, 2] float32: the weights of image and text in each query."""
        image = reference[:, 0].astype(jnp.float32)
        added = self.head(image, features)
        # Of a text alone only the sign of its weight would matter, and a wrong one would turn the
        # query round. So no gradient of stage zero, whose queries are such, reaches the head.
        shown = jnp.any(image != 0, axis=-1, keepdims=True)
        return 1 + jnp.where(shown, added, 0)

    def fuse(
        self, reference: jax.Array, features: jax.Array, key: jax.Array | None = None
    ) -> jax.Array:
        """[B, 1, D] and [B, D] -> [B, D] unit queries; there is no dropout."""
        image, text = self._weighted(reference, features)
        return unit(image + text)

    def halves(self, reference: jax.Array, text: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[B, 1, D] and [B, T] -> [B, D] twice: both weighted features over the norm of their
        sum."""
        image, words = self._weighted(reference, self.text_features(text))
        norm = jnp.maximum(jnp.linalg.norm(image + words, axis=-1, keepdims=True), 1e-12)
        return image / norm, words / norm

    def _weighted(self, reference: jax.Array, features: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[B, 1, D] and [B, D] -> [B, D] float32 twice."""
        weights = self.weights(reference, features)
        return weights[:, :1] * reference[:, 0].astype(jnp.float32), weights[:, 1:] * features


def roles(config: Any) -> list[tuple[str, str]]:
    """As `clip_sum`; the head is of the query side and trains in both stages."""
    return [(r"head/.*", "query"), *clip_sum.roles(config)]
