# SPDX-License-Identifier: Apache-2.0
"""Sizes of the CLIP encoders, as released by OpenAI, two tiny ones, and a name for any other.

Source: table 20 of Radford et al., "Learning Transferable Visual Models From Natural Language
Supervision", and the shapes of the released weights.

A size that has no name here, of weights that somebody else trained, is written out:

    vit-224-14-w1024-l24-h16_text-w768-l12-h12_d768
    resnet-288-4.6.10.6-w80-h40_text-w640-l12-h10_d640

side of the image and of a patch (or blocks of the four stages), width, layers, heads; the same of
the text; the width D of the common space. `-m5120` after a width is an inner width of the MLP that
is not four times it, and `+gelu` at the end of any name, `ViT-B/32+gelu`, is the exact GELU that
many models of open_clip have, in place of OpenAI's QuickGELU.
"""

import dataclasses
import re
from dataclasses import dataclass

from cir_jax.errors import UserError, nearest

VOCABULARY = 49408  # CLIP's byte-pair tokens, start and end of text included
CONTEXT = 77  # text positions of every released CLIP
ACTIVATIONS = ("quick_gelu", "gelu")


@dataclass(frozen=True)
class VisionTransformerSize:
    """A ViT: side of its square input and of a patch in pixels, and the width of its tokens.

    `mlp` is the inner width of its MLPs; 0 means 4 x `width`.
    """

    image: int
    patch: int
    width: int
    layers: int
    heads: int
    mlp: int = 0


@dataclass(frozen=True)
class ResNetSize:
    """A CLIP ResNet: blocks per stage; the last stage has 32 x `width` channels.

    `heads` are those of the attention pool, of 64 channels each in every released one.
    """

    image: int
    blocks: tuple[int, ...]  # four
    width: int
    heads: int


@dataclass(frozen=True)
class TextSize:
    """The causal text transformer; `mlp` as for the ViT."""

    width: int
    layers: int
    heads: int
    mlp: int = 0


@dataclass(frozen=True)
class ClipSize:
    """Both encoders, the width D of their common space, and the activation of all their MLPs."""

    vision: VisionTransformerSize | ResNetSize
    text: TextSize
    embedding: int
    activation: str = "quick_gelu"


_TEXT_512 = TextSize(width=512, layers=12, heads=8)
_TEXT_640 = TextSize(width=640, layers=12, heads=10)
_TEXT_768 = TextSize(width=768, layers=12, heads=12)

SIZES = {
    "RN50": ClipSize(ResNetSize(224, (3, 4, 6, 3), 64, 32), _TEXT_512, 1024),
    "RN101": ClipSize(ResNetSize(224, (3, 4, 23, 3), 64, 32), _TEXT_512, 512),
    "RN50x4": ClipSize(ResNetSize(288, (4, 6, 10, 6), 80, 40), _TEXT_640, 640),
    "RN50x16": ClipSize(ResNetSize(384, (6, 8, 18, 8), 96, 48), _TEXT_768, 768),
    "ViT-B/32": ClipSize(VisionTransformerSize(224, 32, 768, 12, 12), _TEXT_512, 512),
    "ViT-B/16": ClipSize(VisionTransformerSize(224, 16, 768, 12, 12), _TEXT_512, 512),
    "ViT-L/14": ClipSize(VisionTransformerSize(224, 14, 1024, 24, 16), _TEXT_768, 768),
    "ViT-L/14@336px": ClipSize(VisionTransformerSize(336, 14, 1024, 24, 16), _TEXT_768, 768),
    # Ours, not OpenAI's: they train from nothing on two CPU cores within minutes.
    "tiny-vit": ClipSize(VisionTransformerSize(64, 16, 96, 3, 3), TextSize(96, 2, 3), 96),
    "tiny-resnet": ClipSize(ResNetSize(64, (1, 1, 1, 1), 16, 8), TextSize(96, 2, 3), 96),
}


_WRITTEN = re.compile(
    r"(?:vit-(?P<image>\d+)-(?P<patch>\d+)-w(?P<width>\d+)(?:-m(?P<mlp>\d+))?-l(?P<layers>\d+)"
    r"|resnet-(?P<side>\d+)-(?P<blocks>\d+\.\d+\.\d+\.\d+)-w(?P<channels>\d+))-h(?P<heads>\d+)"
    r"_text-w(?P<text_width>\d+)(?:-m(?P<text_mlp>\d+))?-l(?P<text_layers>\d+)"
    r"-h(?P<text_heads>\d+)_d(?P<embedding>\d+)"
)


def find(name: str) -> ClipSize:
    """The size called `name`: a key of SIZES, or one that is written out; see the module docstring.

    Raises:
      UserError: no such size (what exists is listed), or one that no encoder can have.
    """
    plain, plus, activation = name.partition("+")
    if plus and activation not in ACTIVATIONS:
        raise UserError(
            f"tower {name!r}: no activation {activation!r}; there are: {', '.join(ACTIVATIONS)}"
        )
    if plain in SIZES:
        size = SIZES[plain]
    elif written := _WRITTEN.fullmatch(plain):
        size = _written(written)
        check(size, f"tower {name!r}")
    else:
        raise UserError(
            f"no tower {name!r}; there are: {', '.join(SIZES)}.{nearest(plain, SIZES)} "
            "A size of your own is written out, as cir_jax/towers/clip/sizes.py says"
        )
    return dataclasses.replace(size, activation=activation or "quick_gelu")


def is_written(plain: str) -> bool:
    """Whether a name without its activation is one that is written out."""
    return _WRITTEN.fullmatch(plain) is not None


def name_of(size: ClipSize) -> str:
    """The inverse of `find`: the shortest name of a size."""
    plus = "" if size.activation == "quick_gelu" else f"+{size.activation}"
    plain = dataclasses.replace(size, activation="quick_gelu")
    for name, known in SIZES.items():
        if known == plain:
            return name + plus
    vision, text = size.vision, size.text
    if isinstance(vision, ResNetSize):
        blocks = ".".join(map(str, vision.blocks))
        first = f"resnet-{vision.image}-{blocks}-w{vision.width}-h{vision.heads}"
    else:
        first = f"vit-{vision.image}-{vision.patch}-w{vision.width}{_mlp(vision)}"
        first += f"-l{vision.layers}-h{vision.heads}"
    second = f"text-w{text.width}{_mlp(text)}-l{text.layers}-h{text.heads}"
    return f"{first}_{second}_d{size.embedding}{plus}"


def normal_form(size: ClipSize) -> ClipSize:
    """The same size, with an MLP of four times the width written as 0: equal sizes compare so."""

    def short(part):
        same = isinstance(part, ResNetSize) or part.mlp != 4 * part.width
        return part if same else dataclasses.replace(part, mlp=0)

    return dataclasses.replace(size, vision=short(size.vision), text=short(size.text))


def check(size: ClipSize, where: str) -> None:
    """Raises UserError, which begins with `where`, if no encoder can have this size."""
    vision, text = size.vision, size.text
    attention = [("text", text.width, text.heads)]
    if isinstance(vision, ResNetSize):
        attention.append(("attention pool", 32 * vision.width, vision.heads))
        side = 32
    else:
        attention.append(("vision", vision.width, vision.heads))
        side = vision.patch
    wrong = [
        f"{part} width {width} does not divide into {heads} heads"
        for part, width, heads in attention
        if heads < 1 or width < 1 or width % heads
    ]
    if side < 1 or vision.image < side:
        wrong.append(f"an image of {vision.image} pixels has no patch of {side}")
    if isinstance(vision, ResNetSize) and (vision.image % 32 or min(vision.blocks) < 1):
        wrong.append(f"blocks {vision.blocks} and image {vision.image}: at least 1, and 32 x n")
    if size.embedding < 1:
        wrong.append(f"an embedding of {size.embedding}")
    if wrong:
        raise UserError(f"{where}: {'; '.join(wrong)}; correct that")


def _mlp(part: VisionTransformerSize | TextSize) -> str:
    return f"-m{part.mlp}" if part.mlp else ""


def _written(found: re.Match) -> ClipSize:
    vision: ResNetSize | VisionTransformerSize
    number = {key: int(value) for key, value in found.groupdict("0").items() if key != "blocks"}
    if found["side"]:
        blocks = tuple(map(int, found["blocks"].split(".")))
        vision = ResNetSize(number["side"], blocks, number["channels"], number["heads"])
    else:
        vision = VisionTransformerSize(
            *(number[k] for k in ("image", "patch", "width", "layers", "heads", "mlp"))
        )
    text = TextSize(*(number[f"text_{k}"] for k in ("width", "layers", "heads", "mlp")))
    return normal_form(ClipSize(vision, text, number["embedding"]))
