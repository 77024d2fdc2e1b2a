# SPDX-License-Identifier: Apache-2.0
"""Sizes of the encoders of TIPSv2, as released, and a name for any other.

Source: Cao et al., "TIPSv2", arXiv 2604.12012, and the configs of the released weights
(Apache-2.0). A size without a name is written out:

    tips-448-14-w768-l12-h12-r1_text-w768-l12-h12-v32000

side of the image and of a patch, width, layers, heads and register tokens of the image side; width,
layers, heads and vocabulary of the text side. Both widths are one, that of the features. `-m4096`
after a width is an inner width of the MLP that is not four times it, and `-gated` after the
registers has gated MLPs on the image side.
"""

import dataclasses
import re
from dataclasses import dataclass

from cir_jax.errors import UserError
from cir_jax.towers import size_parts
from cir_jax.towers.clip.sizes import TextSize, VisionTransformerSize

VOCABULARY = 32_000
CONTEXT = 64  # text positions of every released one
PADDING = 0  # id behind a text


@dataclass(frozen=True)
class TipsSize:
    """Both encoders.

    Attributes:
      vision: of the ViT.
      text: of the text transformer, of the same width.
      registers: tokens of the image side beside class and patches. The first one was trained as a
        second class token.
      gated: gated MLPs on the image side.
      vocabulary: number of token ids.
    """

    vision: VisionTransformerSize
    text: TextSize
    registers: int = 1
    gated: bool = False
    vocabulary: int = VOCABULARY


SIZES = {
    "TIPSv2-B/14": TipsSize(VisionTransformerSize(448, 14, 768, 12, 12), TextSize(768, 12, 12)),
    "TIPSv2-L/14": TipsSize(VisionTransformerSize(448, 14, 1024, 24, 16), TextSize(1024, 12, 16)),
    "TIPSv2-So400m/14": TipsSize(
        VisionTransformerSize(448, 14, 1152, 27, 16, 4304), TextSize(1152, 27, 16, 4304)
    ),
    "TIPSv2-g/14": TipsSize(
        VisionTransformerSize(448, 14, 1536, 40, 24, 4096), TextSize(1536, 12, 24), gated=True
    ),
}
_WRITTEN = re.compile(
    r"tips-(?P<image>\d+)-(?P<patch>\d+)-w(?P<width>\d+)(?:-m(?P<mlp>\d+))?-l(?P<layers>\d+)"
    r"-h(?P<heads>\d+)-r(?P<registers>\d+)(?P<gated>-gated)?"
    r"_text-w(?P<text_width>\d+)(?:-m(?P<text_mlp>\d+))?-l(?P<text_layers>\d+)"
    r"-h(?P<text_heads>\d+)-v(?P<vocabulary>\d+)"
)


def owns(name: str) -> bool:
    """Whether a name is one of SIZES, or written out as one of these."""
    return name in SIZES or _WRITTEN.fullmatch(name) is not None


def find(name: str) -> TipsSize:
    """The size called `name`.

    Raises:
      UserError: no such size (what exists is listed), or one that no encoder can have.
    """
    if name in SIZES:
        return SIZES[name]
    found = _WRITTEN.fullmatch(name)
    if found is None:
        raise size_parts.unknown(name, SIZES, "tips")
    number = {key: int(value) for key, value in found.groupdict("0").items() if key != "gated"}
    vision = (number[key] for key in ("image", "patch", "width", "layers", "heads", "mlp"))
    text = (number[f"text_{key}"] for key in ("width", "layers", "heads", "mlp"))
    size = TipsSize(
        VisionTransformerSize(*vision), TextSize(*text), number["registers"],
        found["gated"] is not None, number["vocabulary"],
    )  # fmt: skip
    check(size, f"tower {name!r}")
    return normal_form(size)


def name_of(size: TipsSize) -> str:
    """The inverse of `find`: the shortest name of a size."""
    for name, known in SIZES.items():
        if known == size:
            return name
    vision, text = size.vision, size.text
    first = f"tips-{vision.image}-{vision.patch}-w{vision.width}{size_parts.mlp(vision)}"
    first += f"-l{vision.layers}-h{vision.heads}-r{size.registers}{'-gated' * size.gated}"
    second = (
        f"text-w{text.width}{size_parts.mlp(text)}-l{text.layers}-h{text.heads}-v{size.vocabulary}"
    )
    return f"{first}_{second}"


def normal_form(size: TipsSize) -> TipsSize:
    """The same size, with an MLP of four times the width written as 0: equal sizes compare so."""
    return dataclasses.replace(
        size, vision=size_parts.short(size.vision), text=size_parts.short(size.text)
    )


def check(size: TipsSize, where: str) -> None:
    """Raises UserError, which begins with `where`, if no encoder can have this size."""
    vision, text = size.vision, size.text
    sides = ("vision", vision.width, vision.heads), ("text", text.width, text.heads)
    wrong = size_parts.undivided(sides)
    if vision.width != text.width:
        wrong.append(f"widths {vision.width} and {text.width}, which must be one")
    if text.width % 2 or text.width < 4:
        wrong.append(f"text width {text.width}: sine positions need an even one of at least 4")
    if vision.patch < 1 or vision.image < vision.patch:
        wrong.append(f"an image of {vision.image} pixels has no patch of {vision.patch}")
    if wrong:
        raise UserError(f"{where}: {'; '.join(wrong)}; correct that")
