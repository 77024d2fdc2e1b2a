# SPDX-License-Identifier: Apache-2.0
"""The two towers of a TIPSv2 as an `Encoder`: see `cir_jax.towers.encoder`."""

import math
from dataclasses import dataclass
from typing import Any

from cir_jax.data import tokens
from cir_jax.data.pixels import Normalisation, Resize
from cir_jax.data.tokenizer_files import Rules
from cir_jax.towers.encoder import BLOCKS, Encoder
from cir_jax.towers.tips import sizes
from cir_jax.towers.tips.sizes import PADDING, TipsSize

# Pixels go in as they are, from 0 to 1.
PIXELS = Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
RESIZE = Resize("squash", "bilinear")
TEMPERATURE = 0.005065968260169029  # of the softmax that the released ones were trained with


@dataclass(frozen=True, kw_only=True)
class TipsEncoder(Encoder):
    """TIPSv2's: the mean over the tokens of a text, which sees no padding."""

    size: TipsSize

    def build(self, config: Any, rngs: Any) -> tuple[Any, Any]:
        """See `Encoder`."""
        from cir_jax.towers.layers import DTYPES
        from cir_jax.towers.tips.text import TextEncoder
        from cir_jax.towers.tips.vision import ImageEncoder

        options: dict[str, Any] = {
            "dtype": DTYPES[config.dtype], "remat": config.remat, "attention": config.attention,
            "rngs": rngs,
        }  # fmt: skip
        visual = ImageEncoder(self.size, **options)
        return visual, TextEncoder(self.size, context=config.context, **options)

    def roles(self) -> list[tuple[str, str]]:
        """The image side is the index, the text side the query; the mask token stays as it is."""
        unread = (r"visual/mask_token", "statistic")
        return [unread, (r"visual/.*", "index"), (r"text/.*", "query")]

    def sharding(self) -> list[tuple[str, tuple]]:
        """Matrices over "model"."""
        gate = [
            (r"visual/blocks/mlp/gate/kernel", (None, None, "model")),
            (r"visual/blocks/mlp/gate/bias", (None, "model")),
        ]
        return [
            *(gate if self.size.gated else []),
            *BLOCKS,
            (r"text/token_embedding", ("model", None)),
            (r"visual/patch_kernel", (None, None, None, "model")),
        ]


def names() -> tuple[str, ...]:
    """Sizes with a name of their own."""
    return tuple(sizes.SIZES)


def owns(name: str) -> bool:
    """Whether a name is of a TIPSv2: one of `names`, or written out."""
    return sizes.owns(name)


def encoder(name: str) -> TipsEncoder:
    """The towers of a size, see `sizes.find`.

    Raises:
      UserError: a size that no encoder can have.
    """
    size = sizes.find(name)
    return TipsEncoder(
        name=name,
        family="tips",
        size=size,
        image_size=size.vision.image,
        context=sizes.CONTEXT,
        embedding=size.vision.width,
        vision_width=size.vision.width,
        text_width=size.text.width,
        tokens=True,
        tokenizer=tokens.FILE,
        cut_padding=True,
        packs_texts=False,
        logit_scale=-math.log(TEMPERATURE),
        pixels=PIXELS,
        resize=RESIZE,
        rules=Rules(context=sizes.CONTEXT, pad=PADDING, lower=True, words=size.vocabulary),
    )
