# SPDX-License-Identifier: Apache-2.0
"""The two towers of a SigLIP as an `Encoder`: see `cir_jax.towers.encoder`."""

import math
from dataclasses import dataclass
from typing import Any

from cir_jax.data import tokens
from cir_jax.data.pixels import Normalisation, Resize
from cir_jax.data.tokenizer_files import Rules
from cir_jax.towers.encoder import BLOCKS, Encoder
from cir_jax.towers.siglip import sizes
from cir_jax.towers.siglip.sizes import SiglipSize

PIXELS = Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
# As the image processors of the released weights have it.
RESIZES = {1: Resize("squash", "bicubic"), 2: Resize("squash", "bilinear")}


@dataclass(frozen=True, kw_only=True)
class SiglipEncoder(Encoder):
    """SigLIP's: a text is filled up, and read with what fills it up."""

    size: SiglipSize

    def build(self, config: Any, rngs: Any) -> tuple[Any, Any]:
        """See `Encoder`."""
        from cir_jax.towers.layers import DTYPES
        from cir_jax.towers.siglip.text import SiglipTextTransformer
        from cir_jax.towers.siglip.vit import SiglipVisionTransformer

        size = self.size
        options: dict[str, Any] = {
            "dtype": DTYPES[config.dtype], "remat": config.remat, "attention": config.attention,
            "rngs": rngs,
        }  # fmt: skip
        visual = SiglipVisionTransformer(size.vision, **options)
        pad, context = sizes.PADS[size.generation], config.context
        text = SiglipTextTransformer(size.text, size.embedding, pad, context=context, **options)
        return visual, text

    def roles(self) -> list[tuple[str, str]]:
        """The image side is the index, the text side the query."""
        return [(r"visual/.*", "index"), (r"text/.*", "query")]

    def sharding(self) -> list[tuple[str, tuple]]:
        """Matrices over "model"."""
        head = r"visual/head"
        return [
            *BLOCKS,
            (r"text/token_embedding", ("model", None)),
            (r"visual/patch_kernel", (None, None, None, "model")),
            (rf"{head}/attention/(query|key|value)/kernel", (None, "model")),
            (rf"{head}/attention/(query|key|value)/bias", ("model",)),
            (rf"{head}/attention/out/kernel", ("model", None)),
            (rf"{head}/mlp/fc1/kernel", (None, "model")),
            (rf"{head}/mlp/fc1/bias", ("model",)),
            (rf"{head}/mlp/fc2/kernel", ("model", None)),
            (r"text/head/kernel", ("model", None)),
        ]


def names() -> tuple[str, ...]:
    """Sizes with a name of their own."""
    return tuple(sizes.SIZES)


def owns(name: str) -> bool:
    """Whether a name is of a SigLIP: one of `names`, or written out."""
    return name in sizes.SIZES or sizes.is_written(name)


def encoder(name: str) -> SiglipEncoder:
    """The towers of a size, see `sizes.find`.

    Raises:
      UserError: a size that no encoder can have.
    """
    size = sizes.find(name)
    text, second = size.text, size.generation == 2
    return SiglipEncoder(
        name=name,
        family="siglip",
        size=size,
        image_size=size.vision.image,
        context=text.context,
        embedding=size.embedding,
        vision_width=size.vision.width,
        text_width=text.width,
        tokens=True,
        tokenizer=tokens.FILE,
        rules=Rules(text.context, sizes.PADS[size.generation], second, text.words),
        cut_padding=False,
        packs_texts=False,
        logit_scale=math.log(10.0),
        logit_bias=-10.0,
        pixels=PIXELS,
        resize=RESIZES[size.generation],
    )
