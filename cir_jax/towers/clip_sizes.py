# SPDX-License-Identifier: Apache-2.0
"""Sizes of the CLIP encoders, as released by OpenAI, and two tiny ones for laptops and tests.

Source: table 20 of Radford et al., "Learning Transferable Visual Models From Natural Language
Supervision", and the shapes of the released weights.
"""

from dataclasses import dataclass

from cir_jax.errors import UserError, nearest

VOCABULARY = 49408  # CLIP's byte-pair tokens, start and end of text included
CONTEXT = 77  # text positions of every released CLIP


@dataclass(frozen=True)
class VisionTransformerSize:
    """A ViT: side of its square input and of a patch in pixels, and the width of its tokens."""

    image: int
    patch: int
    width: int
    layers: int
    heads: int


@dataclass(frozen=True)
class ResNetSize:
    """A CLIP ResNet: blocks per stage; the last stage has 32 x `width` channels."""

    image: int
    blocks: tuple[int, int, int, int]
    width: int

    @property
    def heads(self) -> int:
        """Heads of the attention pool, 64 channels each."""
        return self.width * 32 // 64


@dataclass(frozen=True)
class TextSize:
    """The causal text transformer."""

    width: int
    layers: int
    heads: int


@dataclass(frozen=True)
class ClipSize:
    """Both encoders and the width D of their common space."""

    vision: VisionTransformerSize | ResNetSize
    text: TextSize
    embedding: int


_TEXT_512 = TextSize(width=512, layers=12, heads=8)
_TEXT_640 = TextSize(width=640, layers=12, heads=10)
_TEXT_768 = TextSize(width=768, layers=12, heads=12)

SIZES = {
    "RN50": ClipSize(ResNetSize(224, (3, 4, 6, 3), 64), _TEXT_512, 1024),
    "RN101": ClipSize(ResNetSize(224, (3, 4, 23, 3), 64), _TEXT_512, 512),
    "RN50x4": ClipSize(ResNetSize(288, (4, 6, 10, 6), 80), _TEXT_640, 640),
    "RN50x16": ClipSize(ResNetSize(384, (6, 8, 18, 8), 96), _TEXT_768, 768),
    "ViT-B/32": ClipSize(VisionTransformerSize(224, 32, 768, 12, 12), _TEXT_512, 512),
    "ViT-B/16": ClipSize(VisionTransformerSize(224, 16, 768, 12, 12), _TEXT_512, 512),
    "ViT-L/14": ClipSize(VisionTransformerSize(224, 14, 1024, 24, 16), _TEXT_768, 768),
    "ViT-L/14@336px": ClipSize(VisionTransformerSize(336, 14, 1024, 24, 16), _TEXT_768, 768),
    # Ours, not OpenAI's: they train from nothing on two CPU cores within minutes.
    "tiny-vit": ClipSize(VisionTransformerSize(64, 16, 96, 3, 3), TextSize(96, 2, 3), 96),
    "tiny-resnet": ClipSize(ResNetSize(64, (1, 1, 1, 1), 16), TextSize(96, 2, 3), 96),
}


def find(name: str) -> ClipSize:
    """The size called `name`.

    Raises:
      UserError: no such size; what exists is listed.
    """
    if name not in SIZES:
        raise UserError(f"no tower {name!r}; there are: {', '.join(SIZES)}.{nearest(name, SIZES)}")
    return SIZES[name]
