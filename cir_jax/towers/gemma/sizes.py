# SPDX-License-Identifier: Apache-2.0
"""Sizes of EmbeddingGemma 2: the published one, a tiny one, and a name for any other.

Source: the defaults of `EmbeddingGemma2Config` of transformers 5.24, which are those of the
published weights: all but the audio encoder, 438,760,448 parameters and 24 numbers that do not
train.

A size that has no name here is written out:

    gemma-768-16-3-w768-m3072-l16-h12x64-n10240_v262144-w512-m2048-l24x6-h4-k2x256-k1x512-r512-s512_d768

of the images: side, side of a patch, and patches along a side that one soft token is the mean of;
width, inner width of the MLP, layers, heads x channels of a head, and positions along a side. Of
the encoder: vocabulary, width, inner width, layers x how many of them have one global among them,
heads, key heads x channels of a local and of a global layer, radius of the window and width of the
per-layer signal; last the width D of the vectors. `_t258880-255999-258882` is written behind it
where the ids of the image token and of the marks around an image are others than those.
"""

import dataclasses
import re
from dataclasses import dataclass

from cir_jax.errors import UserError, nearest

PAD, END, START = 0, 1, 2  # token ids of every Gemma
CONTEXT = 512  # tokens of a text; positions are rotations, so a longer one is no other model
CLIP_WORDS = 49408  # tokens of CLIP, behind which the tiny ones have the marks of an image


@dataclass(frozen=True)
class VisionSize:
    """The image encoder; see the module docstring."""

    image: int
    patch: int
    pool: int
    width: int
    mlp: int
    layers: int
    heads: int
    head: int
    positions: int

    @property
    def rows(self) -> int:
        """R, soft tokens of an image."""
        return (self.image // (self.patch * self.pool)) ** 2


@dataclass(frozen=True)
class TextSize:
    """The encoder of image and text tokens; the last of each `period` layers is global."""

    vocabulary: int
    width: int
    mlp: int
    layers: int
    period: int
    heads: int
    keys: int
    head: int
    global_keys: int
    global_head: int
    window: int
    signal: int


@dataclass(frozen=True)
class Marks:
    """Token ids: where an image goes, and what stands before and behind its soft tokens."""

    image: int = 258_880
    begin: int = 255_999
    end: int = 258_882


@dataclass(frozen=True)
class GemmaSize:
    """Both encoders, the width D of their vectors, and the marks of an image."""

    vision: VisionSize
    text: TextSize
    embedding: int
    marks: Marks = Marks()

    @property
    def own_words(self) -> bool:
        """Whether its tokens are CLIP's and the marks: that of the tiny ones, which no file has."""
        return self.marks.image == CLIP_WORDS


_TINY_MARKS = Marks(CLIP_WORDS, CLIP_WORDS + 1, CLIP_WORDS + 2)

SIZES = {
    "embeddinggemma-2": GemmaSize(
        VisionSize(768, 16, 3, 768, 3072, 16, 12, 64, 10_240),
        TextSize(262_144, 512, 2048, 24, 6, 4, 2, 256, 1, 512, 512, 512),
        768,
    ),
    # Ours: it trains from nothing on two CPU cores within minutes.
    "tiny-gemma": GemmaSize(
        VisionSize(64, 8, 1, 96, 192, 2, 2, 48, 8),
        TextSize(CLIP_WORDS + 8, 96, 192, 3, 3, 4, 2, 24, 1, 48, 512, 48),
        96,
        _TINY_MARKS,
    ),
}

_WRITTEN = re.compile(
    r"gemma-(\d+)-(\d+)-(\d+)-w(\d+)-m(\d+)-l(\d+)-h(\d+)x(\d+)-n(\d+)"
    r"_v(\d+)-w(\d+)-m(\d+)-l(\d+)x(\d+)-h(\d+)-k(\d+)x(\d+)-k(\d+)x(\d+)-r(\d+)-s(\d+)_d(\d+)"
    r"(?:_t(\d+)-(\d+)-(\d+))?"
)
_OF_VISION, _OF_TEXT = 9, 12  # how many of these numbers are of each


def find(name: str, image: int = 0) -> GemmaSize:
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
        numbers = [int(x) for x in written.groups() if x is not None]
        vision, rest = numbers[:_OF_VISION], numbers[_OF_VISION:]
        text, (embedding, *marks) = rest[:_OF_TEXT], rest[_OF_TEXT:]
        size = GemmaSize(VisionSize(*vision), TextSize(*text), embedding, Marks(*marks))
    else:
        raise UserError(
            f"no tower {name!r} of EmbeddingGemma; there are: {', '.join(SIZES)}."
            f"{nearest(name, SIZES)} A size of your own is written out, as "
            "cir_jax/towers/gemma/sizes.py says"
        )
    if image:
        size = with_image(size, image)
    check(size, f"tower {name!r}")
    return size


def name_of(size: GemmaSize) -> str:
    """The inverse of `find`: the shortest name of a size."""
    for name, known in SIZES.items():
        if known == size:
            return name
    v, t, m = size.vision, size.text, size.marks
    marks = f"_t{m.image}-{m.begin}-{m.end}" if m != Marks() else ""
    return (
        f"gemma-{v.image}-{v.patch}-{v.pool}-w{v.width}-m{v.mlp}-l{v.layers}-h{v.heads}x{v.head}"
        f"-n{v.positions}_v{t.vocabulary}-w{t.width}-m{t.mlp}-l{t.layers}x{t.period}-h{t.heads}"
        f"-k{t.keys}x{t.head}-k{t.global_keys}x{t.global_head}-r{t.window}-s{t.signal}"
        f"_d{size.embedding}{marks}"
    )


def with_image(size: GemmaSize, image: int) -> GemmaSize:
    """The same encoders for images of another side."""
    return dataclasses.replace(size, vision=dataclasses.replace(size.vision, image=image))


def check(size: GemmaSize, where: str) -> None:
    """Raises UserError, which begins with `where`, if no encoder can have this size."""
    v, t, m = size.vision, size.text, size.marks
    numbers = [*dataclasses.astuple(v), *dataclasses.astuple(t), size.embedding]
    if min(numbers) < 1:
        raise UserError(f"{where}: a number of the size is below 1; correct model.tower")
    step, wrong = v.patch * v.pool, []
    if v.image % step:
        near = [n for n in (v.image // step * step, -(-v.image // step) * step) if n]
        wrong.append(
            f"an image of {v.image} pixels is not made of soft tokens of {step}x{step}; "
            f"{' or '.join(map(str, near))} is"
        )
    if v.image // v.patch > v.positions:
        wrong.append(
            f"an image of {v.image} pixels has {v.image // v.patch} patches along a side, but there"
            f" are {v.positions} positions"
        )
    if v.head % 4:
        wrong.append(f"heads of {v.head} channels do not rotate by two positions: no multiple of 4")
    if t.head % 2 or t.global_head % 2:
        wrong.append(f"heads of {t.head} and {t.global_head} channels must be even to be rotated")
    if t.heads % t.keys or t.heads % t.global_keys:
        wrong.append(f"{t.heads} heads do not share {t.keys} and {t.global_keys} key heads evenly")
    if t.layers % t.period:
        wrong.append(f"{t.layers} layers are no multiple of {t.period}, whose last one is global")
    if max(dataclasses.astuple(m)) >= t.vocabulary:
        wrong.append(f"marks of images {dataclasses.astuple(m)} are no tokens of {t.vocabulary}")
    if wrong:
        raise UserError(f"{where}: {'; '.join(wrong)}; correct model.tower or model.image_size")


def parameters(size: GemmaSize) -> int:
    """How many parameters a model of this size has that may train."""
    v, t = size.vision, size.text

    def block(width: int, mlp: int, heads: int, keys: int, head: int) -> int:
        """Attention and gated MLP, and their norms."""
        return 2 * width * head * (heads + keys) + 2 * head + 3 * width * mlp + 4 * width

    vision = v.layers * block(v.width, v.mlp, v.heads, v.heads, v.head)
    vision += v.width * (3 * v.patch**2 + 2 * v.positions + t.width)
    globals_ = t.layers // t.period
    encoder = (t.layers - globals_) * block(t.width, t.mlp, t.heads, t.keys, t.head)
    encoder += globals_ * block(t.width, t.mlp, t.heads, t.global_keys, t.global_head)
    encoder += t.layers * (3 * t.width * t.signal + t.width) + t.signal
    return vision + encoder + t.width * (t.vocabulary + 1 + size.embedding)
