# SPDX-License-Identifier: Apache-2.0
"""FLOP of a step by formula, from the sizes of the encoders: a check of what is counted in a trace.

A product of [m, k] and [k, n] takes 2 m k n. A layer of T tokens of width w with an MLP of inner
width i takes 8 T w^2 + 4 T w i for its six matrices and 4 T^2 w for attention. What trains is
passed three times in effect: the gradients of input and of weights take as much as the forward pass
each. What is frozen, and has nothing below it that trains, is passed once. Norms, activations,
lookups and heads of one vector are left out. Source of the count by passes: Kaplan et al., arXiv
2001.08361, section 2.1.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from cir_jax.towers import encoders
from cir_jax.towers.blip import sizes as blip_sizes
from cir_jax.towers.blip2 import sizes as blip2_sizes
from cir_jax.towers.clip import sizes as clip_sizes
from cir_jax.towers.clip.resnet import EXPANSION
from tools.planning.program import Program

TRAINED, FROZEN = 3, 1


def layers(
    tokens: int, width: int, count: int, mlp: int = 0, image: tuple[int, int] = (0, 0)
) -> float:
    """Forward FLOP of a transformer.

    Args:
      tokens: T.
      width: w.
      count: layers.
      mlp: inner width; 0 is four times the width.
      image: tokens and width of what each layer attends to beside itself; (0, 0) is nothing.
    """
    one = 8 * tokens * width**2 + 4 * tokens * width * (mlp or 4 * width)
    one += scores(tokens, width, tokens)
    return count * (one + (cross(tokens, width, *image) if image[0] else 0.0))


def scores(tokens: int, width: int, others: int) -> float:
    """Forward FLOP of the scores of `tokens` for `others`, and of mixing by them."""
    return 4 * tokens * others * width


def cross(tokens: int, width: int, others: int, other_width: int) -> float:
    """Forward FLOP of attention from `tokens` of `width` to `others` of `other_width`."""
    own = 4 * tokens * width**2 + scores(tokens, width, others)
    return own + 4 * others * other_width * width


def image_transformer(size: clip_sizes.VisionTransformerSize) -> float:
    """Forward FLOP of a ViT for one image."""
    patches = (size.image // size.patch) ** 2
    first = 2 * patches * 3 * size.patch**2 * size.width
    # A gated MLP has three matrices, as many products as one of half as wide again.
    gated = isinstance(size, clip_sizes.EvaSize)
    mlp = 3 * (size.mlp or 4 * size.width) // 2 if gated else size.mlp
    return first + layers(patches + 1, size.width, size.layers, mlp)


def resnet(size: clip_sizes.ResNetSize, embedding: int) -> float:
    """Forward FLOP of CLIP's ResNet for one image."""
    side, width = size.image // 2, size.width
    half = width // 2
    total = 2.0 * side**2 * 9 * (3 * half + half * half + half * width)
    side //= 2
    inputs = width
    for stage, blocks in enumerate(size.blocks):
        planes = width * 2**stage
        for block in range(blocks):
            after = side // 2 if stage and not block else side
            total += 2 * side**2 * planes * (inputs + 9 * planes)
            total += 2 * after**2 * planes * EXPANSION * planes
            if not block:
                total += 2 * after**2 * inputs * EXPANSION * planes
            side, inputs = after, planes * EXPANSION
    positions = side**2 + 1
    pool = 2 * inputs**2 * (1 + 2 * positions) + 4 * positions * inputs
    return total + pool + 2 * inputs * embedding


@dataclass(frozen=True)
class Again:
    """FLOP of one pass of what trains that the backward pass makes again, by `model.remat`.

    Attributes:
      products: scores, and what is mixed by them.
      layers: all but the last product of a layer that ends in one.
      none: nothing.
    """

    products: float = 0.0
    layers: float = 0.0
    none: float = 0.0

    def of(self, remat: str) -> float:
        """Of one of the three."""
        return float(getattr(self, remat))


@dataclass(frozen=True)
class Passes:
    """Forward FLOP of one example, and how often each side is passed.

    Attributes:
      image: of one image.
      text: of one query, beside its images.
      image_trains: whether the image encoder does.
      image_again: of one pass of an image, by what it trains.
      text_again: of one pass of the text.
      passes: of the text.
      image_read: images of an example whose tokens a frozen encoder makes again under gradient
        caching, since the gradient of the text side needs them.
    """

    image: float
    text: float
    image_trains: bool
    image_again: Again
    text_again: Again
    passes: int = TRAINED
    image_read: int = 0


def step(program: Program) -> float | None:
    """FLOP of one step over all devices; None for a model that is not of this package, or that
    stands on towers which no formula is here for.

    Args:
      program: of a step.
    """
    setup, config = program.setup, program.setup.config
    find = _PASSES.get(config.model.name)
    on_clip = find in (_clip, _combiner, _tgcir)
    if on_clip and encoders.find(config.model.tower).family != "clip":
        return None
    if find is None or config.stage not in ("one_in_batch", "two_bank"):
        return None
    one, first = find(config, program.text), config.stage == "one_in_batch"
    total = one.text * one.passes + one.text_again.of(config.model.remat)
    if first:
        total += 2 * one.image * (TRAINED if one.image_trains else FROZEN)
        total += 2 * one.image_again.of(config.model.remat)
    elif program.place == "recompute":
        total += one.image
    if first and 0 < config.loss.chunk < config.batch:
        total += one.text + one.image * (2 * one.image_trains + one.image_read)
    total *= config.batch
    if program.place:
        rows, width = setup.functions.target_shape
        total += (
            4.0
            * config.batch
            * (config.loss.bank_negatives or program.counts.images)
            * rows
            * width
        )
    return total


def _last(size: Any, tokens: int) -> float:
    """FLOP of the second product of all MLPs."""
    return size.layers * 2 * tokens * size.width * (size.mlp or 4 * size.width)


def _again(size: Any, tokens: int) -> Again:
    """Of a pre-norm transformer, whose layers end in a product."""
    whole = layers(tokens, size.width, size.layers, size.mlp)
    mixing = size.layers * scores(tokens, size.width, tokens)
    return Again(mixing, whole - _last(size, tokens))


def _tokens(size: clip_sizes.VisionTransformerSize) -> int:
    return (size.image // size.patch) ** 2 + 1


def _clip(config: Any, text: int) -> Passes:
    size = clip_sizes.find(config.model.tower)
    if isinstance(size.vision, clip_sizes.VisionTransformerSize):
        image, again = image_transformer(size.vision), _again(size.vision, _tokens(size.vision))
    else:
        image = resnet(size.vision, size.embedding)
        again = Again(layers=image)
    words = layers(text, size.text.width, size.text.layers, size.text.mlp)
    return Passes(image, words, True, again, _again(size.text, text))


def _combiner(config: Any, text: int) -> Passes:
    clip, width = _clip(config, text), clip_sizes.find(config.model.tower).embedding
    # Two projections to 4 D, whose input does not train, two layers from 8 D to 8 D, one back to D.
    first, rest = 2 * 2 * width * 4 * width, 2 * (2 * (8 * width) ** 2 + 8 * width * width)
    words = clip.text + 2 * first + TRAINED * rest
    return Passes(clip.image, words, False, Again(), Again(), FROZEN)


def _tgcir(config: Any, text: int) -> Passes:
    clip, size = _clip(config, text), clip_sizes.find(config.model.tower)
    assert isinstance(size.vision, clip_sizes.VisionTransformerSize)
    image = 2 * size.embedding * _tokens(size.vision) * size.vision.width
    words = 2 * size.embedding * text * size.text.width
    return dataclasses.replace(clip, image=clip.image + image, text=clip.text + words)


def _blip(config: Any, text: int) -> Passes:
    size = blip_sizes.find(config.model.tower, config.model.image_size)
    vision, words, trains = size.vision, size.text, config.model.train_image
    tokens = _tokens(vision)
    one = layers(text, words.width, words.layers, words.mlp, (tokens, vision.width))
    # Keys and values of a frozen image: no gradient of their input.
    unread = 0 if trains else words.layers * 4 * tokens * vision.width * words.width
    again = _again(vision, tokens) if trains else Again()
    mixing = words.layers * scores(text, words.width, text + tokens)
    return Passes(
        *(image_transformer(vision), one - unread / TRAINED, trains, again, Again(mixing, one)),
        image_read=int(not trains),
    )


def _sprc(config: Any, text: int) -> Passes:
    size, trains = blip2_sizes.find(config.model.tower), config.model.train_image
    former, vision = size.former, size.vision
    tokens = _tokens(vision)

    def run(length: int) -> float:
        return layers(length, former.width, former.layers, former.mlp)

    def mixed(length: int, others: int) -> float:
        return former.layers * scores(length, former.width, others)

    both = former.queries + text
    words, mixing = run(both), mixed(both, both)
    if config.stage == "one_in_batch":  # prompts and targets as well, and the text alone
        seen = former.layers // 2 * cross(former.queries, former.width, tokens, vision.width)
        alone = any(str(name).startswith("rtc") for name in config.loss.auxiliary)
        words = (2 + alone) * words + run(former.queries) + 2 * seen
        mixing = (2 + alone) * mixing + mixed(former.queries, former.queries + tokens)
        paired = 2 if config.loss.auxiliary else 1  # images that go through in one pass
    again = _again(vision, tokens) if trains else Again()
    read = 0 if trains or config.stage != "one_in_batch" else paired
    return Passes(
        *(image_transformer(vision), words, trains, again, Again(mixing, words)), image_read=read
    )


_PASSES = {
    "clip_sum": _clip, "clip_combiner": _combiner, "tgcir": _tgcir, "blip": _blip, "sprc": _sprc,
}  # fmt: skip
