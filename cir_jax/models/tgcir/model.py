# SPDX-License-Identifier: Apache-2.0
"""TG-CIR: a reference and a text are 12 tokens each, mixed token by token.

    g, x    = feature and positions of an encoder of CLIP              [B, D] and [B, L, C]
    tokens  = g * relu(mask_m), 4 of them, then TokenLearner(P x), 8   [B, 12, D]
    keep_k  = sigmoid(W2 relu(W1 [reference_k, text_k]))               [B, 12, 1]
    query   = unit(mean over k of keep_k reference_k + (1 - keep_k) text_k)
    target  = unit(mean of the tokens of the image)

x are the positions of the ViT before its last norm, class token included, and those of the text
after it, all 77 of them: what lies behind the end of a text takes part. Masks and token learner are
one for images and texts. After stage one their index copy stays and a query copy trains, as in the
released stage two of arXiv 2404.11317.

Source: Wen et al., "Target-Guided Composed Image Retrieval", ACM MM 2023, with the tokens of its
released code for FashionIQ and CIRR. In stage one a teacher that sees the target guides the gates,
by the losses of AUXILIARY; nothing else reads `teacher_*` and `token_weights`.
"""

import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cir_jax.errors import UserError
from cir_jax.losses.in_batch import in_batch_loss
from cir_jax.models import clip_sum
from cir_jax.models.tgcir.token_learner import TokenLearner
from cir_jax.towers import encoders
from cir_jax.towers.layers import DTYPES, Dense, unit
from cir_jax.towers.packed import Packed, Text
from cir_jax.towers.pairs import in_one_pass

TOKENIZER = clip_sum.TOKENIZER
CUT_PADDING = False
REFERENCE_ROWS = "per_image"
# A CLIP, or a run of `clip_sum`, is enough to start from.
NEW = (
    r"(image|text)_projection/.*", r"token_learner/.*", r"masks", r"token_weights",
    r"(gate|teacher_keep|teacher_replace)/.*",
)  # fmt: skip
GLOBAL = 4  # tokens that are the feature behind a mask
LOCAL = 8  # tokens of the token learner
OFF = 0.1  # start of a mask outside its own part of the D values, where it is 1
# Temperature of both softmaxes of the matching losses: for FashionIQ, and for CIRR.
MATCHING = {"matching": 0.1, "sharp_matching": 0.05}
AUXILIARY = {
    "teacher_ranking": "contrastive loss of the query that a teacher who sees the target composes",
    "mask_constraint": "what the teacher keeps and what it takes from the text add up to 1",
    "orthogonality": "the tokens of an image or a text are orthogonal",
    "mask_distillation": "the gates of the query are those of the teacher",
    "matching": "scores of the queries are distributed as those of the targets, at temperature 0.1",
    "sharp_matching": "the same at temperature 0.05",
}


class Gate(nnx.Module):
    """[..., D] twice -> [..., 1] float32 in (0, 1), from both side by side.

    Kernels have the variance of PyTorch's default for linear layers; biases start at zero.

    Args:
      width: D.
      dtype: compute type of the matrix products.
    """

    def __init__(self, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.fc1 = Dense(2 * width, width, (6 * width) ** -0.5, rngs=rngs)
        self.fc2 = Dense(width, 1, (3 * width) ** -0.5, rngs=rngs)
        self.dtype = dtype

    def __call__(self, a: jax.Array, b: jax.Array) -> jax.Array:
        both = jnp.concatenate([a.astype(self.dtype), b.astype(self.dtype)], axis=-1)
        opened = self.fc2(jax.nn.relu(self.fc1(both)))
        return jax.nn.sigmoid(opened.astype(jnp.float32))


class Model(clip_sum.Model):
    """R = 12, K = 1, C = D. See `cir_jax.contract`."""

    def __init__(self, config: Any, *, rngs: nnx.Rngs):
        encoder = encoders.find(config.tower)
        if not encoder.tokens:
            raise UserError(
                f"model.tower={config.tower!r} is a ResNet, but tgcir makes its tokens of the "
                "positions of a ViT; use ViT-B/16, as published, or another ViT"
            )
        super().__init__(config, rngs=rngs)
        width, dtype = encoder.embedding, DTYPES[config.dtype]
        self.image_projection = _dense(encoder.vision_width, width, rngs)
        self.text_projection = _dense(encoder.text_width, width, rngs)
        self.masks = nnx.Param(_masks(width))
        self.token_learner = TokenLearner(LOCAL, width, rngs=rngs)
        self.gate = Gate(width, dtype=dtype, rngs=rngs)
        self.teacher_keep = Gate(width, dtype=dtype, rngs=rngs)
        self.teacher_replace = Gate(width, dtype=dtype, rngs=rngs)
        self.token_weights = nnx.Param(jnp.ones((GLOBAL + LOCAL,), jnp.float32))

    def reference(self, pixels: jax.Array, text: Text | None) -> jax.Array:
        """[B, S, S, 3] -> [B, 12, D] tokens, not normalised; the text is not used."""
        positions = self.visual.tokens(pixels)
        return self._tokens(self.visual.feature(positions), self.image_projection(positions))

    def target(self, pixels: jax.Array) -> jax.Array:
        """[B, S, S, 3] -> [B, 1, D] unit means of the tokens."""
        return unit(self.reference(pixels, None).mean(axis=1))[:, None]

    def reference_and_target(
        self, reference_pixels: jax.Array, target_pixels: jax.Array, text: Text, keys: Any
    ) -> tuple[jax.Array, jax.Array]:
        """Pixels [B, S, S, 3] twice -> what `reference` and `target` give, by one pass."""
        reference, target = self._both(reference_pixels, target_pixels)
        return reference, unit(target.mean(axis=1))[:, None]

    def text_features(self, text: Text) -> jax.Array:
        """[B, T] -> [B, 12, D] tokens, not normalised; however short T is, the same ones."""
        assert not isinstance(text, Packed)  # no PACKS_TEXTS: what is behind an end takes part
        missing = max(0, self.text.context - text.shape[1])
        text = jnp.pad(text, ((0, 0), (0, missing)), constant_values=self.encoder.rules.pad or 0)
        positions = self.text.tokens(text)
        return self._tokens(self.text.feature(positions, text), self.text_projection(positions))

    def fuse(
        self, reference: jax.Array, features: jax.Array, key: jax.Array | None = None
    ) -> jax.Array:
        """[B, 12, D] and [B, 12, D] -> [B, D]; there is no dropout."""
        return self._fused(reference.astype(jnp.float32), features)[0]

    def compose(self, reference: jax.Array, text: Text, key: jax.Array | None = None) -> jax.Array:
        """[B, 12, D] and [B, T] -> [B, D]; there is no dropout."""
        return self.fuse(reference, self.text_features(text))

    def training(
        self, reference_pixels: jax.Array, target_pixels: jax.Array, text: Text, key: jax.Array
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        """Pixels [B, S, S, 3] twice and [B, T] -> query [B, D], targets [B, 1, D], and per example
        the teacher's query and target [B, 12 D] and the losses that no other example changes."""
        reference, target = self._both(reference_pixels, target_pixels)
        features = self.text_features(text)
        query, keep = self._fused(reference, features)
        # The teacher's losses move the gates and the tokens of the target, not those it is shown.
        shown, told = jax.lax.stop_gradient((reference, features))
        keep_t = self.teacher_keep(shown, target)
        replace_t = self.teacher_replace(told, target)
        weights = self.token_weights[...].reshape(1, -1, 1)
        taught = jax.lax.stop_gradient((keep_t, replace_t))
        extras = {
            "teacher_query": _flat(unit(keep_t * shown + replace_t * told) * weights),
            "teacher_target": _flat(unit(target) * weights),
            "mask_constraint": _square(keep_t + replace_t - 1),
            "orthogonality": functools.reduce(
                operator.add, map(_overlap, (reference, target, features))
            )
            / 3,
            "mask_distillation": _square(keep - taught[0]) + _square(1 - keep - taught[1]),
        }
        return query, unit(target.mean(axis=1))[:, None], extras

    def auxiliary(
        self,
        query: jax.Array,
        targets: jax.Array,
        extras: dict[str, jax.Array],
        temperature: jax.Array | float,
    ) -> dict[str, jax.Array]:
        """The losses of AUXILIARY, [B] each; `temperature` is that of the ranking."""
        alone = ("mask_constraint", "orthogonality", "mask_distillation")
        found = {name: extras[name] for name in alone}
        target = extras["teacher_target"]
        found["teacher_ranking"] = in_batch_loss(
            extras["teacher_query"], target[:, None], temperature
        )
        ours, theirs = _products(query, targets[:, 0]), _products(unit(target), unit(target))
        for name, limit in MATCHING.items():
            found[name] = _divergence(ours / limit, jax.lax.stop_gradient(theirs) / limit)
        return found

    def _both(self, first: jax.Array, second: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[B, S, S, 3] twice -> [B, 12, D] tokens twice."""
        return in_one_pass(lambda pixels: self.reference(pixels, None), first, second)

    def _tokens(self, feature: jax.Array, positions: jax.Array) -> jax.Array:
        """[B, D] and [B, L, D] -> [B, 12, D] float32, those of the masks first."""
        masks = jax.nn.relu(self.masks[...])[None]
        return jnp.concatenate([feature[:, None] * masks, self.token_learner(positions)], axis=1)

    def _fused(self, reference: jax.Array, text: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[B, 12, D] twice -> unit query [B, D] and its gates [B, 12, 1]."""
        keep = self.gate(reference, text)
        return unit((keep * reference + (1 - keep) * text).mean(axis=1)), keep


def image_size(config: Any) -> int:
    """Side of the input, in pixels."""
    return clip_sum.image_size(config)


def roles(config: Any) -> list[tuple[str, str]]:
    """The image side and the teacher are done after stage one; what texts go through trains on."""
    return [
        (r"(visual|image_projection)/.*", "index"),
        (r"(teacher_keep/.*|teacher_replace/.*|token_weights)", "index"),
        (r"(text|text_projection|gate)/.*", "query"),
        (r"(token_learner/.*|masks)", "query"),  # the index reads its own copy
        (r"logit_scale", "pretrain"),
    ]


def sharding(config: Any) -> list[tuple[str, tuple]]:
    """As `clip_sum`, and the matrices of projections and gates over "model"."""
    first = r"(image_projection|text_projection|(gate|teacher_keep|teacher_replace)/fc1)"
    return [
        (rf"{first}/kernel", (None, "model")),
        (rf"{first}/bias", ("model",)),
        (r"(gate|teacher_keep|teacher_replace)/fc2/kernel", ("model", None)),
        *clip_sum.sharding(config),
    ]


def _dense(inputs: int, outputs: int, rngs: nnx.Rngs) -> Dense:
    return Dense(inputs, outputs, (3 * inputs) ** -0.5, rngs=rngs)


def _masks(width: int) -> jax.Array:
    masks, part = np.full((GLOBAL, width), OFF, np.float32), width // GLOBAL
    for number in range(GLOBAL):
        masks[number, number * part : (number + 1) * part] = 1
    return jnp.asarray(masks)


def _flat(tokens: jax.Array) -> jax.Array:
    return tokens.reshape(len(tokens), -1)


def _square(x: jax.Array) -> jax.Array:
    """[B, ...] -> [B], the mean of the squares."""
    return jnp.square(_flat(x)).mean(axis=1)


def _overlap(tokens: jax.Array) -> jax.Array:
    """[B, R, D] -> [B]: how far the cosines of all pairs are from those of orthogonal tokens."""
    tokens = unit(tokens)
    cosines = jnp.einsum("brd,bsd->brs", tokens, tokens, precision="highest")
    return _square(cosines - jnp.eye(tokens.shape[1])[None])


def _products(a: jax.Array, b: jax.Array) -> jax.Array:
    """[B, D] and [N, D] -> [B, N] float32."""
    return jnp.einsum("bd,nd->bn", a, b, precision="highest")


def _divergence(logits: jax.Array, wanted: jax.Array) -> jax.Array:
    """[B, N] twice -> [B]: Kullback-Leibler, of the softmax that is wanted from the other."""
    log, log_wanted = jax.nn.log_softmax(logits, axis=1), jax.nn.log_softmax(wanted, axis=1)
    return (jnp.exp(log_wanted) * (log_wanted - log)).sum(axis=1)
