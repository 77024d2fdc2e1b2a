# SPDX-License-Identifier: Apache-2.0
"""CLIP4CIR (Combiner): a small network that joins the raw features of a frozen CLIP.

    t, v   = raw text feature, raw image feature of the reference          [B, D] each
    p      = [relu(T t), relu(I v)]                                        [B, 8 D], text first
    gate   = sigmoid(G2 relu(G1 p))                                        [B, 1]
    query  = unit(O relu(C p) + gate t + (1 - gate) v)                     [B, D]

T, I, C, O, G1 and G2 have biases; half the values behind each relu are dropped in training. The
target is the unit image feature, as in `clip_sum`. Source: Baldrati et al., CVPR 2022 Workshops and
arXiv 2308.11485: CLIP is fine-tuned first, with the sum of features, and is frozen when the
Combiner trains. So both towers train in stage zero alone here: stages one and two train the
Combiner, against the targets of the batch (as published) or of the bank.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cir_jax.models import clip_sum
from cir_jax.towers.layers import DTYPES, Dense, dropout, unit
from cir_jax.towers.packed import Text

TOKENIZER = clip_sum.TOKENIZER
CUT_PADDING = clip_sum.CUT_PADDING
PACKS_TEXTS = clip_sum.PACKS_TEXTS
REFERENCE_ROWS = clip_sum.REFERENCE_ROWS
NEW = (r"combiner/.*",)  # weights of CLIP, or a run of `clip_sum`, are enough to start from
image_size = clip_sum.image_size
PROJECTION = 4  # widths of the two inner layers as multiples of D: 2560 and 5120 of 640 (RN50x4)
HIDDEN = 8
DROPOUT = 0.5


class Combiner(nnx.Module):
    """Raw image and text features -> unit query.

    Kernels have the variance of PyTorch's default for linear layers, 1 / (3 inputs); biases start
    at zero.

    Args:
      width: D.
      dtype: compute type of the matrix products.
    """

    def __init__(self, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        def dense(inputs: int, outputs: int) -> Dense:
            return Dense(inputs, outputs, (3 * inputs) ** -0.5, rngs=rngs)

        projected, hidden = PROJECTION * width, HIDDEN * width
        self.text_projection = dense(width, projected)
        self.image_projection = dense(width, projected)
        self.combine = dense(2 * projected, hidden)
        self.output = dense(hidden, width)
        self.gate1 = dense(2 * projected, hidden)
        self.gate2 = dense(hidden, 1)
        self.dtype = dtype

    def __call__(self, image: jax.Array, text: jax.Array, key: jax.Array | None) -> jax.Array:
        """[B, D] and [B, D] float32 -> [B, D] float32; `key` is the dropout key, None for none."""
        keys = [None] * 4 if key is None else jax.random.split(key, 4)
        narrow = text.astype(self.dtype), image.astype(self.dtype)
        # Text comes first; the trained weights of others rely on it.
        projected = jnp.concatenate(
            [
                dropout(jax.nn.relu(self.text_projection(narrow[0])), DROPOUT, keys[0]),
                dropout(jax.nn.relu(self.image_projection(narrow[1])), DROPOUT, keys[1]),
            ],
            axis=-1,
        )
        combined = dropout(jax.nn.relu(self.combine(projected)), DROPOUT, keys[2])
        opened = dropout(jax.nn.relu(self.gate1(projected)), DROPOUT, keys[3])
        gate = jax.nn.sigmoid(self.gate2(opened).astype(jnp.float32))
        output = self.output(combined).astype(jnp.float32)
        return unit(output + gate * text + (1 - gate) * image)


class Model(clip_sum.Model):
    """R = K = 1, C = D. See `cir_jax.contract`."""

    def __init__(self, config: Any, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        self.combiner = Combiner(self.encoder.embedding, dtype=DTYPES[config.dtype], rngs=rngs)

    def reference_and_target(
        self, reference_pixels: jax.Array, target_pixels: jax.Array, text: Text, keys: Any
    ) -> tuple[jax.Array, jax.Array]:
        """By two passes: the towers are frozen, so no gradient is reduced, and one pass over both
        would take twice the memory."""
        return self.reference(reference_pixels, text), self.target(target_pixels)

    def fuse(
        self, reference: jax.Array, features: jax.Array, key: jax.Array | None = None
    ) -> jax.Array:
        """[B, 1, D] and [B, D] -> [B, D]; `key` is the dropout key, None for none."""
        return self.combiner(reference[:, 0].astype(jnp.float32), features, key)


def roles(config: Any) -> list[tuple[str, str]]:
    """The Combiner is the query; both towers are frozen but in stage zero."""
    towers = [
        (path, "statistic" if role == "statistic" else "pretrain")
        for path, role in clip_sum.roles(config)
    ]
    return [*towers, (r"combiner/.*", "query")]


def sharding(config: Any) -> list[tuple[str, tuple]]:
    """As `clip_sum`, and the six matrices of the Combiner over "model"."""
    first = r"combiner/(text_projection|image_projection|combine|gate1)"
    return [
        (rf"{first}/kernel", (None, "model")),
        (rf"{first}/bias", ("model",)),
        (r"combiner/(output|gate2)/kernel", ("model", None)),
        *clip_sum.sharding(config),
    ]
