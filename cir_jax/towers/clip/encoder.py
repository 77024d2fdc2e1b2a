# SPDX-License-Identifier: Apache-2.0
"""The two towers of a CLIP as an `Encoder`: see `cir_jax.towers.encoder`."""

import math
from dataclasses import dataclass
from typing import Any

from cir_jax.data.tokenizer_files import ANY, Rules
from cir_jax.towers.clip import path_rules, sizes
from cir_jax.towers.clip.sizes import ClipSize, EvaSize, ResNetSize
from cir_jax.towers.encoder import Encoder


@dataclass(frozen=True, kw_only=True)
class ClipEncoder(Encoder):
    """CLIP's: OpenAI's texts are causal and read at their end, so they may be cut and packed."""

    size: ClipSize

    def build(self, config: Any, rngs: Any) -> tuple[Any, Any]:
        """See `Encoder`."""
        from cir_jax.towers.clip.eva import EvaTransformer
        from cir_jax.towers.clip.resnet import ModifiedResNet
        from cir_jax.towers.clip.text import TextTransformer
        from cir_jax.towers.clip.vit import VisionTransformer
        from cir_jax.towers.layers import DTYPES

        size = self.size
        options: dict[str, Any] = {"dtype": DTYPES[config.dtype], "remat": config.remat}
        options["rngs"] = rngs
        attention, activation = {"attention": config.attention}, {"activation": size.activation}
        visual: Any
        if isinstance(size.vision, ResNetSize):
            visual = ModifiedResNet(size.vision, size.embedding, **options)
        elif isinstance(size.vision, EvaSize):
            visual = EvaTransformer(size.vision, size.embedding, **attention, **options)
        else:
            transformer = {"variant": size.vision_variant, **activation, **attention, **options}
            visual = VisionTransformer(size.vision, size.embedding, **transformer)
        transformer = {"variant": size.text_variant, **activation, **attention, **options}
        transformer["context"] = config.context
        return visual, TextTransformer(size.text, size.embedding, **transformer)

    def roles(self) -> list[tuple[str, str]]:
        """The image side is the index, the text side the query."""
        return path_rules.roles(self.size)

    def sharding(self) -> list[tuple[str, tuple]]:
        """Matrices over "model"."""
        return path_rules.sharding(self.size)


def names() -> tuple[str, ...]:
    """Sizes with a name of their own."""
    return tuple(sizes.SIZES)


def owns(name: str) -> bool:
    """Whether a name is of a CLIP: one of `names`, or written out; with any options behind it."""
    plain = name.partition("+")[0]
    return plain in sizes.SIZES or sizes.is_written(plain)


def encoder(name: str) -> ClipEncoder:
    """The towers of a size, see `sizes.find`.

    Raises:
      UserError: a size that no encoder can have.
    """
    size = sizes.find(name)
    vision = size.vision
    tokens = not isinstance(vision, ResNetSize)
    own = size.tokenizer != "clip"
    words, end = size.text_variant.vocabulary, size.text_variant.end
    rules = Rules(context=size.context, words=words, end=end or None) if own else ANY
    return ClipEncoder(
        name=name,
        family="clip",
        size=size,
        image_size=vision.image,
        context=size.context,
        embedding=size.embedding,
        vision_width=vision.width if tokens else 32 * vision.width,
        text_width=size.text.width,
        tokens=tokens,
        tokenizer=size.tokenizer,
        cut_padding=size.cut_padding,
        packs_texts=size.packs_texts,
        logit_scale=math.log(1 / 0.07),
        rules=rules,
    )
