# SPDX-License-Identifier: Apache-2.0
"""Sizes of SigLIP and of SigLIP 2 at fixed resolution, as released, tiny ones, and any other.

Sources: Zhai et al., arXiv 2303.15343; Tschannen et al., "SigLIP 2", arXiv 2502.14786; the shapes
of the released weights. Both have one shape; they differ in what their texts were: SigLIP's are of
a SentencePiece model of 32,000 pieces, filled up with its end token (1); SigLIP 2's of Gemma's
tokenizer of 256,000, in lower case and filled up with 0.

A size that has no name here is written out; `siglip2-` begins one whose texts are as SigLIP 2's:

    siglip-224-16-w768-l12-h12_text-w768-l12-h12-v32000-c64_d768

side of the image and of a patch, width, layers, heads; of the text also the words of its table and
its positions; the width D of the common space. `-m4304` after a width is an inner width of the MLP
that is not four times it.
"""

import dataclasses
import re
from dataclasses import dataclass

from cir_jax.errors import UserError
from cir_jax.towers import size_parts
from cir_jax.towers.clip.sizes import TextSize, VisionTransformerSize

CONTEXT = 64  # text positions of every released one
WORDS = {1: 32_000, 2: 256_000}  # generation -> rows of its table of tokens
PADS = {1: 1, 2: 0}  # generation -> the id that fills texts up


@dataclass(frozen=True)
class SiglipTextSize(TextSize):
    """The text transformer, whose table has `words` rows, and `context` positions."""

    words: int = WORDS[1]
    context: int = CONTEXT


@dataclass(frozen=True)
class SiglipSize:
    """Both towers; D is the width of the image tower in every released one.

    `generation` is 1 or 2, of SigLIP 2: how its texts were made, see the module.
    """

    vision: VisionTransformerSize
    text: SiglipTextSize
    embedding: int
    generation: int = 1


_SHAPES = {  # name -> width, layers, heads, inner width of the MLP, of both towers
    "B": (768, 12, 12, 0), "L": (1024, 24, 16, 0), "So400m": (1152, 27, 16, 4304),
}  # fmt: skip
_RELEASED = {  # generation -> (shape, patch) -> sides
    1: {("B", 16): (224, 256, 384, 512), ("L", 16): (256, 384), ("So400m", 14): (224, 384)},
    2: {
        ("B", 32): (256,),
        ("B", 16): (224, 256, 384, 512),
        ("L", 16): (256, 384, 512),
        ("So400m", 14): (224, 384),
        ("So400m", 16): (256, 384, 512),
    },
}


def _released() -> dict[str, SiglipSize]:
    found = {}
    for generation, kinds in _RELEASED.items():
        for (shape, patch), sides in kinds.items():
            width, layers, heads, mlp = _SHAPES[shape]
            text = SiglipTextSize(width, layers, heads, mlp, WORDS[generation])
            for side in sides:
                vision = VisionTransformerSize(side, patch, width, layers, heads, mlp)
                name = f"SigLIP{'' if generation == 1 else 2}-{shape}/{patch}-{side}"
                found[name] = SiglipSize(vision, text, width, generation)
    return found


_TINY = SiglipSize(
    VisionTransformerSize(32, 8, 64, 2, 2, 96), SiglipTextSize(64, 2, 2, 96, 128, 16), 64
)
SIZES: dict[str, SiglipSize] = {
    **_released(),
    "tiny-siglip": _TINY,
    "tiny-siglip2": dataclasses.replace(_TINY, generation=2),
}
_WRITTEN = re.compile(
    r"siglip(?P<generation>2?)-(?P<image>\d+)-(?P<patch>\d+)-w(?P<width>\d+)(?:-m(?P<mlp>\d+))?"
    r"-l(?P<layers>\d+)-h(?P<heads>\d+)_text-w(?P<text_width>\d+)(?:-m(?P<text_mlp>\d+))?"
    r"-l(?P<text_layers>\d+)-h(?P<text_heads>\d+)-v(?P<words>\d+)-c(?P<context>\d+)"
    r"_d(?P<embedding>\d+)"
)


def is_written(name: str) -> bool:
    """Whether a name is one that is written out."""
    return _WRITTEN.fullmatch(name) is not None


def find(name: str) -> SiglipSize:
    """The size called `name`: a key of SIZES, or one that is written out, see the module.

    Raises:
      UserError: no such size (what exists is listed), or one that no encoder can have.
    """
    if name in SIZES:
        return SIZES[name]
    written = _WRITTEN.fullmatch(name)
    if written is None:
        raise size_parts.unknown(name, SIZES, "siglip")
    number = {key: int(value or 0) for key, value in written.groupdict().items()}
    size = SiglipSize(
        VisionTransformerSize(
            *(number[k] for k in ("image", "patch", "width", "layers", "heads", "mlp"))
        ),
        SiglipTextSize(
            **{k: number[f"text_{k}"] for k in ("width", "layers", "heads", "mlp")},
            **{k: number[k] for k in ("words", "context")},
        ),
        number["embedding"],
        number["generation"] or 1,
    )
    check(size, f"tower {name!r}")
    return normal_form(size)


def name_of(size: SiglipSize) -> str:
    """The inverse of `find`: the shortest name of a size."""
    size = normal_form(size)
    for name, known in SIZES.items():
        if normal_form(known) == size:
            return name
    vision, text = size.vision, size.text
    first = f"siglip{'' if size.generation == 1 else 2}-{vision.image}-{vision.patch}"
    first += f"-w{vision.width}{size_parts.mlp(vision)}-l{vision.layers}-h{vision.heads}"
    second = f"text-w{text.width}{size_parts.mlp(text)}-l{text.layers}-h{text.heads}"
    return f"{first}_{second}-v{text.words}-c{text.context}_d{size.embedding}"


def normal_form(size: SiglipSize) -> SiglipSize:
    """The same size, with an MLP of four times the width written as 0: equal sizes compare so."""
    return dataclasses.replace(
        size, vision=size_parts.short(size.vision), text=size_parts.short(size.text)
    )


def check(size: SiglipSize, where: str) -> None:
    """Raises UserError, which begins with `where`, if no encoder can have this size."""
    vision, text = size.vision, size.text
    sides = ("vision", vision.width, vision.heads), ("text", text.width, text.heads)
    wrong = size_parts.undivided(sides)
    if vision.patch < 1 or vision.image < vision.patch:
        wrong.append(f"an image of {vision.image} pixels has no patch of {vision.patch}")
    if size.embedding != vision.width:
        wrong.append(
            f"an embedding of {size.embedding} beside an image width of {vision.width}, of which "
            "it is the feature"
        )
    if min(text.words, text.context) < 1:
        wrong.append(f"{text.words} words and {text.context} positions of a text")
    if wrong:
        raise UserError(f"{where}: {'; '.join(wrong)}; correct that")
