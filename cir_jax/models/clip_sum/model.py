# SPDX-License-Identifier: Apache-2.0
"""CLIP4CIR (sum): query = unit(raw image feature + raw text feature).

Source: Baldrati et al., CVPR 2022; the sum is of features that are not normalised, and only the sum
is made unit length (section 4.1 of arXiv 2404.11317 uses it so). Zero-shot CLIP is this model with
weights that never saw a triplet.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cir_jax.errors import UserError
from cir_jax.towers.clip import sizes
from cir_jax.towers.clip.resnet import ModifiedResNet
from cir_jax.towers.clip.text import TextTransformer
from cir_jax.towers.clip.vit import VisionTransformer
from cir_jax.towers.layers import DTYPES, unit
from cir_jax.towers.packed import Text
from cir_jax.towers.pairs import in_one_pass

TOKENIZER = "clip"
CUT_PADDING = True  # causal and read at the end of text
PACKS_TEXTS = True
REFERENCE_ROWS = "per_image"


class Model(nnx.Module):
    """R = K = 1, C = D. See `cir_jax.contract`."""

    def __init__(self, config: Any, *, rngs: nnx.Rngs):
        size = sizes.find(config.tower)
        side = image_size(config)
        if side != size.vision.image:
            raise UserError(
                f"model.image_size={side}, but tower {config.tower!r} takes "
                f"{size.vision.image}; set model.image_size=0"
            )
        options: dict[str, Any] = {"dtype": DTYPES[config.dtype], "remat": config.remat}
        options["rngs"] = rngs
        transformer: dict[str, Any] = {
            "activation": size.activation, "attention": config.attention, **options,
        }  # fmt: skip
        self.visual: Any  # models on this one also take the tokens of a ViT
        if isinstance(size.vision, sizes.VisionTransformerSize):
            self.visual = VisionTransformer(size.vision, size.embedding, **transformer)
        else:
            self.visual = ModifiedResNet(size.vision, size.embedding, **options)
        self.text = TextTransformer(
            size.text, size.embedding, context=config.context, **transformer
        )
        self.logit_scale = nnx.Param(jnp.asarray(math.log(1 / 0.07), jnp.float32))

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
    return config.image_size or sizes.find(config.tower).vision.image


def roles(config: Any) -> list[tuple[str, str]]:
    """The image side is the index, the text side the query."""
    statistics = [] if _is_vit(config) else [(r"visual/.*/(mean|var)", "statistic")]
    return [
        *statistics,
        (r"visual/.*", "index"),
        (r"text/.*", "query"),
        (r"logit_scale", "pretrain"),
    ]


def sharding(config: Any) -> list[tuple[str, tuple]]:
    """Matrices over "model": outputs of the first product of a pair, inputs of the second."""
    blocks = [
        (r".*/blocks/attention/(query|key|value)/kernel", (None, None, "model")),
        (r".*/blocks/attention/(query|key|value)/bias", (None, "model")),
        (r".*/blocks/attention/out/kernel", (None, "model", None)),
        (r".*/blocks/mlp/fc1/kernel", (None, None, "model")),
        (r".*/blocks/mlp/fc1/bias", (None, "model")),
        (r".*/blocks/mlp/fc2/kernel", (None, "model", None)),
    ]
    text = [(r"text/token_embedding", ("model", None))]
    visual: list[tuple[str, tuple]]
    if _is_vit(config):
        visual = [(r"visual/patch_kernel", (None, None, None, "model"))]
    else:
        visual = [
            (r"visual/stage.*/kernel", (None, None, None, "model")),
            (r"visual/conv.*/kernel", (None, None, None, "model")),
            (r"visual/pool/(query|key|value)/kernel", (None, "model")),
            (r"visual/pool/out/kernel", ("model", None)),
            (r"visual/pool/position", (None, "model")),
        ]
    projections = [(r"(visual|text)/proj", ("model", None))]
    return [*blocks, *text, *visual, *projections, (r".*", ())]


def _is_vit(config: Any) -> bool:
    return isinstance(sizes.find(config.tower).vision, sizes.VisionTransformerSize)
