# SPDX-License-Identifier: Apache-2.0
"""Sizes of BLIP-2's encoders: the released one, a tiny one, and a name for any other.

Source: Li et al., "BLIP-2: Bootstrapping Language-Image Pre-training with Frozen Image Encoders and
Large Language Models", ICML 2023, section 3, and the shapes of the released weights.

A size that has no name here is written out:

    eva-224-14-w1408-m6144-l39-h16_qformer-w768-l12-h12-q32_d256

side of the image and of a patch, width, inner width of the MLP (left out where it is four times the
width), layers, heads; the same of the Q-Former, with its number of learned queries; the width D of
the common space. Every second layer of a Q-Former looks at the image, so it has pairs of layers.
"""

import dataclasses
import re
from dataclasses import dataclass

from cir_jax.errors import UserError
from cir_jax.towers import size_parts
from cir_jax.towers.clip.sizes import VisionTransformerSize

VOCABULARY = 30523  # bert-base-uncased and one token that was added, [DEC]
POSITIONS = 512  # of BERT; a text takes 32 of them
CONTEXT = 32  # longest text in tokens


@dataclass(frozen=True)
class QFormerSize:
    """A Q-Former of `layers` layers, an even number, with `queries` learned tokens.

    `mlp` is the inner width of its MLPs; 0 means 4 x `width`.
    """

    width: int
    layers: int
    heads: int
    queries: int
    mlp: int = 0


@dataclass(frozen=True)
class Blip2Size:
    """Image encoder, Q-Former, and the width D of the common space."""

    vision: VisionTransformerSize
    former: QFormerSize
    embedding: int


SIZES = {
    "blip2-vit-g": Blip2Size(
        VisionTransformerSize(224, 14, 1408, 39, 16, mlp=6144),
        QFormerSize(width=768, layers=12, heads=12, queries=32),
        256,
    ),
    # Ours: it trains from nothing on two CPU cores within minutes.
    "tiny-blip2": Blip2Size(
        VisionTransformerSize(64, 8, 64, 1, 2),
        QFormerSize(width=64, layers=2, heads=2, queries=8),
        64,
    ),
}

_WRITTEN = re.compile(
    r"eva-(?P<image>\d+)-(?P<patch>\d+)-w(?P<width>\d+)(?:-m(?P<mlp>\d+))?-l(?P<layers>\d+)"
    r"-h(?P<heads>\d+)_qformer-w(?P<q_width>\d+)(?:-m(?P<q_mlp>\d+))?-l(?P<q_layers>\d+)"
    r"-h(?P<q_heads>\d+)-q(?P<queries>\d+)_d(?P<embedding>\d+)"
)


def find(name: str) -> Blip2Size:
    """The size called `name`: a key of SIZES, or one that is written out; see the module docstring.

    Raises:
      UserError: no such size (what exists is listed), or one that no encoder can have.
    """
    if name in SIZES:
        return SIZES[name]
    written = _WRITTEN.fullmatch(name)
    if written is None:
        raise size_parts.unknown(name, SIZES, "blip2", " of BLIP-2")
    n = {key: int(value) for key, value in written.groupdict("0").items()}
    size = Blip2Size(
        VisionTransformerSize(
            *(n[k] for k in ("image", "patch", "width", "layers", "heads", "mlp"))
        ),
        QFormerSize(*(n[k] for k in ("q_width", "q_layers", "q_heads", "queries", "q_mlp"))),
        n["embedding"],
    )
    check(size, f"tower {name!r}")
    return normal_form(size)


def name_of(size: Blip2Size) -> str:
    """The inverse of `find`: the shortest name of a size."""
    size = normal_form(size)
    for name, known in SIZES.items():
        if normal_form(known) == size:
            return name
    vision, former = size.vision, size.former
    first = f"eva-{vision.image}-{vision.patch}-{_transformer(vision)}"
    second = f"qformer-{_transformer(former)}-q{former.queries}"
    return f"{first}_{second}_d{size.embedding}"


def normal_form(size: Blip2Size) -> Blip2Size:
    """The same size, with an MLP of four times the width written as 0: equal sizes compare so."""
    return dataclasses.replace(
        size, vision=size_parts.short(size.vision), former=size_parts.short(size.former)
    )


def check(size: Blip2Size, where: str) -> None:
    """Raises UserError, which begins with `where`, if no encoder can have this size."""
    vision, former = size.vision, size.former
    sides = ("vision", vision), ("Q-Former", former)
    wrong = size_parts.undivided((part, one.width, one.heads) for part, one in sides)
    if vision.patch < 1 or vision.image < vision.patch:
        wrong.append(f"an image of {vision.image} pixels has no patch of {vision.patch}")
    if vision.layers < 1:
        wrong.append("an image encoder of no layers")
    if former.layers < 2 or former.layers % 2:
        wrong.append(f"a Q-Former of {former.layers} layers, not of pairs of them")
    if former.queries < 1 or size.embedding < 1:
        wrong.append(f"{former.queries} queries and an embedding of {size.embedding}")
    if wrong:
        raise UserError(f"{where}: {'; '.join(wrong)}; correct that")


def _transformer(part: VisionTransformerSize | QFormerSize) -> str:
    return f"w{part.width}{size_parts.mlp(part)}-l{part.layers}-h{part.heads}"
