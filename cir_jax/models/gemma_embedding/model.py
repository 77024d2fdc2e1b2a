# SPDX-License-Identifier: Apache-2.0
"""EmbeddingGemma 2 for image and text: one encoder makes queries and targets.

    z      = soft tokens of the reference                                    [B, R, C]
    query  = unit(first W values of encoder(z and text, by the prompt))      [B, W]
    target = unit(first W values of encoder(soft tokens of the target))      [B, 1, W]

R = 256 and C = 512 at 768 pixels, K = 1, W = D = 768 or less: the published weights were trained so
that the first 512, 256 or 128 values serve as a vector themselves ("Matryoshka": Kusupati et al.,
arXiv 2205.13147; `loss.matryoshka` trains so). Source of the recipe: the model card of
google/embeddinggemma-2 and `EmbeddingGemma2Model` of transformers 5.24; the embedding is the mean
over all tokens, those of the image included.

The encoder of text and soft tokens is the query part, and the index reads it as well: stage one
trains one tree that is both; stage two keeps that tree, which made the bank, and trains a copy of
the encoder. A reference of zeros is no image: such a query is its text alone.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cir_jax.data import prompts
from cir_jax.data.tokens import Tokenizer
from cir_jax.errors import UserError
from cir_jax.towers.gemma import encoder
from cir_jax.towers.gemma.encoder import GemmaEncoder
from cir_jax.towers.layers import unit
from cir_jax.towers.pairs import in_one_pass

CUT_PADDING = True  # nobody attends to padding
REFERENCE_ROWS = "per_image"
TEXT_ALONE = True
INPUT_KEYS = {"width": "index", "image_ids": "index", "prompt": "query"}


class Model(nnx.Module):
    """K = 1. See `cir_jax.contract`."""

    def __init__(self, config: Any, *, rngs: nnx.Rngs):
        self.encoder = encoder_of(config)
        self.visual, self.text = self.encoder.build(config, rngs)
        self.image_ids = image_ids(config, self.encoder)
        self.width = width_of(config, self.encoder)

    def reference(self, pixels: jax.Array, text: jax.Array | None) -> jax.Array:
        """[B, S, S, 3] -> [B, R, C] soft tokens; the text is not used."""
        return self.visual(pixels)

    def target(self, pixels: jax.Array) -> jax.Array:
        """[B, S, S, 3] -> [B, 1, W] unit rows: the encoder reads the image alone."""
        return self._alone(self.visual(pixels))

    def reference_and_target(
        self, reference_pixels: jax.Array, target_pixels: jax.Array, text: jax.Array, keys: Any
    ) -> tuple[jax.Array, jax.Array]:
        """Pixels [B, S, S, 3] twice -> what `reference` and `target` give, the images by one pass
        of the image encoder."""
        reference, target = in_one_pass(self.visual, reference_pixels, target_pixels)
        return reference, self._alone(target)

    def compose(self, reference: jax.Array, text: jax.Array) -> jax.Array:
        """[B, R, C] and [B, T] -> [B, W] unit queries; a reference of zeros is no image."""
        has_image = (reference != 0).any(axis=(1, 2))
        return self._vector(self.text(text, reference, has_image))

    def _alone(self, image: jax.Array) -> jax.Array:
        """Soft tokens [B, R, C] -> [B, 1, W]."""
        ids = jnp.asarray(self.image_ids, jnp.int32)[None]
        text = jnp.broadcast_to(ids, (len(image), ids.shape[1]))
        return self._vector(self.text(text, image))[:, None]

    def _vector(self, embedding: jax.Array) -> jax.Array:
        """[B, D] -> [B, W] of unit length after it is cut."""
        return unit(embedding[:, : self.width])


def encoder_of(config: Any) -> GemmaEncoder:
    """The encoders that a `model` section names, for images of its side."""
    return encoder.encoder(config.tower, config.image_size)


def TOKENIZER(config: Any) -> str:
    """The tokenizer that came with the weights; of the tiny ones, CLIP's."""
    return encoder_of(config).tokenizer


def prompted(config: Any, tokenizer: Tokenizer) -> Tokenizer:
    """A tokenizer that puts the texts of queries into `model.prompt`.

    Raises:
      UserError: the prompt has no image or no text, or one of them twice.
    """
    prompts.check(config.prompt, "model.prompt")
    return prompts.prompted(tokenizer, config.prompt, encoder_of(config).size.marks.image)


def image_ids(config: Any, found: GemmaEncoder) -> tuple[int, ...]:
    """Token ids of an image alone: `model.image_ids`, or the image token between start and end.

    Raises:
      UserError: they have no image token, or two, or are no tokens.
    """
    mark, (start, end) = found.size.marks.image, found.around
    ids = tuple(config.image_ids) or (start, mark, end)
    if ids.count(mark) != 1 or max(ids) >= found.size.text.vocabulary:
        raise UserError(
            f"model.image_ids={ids} must have the image token {mark} once, and no id above "
            f"{found.size.text.vocabulary - 1}; leave it empty for ({start}, {mark}, {end})"
        )
    return ids


def width_of(config: Any, found: GemmaEncoder) -> int:
    """W of a `model` section.

    Raises:
      UserError: it is over D.
    """
    if config.width > found.embedding:
        raise UserError(
            f"model.width={config.width} is over the {found.embedding} values of a vector of "
            f"model.tower={config.tower}; use 0 for all of them"
        )
    return config.width or found.embedding


def image_size(config: Any) -> int:
    """Side of the input, in pixels."""
    return encoder_of(config).image_size


def roles(config: Any) -> list[tuple[str, str]]:
    """The image encoder is the index, the other the query; `model.freeze` leaves parts out."""
    parts = {"image": r"visual/.*", "tokens": r"text/tokens"}
    frozen = [(rule, "pretrain") for name, rule in parts.items() if name in config.freeze]
    known = [rule for rule, _ in frozen]
    return [*frozen, *(one for one in encoder_of(config).roles() if one[0] not in known)]


def sharding(config: Any) -> list[tuple[str, tuple]]:
    """Matrices over "model", see `GemmaEncoder.sharding`."""
    return [*encoder_of(config).sharding(), (r".*", ())]
