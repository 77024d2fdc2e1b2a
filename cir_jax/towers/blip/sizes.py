# SPDX-License-Identifier: Apache-2.0
"""Sizes of BLIP, as released by Salesforce, a tiny one, and a name for any other.

Source: section 4.1 of Li et al., BLIP, ICML 2022, and the shapes of the released weights. The text
encoder is that of BERT-base in all of them.

A size that has no name here is written out:

    vit-384-16-w768-l12-h12_med-w768-l12-h12_d256

side of the image and of a patch, width, layers and heads of the image side; width, layers and heads
of the text encoder; the width D of the common space. `-m5120` after a width is an inner width of
the MLP that is not four times it.
"""

import dataclasses
import re
from dataclasses import dataclass

from cir_jax.errors import UserError
from cir_jax.towers import size_parts
from cir_jax.towers.clip.sizes import TextSize, VisionTransformerSize

VOCABULARY = 30524  # bert-base-uncased, [DEC] and [ENC]
CONTEXT = 512  # text positions of BERT
HEAD = 64  # channels of an attention head in every released one


@dataclass(frozen=True)
class BlipSize:
    """Both encoders and the width D of their common space."""

    vision: VisionTransformerSize
    text: TextSize
    embedding: int


_BERT_BASE = TextSize(width=768, layers=12, heads=12)

SIZES = {
    "blip-base": BlipSize(VisionTransformerSize(384, 16, 768, 12, 12), _BERT_BASE, 256),
    # The pretrained weights, before they are fine-tuned on larger images.
    "blip-base-224": BlipSize(VisionTransformerSize(224, 16, 768, 12, 12), _BERT_BASE, 256),
    "blip-large": BlipSize(VisionTransformerSize(384, 16, 1024, 24, 16), _BERT_BASE, 256),
    # Ours: it trains from nothing on two CPU cores within minutes.
    "tiny-blip": BlipSize(VisionTransformerSize(64, 16, 128, 2, 2), TextSize(128, 2, 2), 64),
}

_WRITTEN = re.compile(
    r"vit-(?P<image>\d+)-(?P<patch>\d+)-w(?P<width>\d+)(?:-m(?P<mlp>\d+))?-l(?P<layers>\d+)"
    r"-h(?P<heads>\d+)"
    r"_med-w(?P<text_width>\d+)(?:-m(?P<text_mlp>\d+))?-l(?P<text_layers>\d+)"
    r"-h(?P<text_heads>\d+)_d(?P<embedding>\d+)"
)


def find(name: str, image: int = 0) -> BlipSize:
    """The size called `name`: a key of SIZES, or one that is written out; see the module docstring.

    Args:
      name: of the size.
      image: another side of the image in pixels; 0 means the size's own.

    Raises:
      UserError: no such size (what exists is listed), or one that no encoder can have.
    """
    if name in SIZES:
        size = SIZES[name]
    elif written := _WRITTEN.fullmatch(name):
        number = {key: int(value) for key, value in written.groupdict("0").items()}
        vision = (number[k] for k in ("image", "patch", "width", "layers", "heads", "mlp"))
        text = (number[f"text_{k}"] for k in ("width", "layers", "heads", "mlp"))
        size = BlipSize(VisionTransformerSize(*vision), TextSize(*text), number["embedding"])
        size = normal_form(size)
    else:
        raise size_parts.unknown(name, SIZES, "blip", " of BLIP")
    if image:
        size = with_image(size, image)
    check(size, f"tower {name!r}")
    return size


def name_of(size: BlipSize) -> str:
    """The inverse of `find`: the shortest name of a size."""
    for name, known in SIZES.items():
        if known == size:
            return name
    vision, text = size.vision, size.text
    return (
        f"vit-{vision.image}-{vision.patch}-w{vision.width}{size_parts.mlp(vision)}-l{vision.layers}"
        f"-h{vision.heads}_med-w{text.width}{size_parts.mlp(text)}-l{text.layers}-h{text.heads}"
        f"_d{size.embedding}"
    )


def with_image(size: BlipSize, image: int) -> BlipSize:
    """The same encoders for images of another side."""
    return dataclasses.replace(size, vision=dataclasses.replace(size.vision, image=image))


def normal_form(size: BlipSize) -> BlipSize:
    """The same size, with an MLP of four times the width written as 0: equal sizes compare so."""
    return dataclasses.replace(
        size, vision=size_parts.short(size.vision), text=size_parts.short(size.text)
    )


def check(size: BlipSize, where: str) -> None:
    """Raises UserError, which begins with `where`, if no encoder can have this size."""
    sides = ("image", size.vision), ("text", size.text)
    wrong = size_parts.undivided((part, side.width, side.heads) for part, side in sides)
    image, patch = size.vision.image, size.vision.patch
    if min(image, patch) < 1 or image % patch:
        wrong.append(f"an image of {image} pixels does not divide into patches of {patch}")
    if size.embedding < 1:
        wrong.append(f"an embedding of {size.embedding}")
    if wrong:
        raise UserError(f"{where}: {'; '.join(wrong)}; correct model.tower or model.image_size")
