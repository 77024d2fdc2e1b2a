# SPDX-License-Identifier: Apache-2.0
"""Sizes of the CLIP encoders, as released by OpenAI and by others, and a name for any size.

Source: table 20 of Radford et al., "Learning Transferable Visual Models From Natural Language
Supervision", the model configs of open_clip, and the shapes of the released weights.

A size that has no name here, of weights that somebody else trained, is written out:

    vit-224-14-w1024-l24-h16_text-w768-l12-h12_d768
    resnet-288-4.6.10.6-w80-h40_text-w640-l12-h10_d640

side of the image and of a patch (or blocks of the four stages), width, layers, heads; the same of
the text; the width D of the common space. `-m5120` after a width is an inner width of the MLP that
is not four times it, and `eva-` in place of `vit-` is the image encoder of EVA-02.

Any name may go on with what differs from OpenAI's encoders, each behind a plus:
`ViT-B/32+gelu` has the exact GELU that most models of open_clip have, in place of QuickGELU;
`ViT-B/32+gelu+image-scale` a learned scale of what each block of the image side adds as well. The
table OPTIONS has all of them. open_clip's own names of its plain ViTs are known too: `ViT-H-14` is
`ViT-H/14+gelu`, and `ViT-H-14-378-quickgelu` is `ViT-H/14@378px`.
"""

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

from cir_jax.errors import UserError, nearest
from cir_jax.towers import size_parts

VOCABULARY = 49408  # CLIP's byte-pair tokens, start and end of text included
CONTEXT = 77  # text positions of every released CLIP
ACTIVATIONS = ("quick_gelu", "gelu", "gelu_tanh")


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
class EvaSize(VisionTransformerSize):
    """The ViT of EVA-02-CLIP, see `cir_jax.towers.clip.eva`: rotary positions, gated MLPs."""


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
class VisionVariant:
    """What differs from OpenAI's ViT on the image side.

    Attributes:
      scale: what each half of a block adds is multiplied by a learned vector (LayerScale).
      norm_in: a norm before the first block.
      pool: "class", the class token; "mean", the mean of all patches, normed afterwards; or
        "normed_mean", the mean of the normed patches.
      queries: learned queries of CoCa's attention pool, of which the first one is read; 0 for
        none.
      query_heads: heads of that pool.
      epsilon: of every norm but those of the attention pool.
    """

    scale: bool = False
    norm_in: bool = True
    pool: str = "class"
    queries: int = 0
    query_heads: int = 8
    epsilon: float = 1e-5


@dataclass(frozen=True)
class TextVariant:
    """What differs from OpenAI's text transformer.

    Attributes:
      vocabulary: number of token ids. Any other than CLIP's 49408 is of a tokenizer that comes
        with the weights.
      end: id of the token where a text is read, the first of them; 0 for the largest id of a text,
        which the end of text is in CLIP's vocabulary.
      pool: "end", as `end` says; "first" or "last", the token at that place of the whole context.
      class_token: a learned token behind every text, where it is read, as in CoCa.
      causal: a token sees itself and what is before it.
      scale: as of the image side.
      bias: of the projection.
      epsilon: of every norm.
    """

    vocabulary: int = VOCABULARY
    end: int = 0
    pool: str = "end"
    class_token: bool = False
    causal: bool = True
    scale: bool = False
    bias: bool = False
    epsilon: float = 1e-5


PLAIN_VISION, PLAIN_TEXT = VisionVariant(), TextVariant()  # OpenAI's


@dataclass(frozen=True)
class ClipSize:
    """Both encoders, the width D of their common space, and the activation of all their MLPs.

    The MLPs of an `EvaSize` are gated, whatever the activation is.
    """

    vision: VisionTransformerSize | ResNetSize
    text: TextSize
    embedding: int
    activation: str = "quick_gelu"
    vision_variant: VisionVariant = PLAIN_VISION
    text_variant: TextVariant = PLAIN_TEXT

    @property
    def context(self) -> int:
        """Text positions where nothing else is said: 77, of which a class token takes one."""
        return CONTEXT - self.text_variant.class_token

    @property
    def tokenizer(self) -> str:
        """CLIP's own, "clip", or "file": the one that comes with the weights."""
        return "clip" if self.text_variant.vocabulary == VOCABULARY else "file"

    @property
    def cut_padding(self) -> bool:
        """True if a text may be cut to its tokens: what lies behind the end is never seen."""
        return self.text_variant.causal and self.text_variant.pool == "end"

    @property
    def packs_texts(self) -> bool:
        """True if texts may lie one behind the other in a row."""
        return self.cut_padding and not self.text_variant.class_token


# What may follow a name: (word, side, field, value). Without a value a number follows the word.
OPTIONS: tuple[tuple[str, str, str, Any], ...] = (
    ("image-scale", "vision_variant", "scale", True),
    ("image-bare", "vision_variant", "norm_in", False),
    ("image-mean", "vision_variant", "pool", "mean"),
    ("image-normed-mean", "vision_variant", "pool", "normed_mean"),
    ("image-queries", "vision_variant", "queries", None),
    ("image-query-heads", "vision_variant", "query_heads", None),
    ("image-eps6", "vision_variant", "epsilon", 1e-6),
    ("text-vocabulary", "text_variant", "vocabulary", None),
    ("text-end", "text_variant", "end", None),
    ("text-first", "text_variant", "pool", "first"),
    ("text-last", "text_variant", "pool", "last"),
    ("text-class", "text_variant", "class_token", True),
    ("text-open", "text_variant", "causal", False),
    ("text-scale", "text_variant", "scale", True),
    ("text-bias", "text_variant", "bias", True),
    ("text-eps6", "text_variant", "epsilon", 1e-6),
)
_SIDES: dict[str, Any] = {"vision_variant": PLAIN_VISION, "text_variant": PLAIN_TEXT}

_TEXT_512 = TextSize(width=512, layers=12, heads=8)
_TEXT_640 = TextSize(width=640, layers=12, heads=10)
_TEXT_768 = TextSize(width=768, layers=12, heads=12)
_TEXT_1024 = TextSize(width=1024, layers=24, heads=16)
_TEXT_1280 = TextSize(width=1280, layers=32, heads=20)
_VIT_H = VisionTransformerSize(224, 14, 1280, 32, 16)
_VIT_BIG_G = VisionTransformerSize(224, 14, 1664, 48, 16, 8192)
_COCA: dict[str, Any] = {
    "vision_variant": VisionVariant(queries=256), "text_variant": TextVariant(class_token=True),
}  # fmt: skip
# The vocabulary of XLM-V, whose texts end with id 2.
_WORLDWIDE: dict[str, Any] = {"text_variant": TextVariant(vocabulary=901_629, end=2)}

SIZES = {
    "RN50": ClipSize(ResNetSize(224, (3, 4, 6, 3), 64, 32), _TEXT_512, 1024),
    "RN101": ClipSize(ResNetSize(224, (3, 4, 23, 3), 64, 32), _TEXT_512, 512),
    "RN50x4": ClipSize(ResNetSize(288, (4, 6, 10, 6), 80, 40), _TEXT_640, 640),
    "RN50x16": ClipSize(ResNetSize(384, (6, 8, 18, 8), 96, 48), _TEXT_768, 768),
    "ViT-B/32": ClipSize(VisionTransformerSize(224, 32, 768, 12, 12), _TEXT_512, 512),
    "ViT-B/16": ClipSize(VisionTransformerSize(224, 16, 768, 12, 12), _TEXT_512, 512),
    "ViT-L/14": ClipSize(VisionTransformerSize(224, 14, 1024, 24, 16), _TEXT_768, 768),
    "ViT-L/14@336px": ClipSize(VisionTransformerSize(336, 14, 1024, 24, 16), _TEXT_768, 768),
    # Of open_clip: LAION's (+gelu), DFN's, MetaCLIP's; CoCa's two encoders (+gelu); EVA-02-CLIP
    # (+gelu); MetaCLIP 2.
    "ViT-H/14": ClipSize(_VIT_H, _TEXT_1024, 1024),
    "ViT-H/14@378px": ClipSize(dataclasses.replace(_VIT_H, image=378), _TEXT_1024, 1024),
    "ViT-g/14": ClipSize(VisionTransformerSize(224, 14, 1408, 40, 16, 6144), _TEXT_1024, 1024),
    "ViT-bigG/14": ClipSize(_VIT_BIG_G, _TEXT_1280, 1280),
    "CoCa-ViT-B/32": ClipSize(VisionTransformerSize(224, 32, 768, 12, 12), _TEXT_512, 512, **_COCA),
    "CoCa-ViT-L/14": ClipSize(
        VisionTransformerSize(224, 14, 1024, 24, 16), _TEXT_768, 768, **_COCA
    ),
    "EVA02-B/16": ClipSize(EvaSize(224, 16, 768, 12, 12, 2048), _TEXT_512, 512),
    "EVA02-L/14": ClipSize(EvaSize(224, 14, 1024, 24, 16, 2730), _TEXT_768, 768),
    "EVA02-L/14@336px": ClipSize(EvaSize(336, 14, 1024, 24, 16, 2730), _TEXT_768, 768),
    "MetaCLIP2-ViT-H/14": ClipSize(_VIT_H, _TEXT_1024, 1024, **_WORLDWIDE),
    "MetaCLIP2-ViT-H/14@378px": ClipSize(
        dataclasses.replace(_VIT_H, image=378), _TEXT_1024, 1024, **_WORLDWIDE
    ),
    "MetaCLIP2-ViT-bigG/14": ClipSize(_VIT_BIG_G, _TEXT_1280, 1280, **_WORLDWIDE),
    "MetaCLIP2-ViT-bigG/14@378px": ClipSize(
        dataclasses.replace(_VIT_BIG_G, image=378), _TEXT_1280, 1280, **_WORLDWIDE
    ),
    # Ours, not OpenAI's: they train from nothing on two CPU cores within minutes.
    "tiny-vit": ClipSize(VisionTransformerSize(64, 16, 96, 3, 3), TextSize(96, 2, 3), 96),
    "tiny-resnet": ClipSize(ResNetSize(64, (1, 1, 1, 1), 16, 8), TextSize(96, 2, 3), 96),
}


_WRITTEN = re.compile(
    r"(?:(?P<kind>vit|eva)-(?P<image>\d+)-(?P<patch>\d+)-w(?P<width>\d+)(?:-m(?P<mlp>\d+))?"
    r"-l(?P<layers>\d+)"
    r"|resnet-(?P<side>\d+)-(?P<blocks>\d+\.\d+\.\d+\.\d+)-w(?P<channels>\d+))-h(?P<heads>\d+)"
    r"_text-w(?P<text_width>\d+)(?:-m(?P<text_mlp>\d+))?-l(?P<text_layers>\d+)"
    r"-h(?P<text_heads>\d+)_d(?P<embedding>\d+)"
)


# open_clip's names of plain ViTs, whose activation is the GELU unless the name says otherwise.
_OF_OPEN_CLIP = re.compile(r"(ViT-(?:B|L|H|g|bigG))-(\d+)(?:-(\d+))?(-quickgelu)?")


def find(name: str) -> ClipSize:
    """The size called `name`: a key of SIZES, or one that is written out; see the module docstring.

    Raises:
      UserError: no such size (what exists is listed), or one that no encoder can have.
    """
    plain, *options = _as_ours(name).split("+")
    if plain in SIZES:
        size = SIZES[plain]
    elif written := _WRITTEN.fullmatch(plain):
        size = _written(written)
    else:
        raise UserError(
            f"no tower {name!r}; there are: {', '.join(SIZES)}.{nearest(plain, SIZES)} "
            "A size of your own is written out, as cir_jax/towers/clip/sizes.py says"
        )
    for option in options:
        size = _with(size, option, name)
    check(size, f"tower {name!r}")
    return size


def is_written(plain: str) -> bool:
    """Whether a name without what follows a plus is written out, or is one of open_clip's."""
    return _WRITTEN.fullmatch(plain) is not None or _OF_OPEN_CLIP.fullmatch(plain) is not None


def name_of(size: ClipSize) -> str:
    """The inverse of `find`: the shortest name of a size."""
    plus = "" if size.activation == "quick_gelu" else f"+{size.activation}"
    plain = dataclasses.replace(size, activation="quick_gelu")
    for name, known in SIZES.items():
        if known == plain:
            return name + plus
    if options := _options(size):
        return "+".join([name_of(dataclasses.replace(size, **_SIDES)), *options])
    vision, text = size.vision, size.text
    if isinstance(vision, ResNetSize):
        blocks = ".".join(map(str, vision.blocks))
        first = f"resnet-{vision.image}-{blocks}-w{vision.width}-h{vision.heads}"
    else:
        kind = "eva" if isinstance(vision, EvaSize) else "vit"
        first = f"{kind}-{vision.image}-{vision.patch}-w{vision.width}{size_parts.mlp(vision)}"
        first += f"-l{vision.layers}-h{vision.heads}"
    second = f"text-w{text.width}{size_parts.mlp(text)}-l{text.layers}-h{text.heads}"
    return f"{first}_{second}_d{size.embedding}{plus}"


def _as_ours(name: str) -> str:
    """A name of open_clip as one of ours; any other name as it is."""
    found = _OF_OPEN_CLIP.fullmatch(name)
    if found is None:
        return name
    side = f"@{found[3]}px" if found[3] else ""
    return f"{found[1]}/{found[2]}{side}{'' if found[4] else '+gelu'}"


def _with(size: ClipSize, option: str, name: str) -> ClipSize:
    """`size` with what an option of its name says."""
    if option in ACTIVATIONS:
        return dataclasses.replace(size, activation=option)
    for word, side, field, value in OPTIONS:
        number = re.fullmatch(rf"{word}(\d+)", option)
        if (option == word) if value is not None else number:
            value = int(number[1]) if number else value
            variant = dataclasses.replace(getattr(size, side), **{field: value})
            return dataclasses.replace(size, **{side: variant})
    words = [word if value is not None else f"{word}N" for word, _, _, value in OPTIONS]
    raise UserError(
        f"tower {name!r}: no activation {option!r}; there are: {', '.join(ACTIVATIONS)}; and "
        f"nothing else of that name: {', '.join(words)}.{nearest(option, words)}"
    )


def _options(size: ClipSize) -> list[str]:
    """The words behind the name of a size, without its activation."""
    words = []
    for word, side, field, value in OPTIONS:
        have = getattr(getattr(size, side), field)
        if have == getattr(_SIDES[side], field):
            continue
        if value is None:
            words.append(f"{word}{have}")
        elif have == value:
            words.append(word)
    return words


def normal_form(size: ClipSize) -> ClipSize:
    """The same size, with an MLP of four times the width written as 0: equal sizes compare so."""
    return dataclasses.replace(
        size, vision=size_parts.short(size.vision), text=size_parts.short(size.text)
    )


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
    wrong = size_parts.undivided(attention)
    if side < 1 or vision.image < side:
        wrong.append(f"an image of {vision.image} pixels has no patch of {side}")
    if isinstance(vision, ResNetSize) and (vision.image % 32 or min(vision.blocks) < 1):
        wrong.append(f"blocks {vision.blocks} and image {vision.image}: at least 1, and 32 x n")
    if size.embedding < 1:
        wrong.append(f"an embedding of {size.embedding}")
    wrong += _variants_that_cannot_be(size)
    if wrong:
        raise UserError(f"{where}: {'; '.join(wrong)}; correct that")


def _variants_that_cannot_be(size: ClipSize) -> list[str]:
    image, text, wrong = size.vision_variant, size.text_variant, []
    if type(size.vision) is not VisionTransformerSize and image != PLAIN_VISION:
        words = [word for word in _options(size) if word.startswith("image-")]
        wrong.append(f"{' and '.join(words)} of an image side that is no plain ViT")
    if isinstance(size.vision, EvaSize) and size.vision.width // max(size.vision.heads, 1) % 4:
        wrong.append("rotary positions need heads whose width divides by 4")
    if image.queries and (image.query_heads < 1 or size.embedding % image.query_heads):
        wrong.append(
            f"an embedding of {size.embedding} does not divide into {image.query_heads} heads of "
            "the attention pool"
        )
    if image.queries and image.pool != "class":
        wrong.append("image-queries and a mean: one of the two reads the image")
    if text.class_token and (text.pool != "end" or text.end or not text.causal):
        wrong.append("text-class reads the text: no text-first, text-last, text-end or text-open")
    if not text.end < text.vocabulary:
        wrong.append(f"an end of text {text.end} in a vocabulary of {text.vocabulary}")
    if text.pool == "end" and not text.end and text.vocabulary != VOCABULARY:
        wrong.append("a vocabulary of its own needs text-endN, the id of its end of text")
    return wrong


def _written(found: re.Match) -> ClipSize:
    vision: ResNetSize | VisionTransformerSize
    names = found.groupdict("0").items()
    number = {key: int(value) for key, value in names if key not in ("blocks", "kind")}
    if found["side"]:
        blocks = tuple(map(int, found["blocks"].split(".")))
        vision = ResNetSize(number["side"], blocks, number["channels"], number["heads"])
    else:
        kind = EvaSize if found["kind"] == "eva" else VisionTransformerSize
        vision = kind(*(number[k] for k in ("image", "patch", "width", "layers", "heads", "mlp")))
    text = TextSize(*(number[f"text_{k}"] for k in ("width", "layers", "heads", "mlp")))
    return normal_form(ClipSize(vision, text, number["embedding"]))
