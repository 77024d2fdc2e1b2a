# SPDX-License-Identifier: Apache-2.0
"""CLIP4CIR (sum): query = unit(raw image feature + raw text feature).

Source: Baldrati et al., CVPR 2022; the sum is of features that are not normalised, and only the sum
is made unit length (section 4.1 of arXiv 2404.11317 uses it so). Zero-shot CLIP is this model with
weights that never saw a triplet.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cir_jax.errors import UserError
from cir_jax.towers import encoders
from cir_jax.towers.layers import unit
from cir_jax.towers.packed import Text
from cir_jax.towers.pairs import in_one_pass

REFERENCE_ROWS = "per_image"


def tokenizer(config: Any) -> str:
    """Name of the tokenizer that the towers read."""
    return encoders.find(config.tower).tokenizer


def cut_padding(config: Any) -> bool:
    """Whether the text tower sees nothing of what fills a text up."""
    return encoders.find(config.tower).cut_padding


def packs_texts(config: Any) -> bool:
    """Whether the text tower takes packed texts."""
    return encoders.find(config.tower).packs_texts


TOKENIZER, CUT_PADDING, PACKS_TEXTS = tokenizer, cut_padding, packs_texts


class Model(nnx.Module):
    """R = K = 1, C = D. See `cir_jax.contract`."""

    def __init__(self, config: Any, *, rngs: nnx.Rngs):
        encoder = encoders.find(config.tower)
        side = image_size(config)
        if side != encoder.image_size:
            raise UserError(
                f"model.image_size={side}, but tower {config.tower!r} takes "
                f"{encoder.image_size}; set model.image_size=0"
            )
        self.encoder = encoder
        self.visual: Any  # models on this one also take the tokens of a ViT
        self.visual, self.text = encoder.build(config, rngs)
        self.logit_scale = nnx.Param(jnp.asarray(encoder.logit_scale, jnp.float32))
        if encoder.logit_bias is not None:
            self.logit_bias = nnx.Param(jnp.asarray(encoder.logit_bias, jnp.float32))

    def reference(self, pixels: jax.Array, text: Text | None) -> jax.Array:
        """[B, S, S, 3] -> [B, 1, D] raw image features; the text is not used."""
        return self.visual(pixels)[:, None]

    def target(self, pixels: jax.Array) -> jax.Array:
        """[B, S, S, 3] -> [B, 1, D] unit image features."""
        return unit(self.visual(pixels))[:, None]

    def reference_and_target(
        self, reference_pixels: jax.Array, target_pixels: jax.Array, text: Text, keys: Any
    ) -> tuple[jax.Array, jax.Array]:
        """Pixels [B, S, S, 3] twice -> what `reference` and `target` give, by one pass."""
        reference, target = in_one_pass(self.visual, reference_pixels, target_pixels)
        return reference[:, None], unit(target)[:, None]

    def compose(self, reference: jax.Array, text: Text, key: jax.Array | None = None) -> jax.Array:
        """[B, 1, D] and [B, T] -> [B, D]; `key` is for models with dropout that inherit this."""
        return self.fuse(reference, self.text_features(text), key)

    def text_features(self, text: Text) -> jax.Array:
        """[B, T] -> [B, D] raw text features, float32."""
        return self.text(text)

    def fuse(
        self, reference: jax.Array, features: jax.Array, key: jax.Array | None = None
    ) -> jax.Array:
        """[B, 1, D] and [B, D] -> [B, D] unit queries; the sum has no dropout."""
        return unit(reference[:, 0].astype(jnp.float32) + features)

    def halves(self, reference: jax.Array, text: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[B, 1, D] and [B, T] -> [B, D] twice: the two features over the norm of their sum."""
        image, features = reference[:, 0].astype(jnp.float32), self.text_features(text)
        norm = jnp.maximum(jnp.linalg.norm(image + features, axis=-1, keepdims=True), 1e-12)
        return image / norm, features / norm


def image_size(config: Any) -> int:
    """Side of the input, in pixels."""
    return config.image_size or encoders.find(config.tower).image_size


def roles(config: Any) -> list[tuple[str, str]]:
    """Of the towers, the image side the index and the text side the query; what stage zero adds."""
    encoder = encoders.find(config.tower)
    bias = [] if encoder.logit_bias is None else [(r"logit_bias", "pretrain")]
    return [*encoder.roles(), (r"logit_scale", "pretrain"), *bias]


def sharding(config: Any) -> list[tuple[str, tuple]]:
    """Those of the towers; all else lies whole on each device."""
    return [*encoders.find(config.tower).sharding(), (r".*", ())]
