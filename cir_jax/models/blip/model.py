# SPDX-License-Identifier: Apache-2.0
"""BLIP4CIR: a text encoder that looks at the reference image makes the query.

    z      = image tokens of the reference                                 [B, R, C]
    query  = unit(P_text h_0), h = text encoder([ENC] text [SEP], z)       [B, D]
    target = unit(P_image z_0) of the target image, z_0 its class token    [B, 1, D]

R = 577 and C = 768 at 384 pixels, D = 256, K = 1. Both projections have biases. Sources: the first
stage of Liu et al., "Candidate Set Re-ranking for Composed Image Retrieval with Dual Multi-modal
Encoder", TMLR 2024 (arXiv 2305.16304), on BLIP (Li et al., ICML 2022); second stage as in section
4.1 of arXiv 2404.11317.

In the published first stage the image side is frozen: text encoder, text projection and temperature
train. So its role is "pretrain", unless `model.train_image` is set, as weights that start at random
need it. The same stage has dropout in the text encoder (`model.dropout`), the second has none. The
temperature is a leaf of the stage (`loss.learn_temperature`), not of the model.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cir_jax.towers.blip import sizes
from cir_jax.towers.blip.med import TextEncoder
from cir_jax.towers.blip.sizes import BlipSize
from cir_jax.towers.image_transformer import ImageTransformer
from cir_jax.towers.layers import DTYPES, Dense, unit
from cir_jax.towers.pairs import in_one_pass

TOKENIZER = "bert_enc"
CUT_PADDING = True  # nobody attends to padding
REFERENCE_ROWS = "per_image"


class Model(nnx.Module):
    """R = 1 + patches, K = 1. See `cir_jax.contract`."""

    def __init__(self, config: Any, *, rngs: nnx.Rngs):
        size = size_of(config)
        options: dict[str, Any] = {"dtype": DTYPES[config.dtype], "remat": config.remat}
        options |= {"attention": config.attention, "rngs": rngs}
        width, text_width = size.vision.width, size.text.width
        self.visual = ImageTransformer(size.vision, **options)
        self.text = TextEncoder(
            size.text, width, context=config.context, rate=config.dropout, **options
        )
        self.vision_proj = Dense(width, size.embedding, width**-0.5, rngs=rngs)
        self.text_proj = Dense(text_width, size.embedding, text_width**-0.5, rngs=rngs)
        self.train_image = config.train_image

    def reference(self, pixels: jax.Array, text: jax.Array) -> jax.Array:
        """[B, S, S, 3] -> [B, R, C] image tokens; the text is not used."""
        return self.visual(pixels)

    def target(self, pixels: jax.Array) -> jax.Array:
        """[B, S, S, 3] -> [B, 1, D] unit rows."""
        return unit(self.vision_proj(self.visual(pixels)[:, 0]))[:, None]

    def reference_and_target(
        self, reference_pixels: jax.Array, target_pixels: jax.Array, text: jax.Array, keys: Any
    ) -> tuple[jax.Array, jax.Array]:
        """Pixels [B, S, S, 3] twice -> what `reference` and `target` give, by one pass if the image
        side trains: one after the other takes half the memory, and has no gradient to reduce."""
        if not self.train_image:
            return self.reference(reference_pixels, text), self.target(target_pixels)
        reference, target = in_one_pass(self.visual, reference_pixels, target_pixels)
        return reference, unit(self.vision_proj(target[:, 0]))[:, None]

    def compose(
        self, reference: jax.Array, text: jax.Array, key: jax.Array | None = None
    ) -> jax.Array:
        """[B, R, C] and [B, T] -> [B, D]; `key` is that of `model.dropout`, None for none."""
        first = self.text(text, reference, key)[:, 0]
        return unit(self.text_proj(first.astype(jnp.float32)))


def size_of(config: Any) -> BlipSize:
    """The size that a `model` section names, for images of its side."""
    return sizes.find(config.tower, config.image_size)


def image_size(config: Any) -> int:
    """Side of the input, in pixels."""
    return size_of(config).vision.image


def roles(config: Any) -> list[tuple[str, str]]:
    """The text side is the query; the image side is frozen, or the index if it trains."""
    image = "index" if config.train_image else "pretrain"
    return [(r"(visual|vision_proj)/.*", image), (r"(text|text_proj)/.*", "query")]


def sharding(config: Any) -> list[tuple[str, tuple]]:
    """Matrices over "model": outputs of the first product of a pair, inputs of the second."""
    first = r"(visual/blocks|text/layers)/((attention|cross)/(query|key|value)|mlp/fc1)"
    second = r"(visual/blocks|text/layers)/((attention|cross)/out|mlp/fc2)"
    return [
        (rf"{first}/kernel", (None, None, "model")),
        (rf"{first}/bias", (None, "model")),
        (rf"{second}/kernel", (None, "model", None)),
        (r"text/embeddings/words", (None, "model")),
        (r"visual/patch_kernel", (None, None, None, "model")),
        (r"(vision_proj|text_proj)/kernel", ("model", None)),
        (r".*", ()),
    ]
