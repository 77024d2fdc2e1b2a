# SPDX-License-Identifier: Apache-2.0
"""The two towers of a CLIP as an `Encoder`: see `cir_jax.towers.encoder`."""

import math
from dataclasses import dataclass
from typing import Any

from cir_jax.towers.clip import sizes
from cir_jax.towers.clip.sizes import ClipSize
from cir_jax.towers.encoder import BLOCKS, Encoder


@dataclass(frozen=True, kw_only=True)
class ClipEncoder(Encoder):
    """CLIP's: texts are causal and read at their end, so they may be cut and packed."""

    size: ClipSize

    def build(self, config: Any, rngs: Any) -> tuple[Any, Any]:
        """See `Encoder`."""
        from cir_jax.towers.clip.resnet import ModifiedResNet
        from cir_jax.towers.clip.text import TextTransformer
        from cir_jax.towers.clip.vit import VisionTransformer
        from cir_jax.towers.layers import DTYPES

        size = self.size
        options: dict[str, Any] = {"dtype": DTYPES[config.dtype], "remat": config.remat}
        options["rngs"] = rngs
        transformer: dict[str, Any] = {
            "activation": size.activation, "attention": config.attention, **options,
        }  # fmt: skip
        visual: Any
        if isinstance(size.vision, sizes.VisionTransformerSize):
            visual = VisionTransformer(size.vision, size.embedding, **transformer)
        else:
            visual = ModifiedResNet(size.vision, size.embedding, **options)
        context = config.context
        return visual, TextTransformer(size.text, size.embedding, context=context, **transformer)

    def roles(self) -> list[tuple[str, str]]:
        """The image side is the index, the text side the query."""
        statistics = [] if self.tokens else [(r"visual/.*/(mean|var)", "statistic")]
        return [*statistics, (r"visual/.*", "index"), (r"text/.*", "query")]

    def sharding(self) -> list[tuple[str, tuple]]:
        """Matrices over "model"."""
        text = [(r"text/token_embedding", ("model", None))]
        visual: list[tuple[str, tuple]]
        if self.tokens:
            visual = [(r"visual/patch_kernel", (None, None, None, "model"))]
        else:
            visual = [
                (r"visual/stage.*/kernel", (None, None, None, "model")),
                (r"visual/conv.*/kernel", (None, None, None, "model")),
                (r"visual/pool/(query|key|value)/kernel", (None, "model")),
                (r"visual/pool/out/kernel", ("model", None)),
                (r"visual/pool/position", (None, "model")),
            ]
        return [*BLOCKS, *text, *visual, (r"(visual|text)/proj", ("model", None))]


def names() -> tuple[str, ...]:
    """Sizes with a name of their own."""
    return tuple(sizes.SIZES)


def owns(name: str) -> bool:
    """Whether a name is of a CLIP: one of `names`, or written out; with any `+activation`."""
    plain = name.partition("+")[0]
    return plain in sizes.SIZES or sizes.is_written(plain)


def encoder(name: str) -> ClipEncoder:
    """The towers of a size, see `sizes.find`.

    Raises:
      UserError: a size that no encoder can have.
    """
    size = sizes.find(name)
    is_vit = isinstance(size.vision, sizes.VisionTransformerSize)
    return ClipEncoder(
        name=name,
        family="clip",
        size=size,
        image_size=size.vision.image,
        context=sizes.CONTEXT,
        embedding=size.embedding,
        vision_width=size.vision.width if is_vit else 32 * size.vision.width,
        text_width=size.text.width,
        tokens=is_vit,
        tokenizer="clip",
        cut_padding=True,
        packs_texts=True,
        logit_scale=math.log(1 / 0.07),
    )
