# SPDX-License-Identifier: Apache-2.0
"""The two parts of EmbeddingGemma 2 as an `Encoder`: see `cir_jax.towers.encoder`.

It is no pair of towers that any model may stand on: its text part reads soft tokens of the image
part. Pixels are normalised to -1 to 1. The published processor keeps the sides of an image in
proportion; squares, which are all that this project makes, it resizes as we do.
"""

from dataclasses import dataclass
from typing import Any

from flax import nnx

from cir_jax.data import tokens
from cir_jax.data.pixels import Normalisation, Resize
from cir_jax.data.tokenizer_files import Rules
from cir_jax.towers.encoder import Encoder
from cir_jax.towers.gemma import sizes
from cir_jax.towers.gemma.bidirectional import Encoder as Bidirectional
from cir_jax.towers.gemma.sizes import GemmaSize
from cir_jax.towers.gemma.vision import VisionEncoder
from cir_jax.towers.layers import DTYPES

HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True, kw_only=True)
class GemmaEncoder(Encoder):
    """An image encoder, and the encoder of its soft tokens and of text tokens.

    Attributes:
      size: of both.
      around: ids of start and end of a text.
    """

    size: GemmaSize
    around: tuple[int, int]

    def build(self, config: Any, rngs: nnx.Rngs) -> tuple[Any, Any]:
        """(visual, text): visual(pixels) gives [B, R, C] soft tokens, text(ids, soft tokens) [B, D]
        embeddings. See `Encoder`.
        """
        size = self.size
        options: dict[str, Any] = {"dtype": DTYPES[config.dtype], "remat": config.remat}
        options["rngs"] = rngs
        visual = VisionEncoder(size.vision, size.text.width, attention=config.attention, **options)
        return visual, Bidirectional(size.text, size.embedding, size.marks, **options)

    def roles(self) -> list[tuple[str, str]]:
        """The image part is the index; the encoder behind it is the query, and the index too."""
        return [
            (r"text/periods/.*/factor", "statistic"),
            (r"visual/.*", "index"),
            (r"text/.*", "query"),
        ]

    def sharding(self) -> list[tuple[str, tuple]]:
        """Matrices over "model"; the few key heads stay whole."""
        blocks = r"(visual/blocks|text/periods/layers/\d+)"
        return [
            (rf"{blocks}/(attention/query|mlp/gate|mlp/up)/kernel", (None, None, "model")),
            (rf"{blocks}/(attention/out|mlp/down)/kernel", (None, "model", None)),
            (r"visual/blocks/attention/(key|value)/kernel", (None, None, "model")),
            (r"text/tokens", ("model", None)),
        ]


def encoder(name: str, image: int = 0) -> GemmaEncoder:
    """The encoders of a size, see `sizes.find`.

    Raises:
      UserError: a size that no encoder can have.
    """
    size = sizes.find(name, image)
    own = size.own_words  # CLIP's and the marks of an image
    around = (sizes.CLIP_WORDS - 2, sizes.CLIP_WORDS - 1) if own else (sizes.START, sizes.END)
    return GemmaEncoder(
        name=name,
        family="gemma",
        size=size,
        around=around,
        image_size=size.vision.image,
        context=sizes.CONTEXT,
        embedding=size.embedding,
        vision_width=size.text.width,
        text_width=size.text.width,
        tokens=False,
        tokenizer="clip" if own else tokens.FILE,
        cut_padding=True,
        packs_texts=False,
        logit_scale=0.0,
        pixels=Normalisation(HALF, HALF),
        resize=Resize("squash", "bicubic"),
        rules=Rules(context=sizes.CONTEXT, pad=sizes.PAD, words=size.text.vocabulary),
    )
