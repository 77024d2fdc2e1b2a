# SPDX-License-Identifier: Apache-2.0
"""The size of a BLIP-2 from the shapes of its tensors, in the names of LAVIS.

Shapes do not tell the heads. A known size has its own; of others, heads have 64 channels, as those
of BERT have, and those of the image encoder 88 where its width divides, as EVA-CLIP-g's have.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from cir_jax.convert.containers.tensors import Tensor
from cir_jax.errors import UserError
from cir_jax.towers.blip2 import sizes
from cir_jax.towers.blip2.sizes import POSITIONS, VOCABULARY, Blip2Size, QFormerSize
from cir_jax.towers.clip.sizes import VisionTransformerSize

WORDS = "Qformer.bert.embeddings.word_embeddings.weight"
CLASS = "visual_encoder.cls_token"
CLIP_CLASS = "visual_encoder.class_embedding"  # of the runs with CLIP's ViT-L
HEAD, EVA_HEAD = 64, 88  # channels of a head


def size_of(tensors: Mapping[str, Tensor], prefix: str, where: str) -> Blip2Size:
    """The size of a whole model, image encoder included.

    Args:
      tensors: of the state dict.
      prefix: before every name.
      where: for messages.

    Raises:
      UserError: a tensor that tells the size is missing or has a shape that no BLIP-2 has.
    """
    shape = _reader(tensors, prefix, where)
    if prefix + CLIP_CLASS in tensors:
        raise UserError(
            f"{where}: its image encoder is CLIP's ViT-L (it has {prefix}{CLIP_CLASS}), not the "
            "EVA-CLIP-g of BLIP-2, which is the one that this project has; take the weights with "
            "ViT-g"
        )
    width = shape(CLASS, 3)[-1]
    patch = shape("visual_encoder.patch_embed.proj.weight", 4)[-1]
    patches = shape("visual_encoder.pos_embed", 3)[1] - 1
    across = math.isqrt(max(patches, 0))
    if across * across != patches or not across:
        raise UserError(f"{where} has {patches} patches, which is no square")
    inner = shape("visual_encoder.blocks.0.mlp.fc1.weight", 2)[0]
    layers = _count(tensors, f"{prefix}visual_encoder.blocks.")
    heads = max(width // (HEAD if width % EVA_HEAD else EVA_HEAD), 1)
    vision = VisionTransformerSize(patch * across, patch, width, layers, heads, inner)
    size = Blip2Size(vision, former_of(tensors, prefix, where), shape("text_proj.weight", 2)[0])
    size = known(size)
    sizes.check(size, where)
    return size


def former_of(tensors: Mapping[str, Tensor], prefix: str, where: str) -> QFormerSize:
    """The size of the Q-Former; raises UserError as `size_of`."""
    shape = _reader(tensors, prefix, where)
    rows, width = shape(WORDS, 2)
    positions = shape("Qformer.bert.embeddings.position_embeddings.weight", 2)[0]
    if (rows, positions) != (VOCABULARY, POSITIONS):
        raise UserError(
            f"{where} has {rows} tokens and {positions} positions, not BLIP-2's {VOCABULARY} and "
            f"{POSITIONS}: it belongs to another tokenizer, which this project does not have"
        )
    layers = _count(tensors, f"{prefix}Qformer.bert.encoder.layer.")
    inner = shape("Qformer.bert.encoder.layer.0.intermediate.dense.weight", 2)[0]
    queries = shape("query_tokens", 3)[1]
    return QFormerSize(width, layers, max(width // HEAD, 1), queries, inner)


def known(size: Blip2Size) -> Blip2Size:
    """A size of SIZES with the same shapes, or `size`: the heads are then known."""
    same = (one for one in sizes.SIZES.values() if bare(one) == bare(size))
    return sizes.normal_form(next(same, size))


def bare(size: Blip2Size) -> Blip2Size:
    """What shapes say of a size."""
    size = sizes.normal_form(size)
    return dataclasses.replace(
        size,
        vision=dataclasses.replace(size.vision, heads=1),
        former=dataclasses.replace(size.former, heads=1),
    )


def tower_of_former(tensors: Mapping[str, Tensor], where: str) -> str:
    """Name of the known size with such a Q-Former, image width included; "" if there is none."""
    former = former_of(tensors, "", where)
    shape = _reader(tensors, "", where)
    width = shape("Qformer.bert.encoder.layer.0.crossattention.self.key.weight", 2)[1]
    embedding = shape("text_proj.weight", 2)[0]
    for name, size in sizes.SIZES.items():
        vision = dataclasses.replace(size.vision, width=width)
        if bare(Blip2Size(vision, former, embedding)) == bare(size):
            return name
    return ""


def agrees(size: Blip2Size) -> Callable[[str, Any], bool]:
    """Whether a config may have another name for a size of these shapes: other heads."""

    def fits(key: str, value: Any) -> bool:
        return key == "tower" and bare(sizes.find(value)) == bare(size)

    return fits


def _reader(
    tensors: Mapping[str, Tensor], prefix: str, where: str
) -> Callable[[str, int], tuple[int, ...]]:
    def shape(name: str, axes: int) -> tuple[int, ...]:
        tensor = tensors.get(prefix + name)
        if tensor is None or len(tensor.shape) != axes:
            has = "is missing" if tensor is None else f"has {len(tensor.shape)} axes, not {axes}"
            raise UserError(f"{where} is no BLIP-2: {prefix}{name}, which tells its size, {has}")
        return tensor.shape

    return shape


def _count(tensors: Mapping[str, Tensor], root: str) -> int:
    """One more than the largest number that follows `root` in a name."""
    found = (re.match(rf"{re.escape(root)}(\d+)\.", name) for name in tensors)
    return max((int(f[1]) + 1 for f in found if f), default=0)
