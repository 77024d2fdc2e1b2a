# SPDX-License-Identifier: Apache-2.0
"""Rules of the CLIP encoders, in the names of OpenAI (and of all who build on them) and of
transformers, and the sizes of the encoders as their shapes tell them.

Queries, keys and values are one tensor of OpenAI's, rows q, k, v; `proj` and `text_projection` are
used as x @ W there and lie as ours do. Source: the published state dicts.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from cir_jax.convert.containers.tensors import Tensor, of
from cir_jax.errors import UserError
from cir_jax.towers.clip.sizes import (
    CONTEXT,
    VOCABULARY,
    ClipSize,
    ResNetSize,
    TextSize,
    VisionTransformerSize,
    check,
    normal_form,
)
from cir_jax.weight_rules import CONVOLUTION, LINEAR, SAME, Ignored, Rule, dense, norm

HEAD = 64  # channels of a head in every network of OpenAI's; no shape tells it

COUNTERS = Ignored(
    r".*\.num_batches_tracked", "steps that a BatchNorm has counted; its statistics never change"
)
ABOUT = Ignored(
    r"(input_resolution|context_length|vocab_size)", "repeats what the shapes of the others say"
)
MASK = Ignored(r"(.*\.)?attn_mask", "the causal mask, which follows from the positions")
POSITIONS = Ignored(r".*\.position_ids", "the numbers 0, 1, 2 and so on")


def openai(size: ClipSize, prefix: str = "") -> list[Rule]:
    """The rules of a whole CLIP in OpenAI's names, each with `prefix` before it."""
    vision = _openai_resnet if isinstance(size.vision, ResNetSize) else _openai_vit
    rules = [
        *vision(),
        Rule("token_embedding.weight", "text/token_embedding"),
        Rule("positional_embedding", "text/position"),
        *norm("ln_final", "text/norm_out"),
        Rule("text_projection", "text/proj"),
        Rule("logit_scale", "logit_scale"),
        *_openai_blocks("transformer", "text/blocks"),
    ]
    return [Rule(prefix + r.source, r.path, r.axes, r.part) for r in rules]


def huggingface() -> list[Rule]:
    """The rules of transformers' CLIPModel, which has no ResNet."""
    image, text = "vision_model", "text_model"
    return [
        Rule(f"{image}.embeddings.patch_embedding.weight", "visual/patch_kernel", CONVOLUTION),
        Rule(f"{image}.embeddings.class_embedding", "visual/class_token"),
        Rule(f"{image}.embeddings.position_embedding.weight", "visual/position"),
        *norm(f"{image}.pre_layrnorm", "visual/norm_in"),
        *norm(f"{image}.post_layernorm", "visual/norm_out"),
        Rule("visual_projection.weight", "visual/proj", LINEAR),
        *_huggingface_blocks(image, "visual/blocks"),
        *huggingface_text(text),
        Rule("logit_scale", "logit_scale"),
    ]


def huggingface_text(text: str = "text_model") -> list[Rule]:
    """The rules of transformers' CLIPTextModelWithProjection: the text side of a CLIPModel."""
    return [
        Rule(f"{text}.embeddings.token_embedding.weight", "text/token_embedding"),
        Rule(f"{text}.embeddings.position_embedding.weight", "text/position"),
        *norm(f"{text}.final_layer_norm", "text/norm_out"),
        Rule("text_projection.weight", "text/proj", LINEAR),
        *_huggingface_blocks(text, "text/blocks"),
    ]


def counters(tensors: Mapping[str, Any], kept: Mapping[str, int]) -> dict[str, Tensor]:
    """The step counter beside each running variance of `tensors`, as PyTorch's BatchNorm has them.

    `kept` are those of the file that the weights came from; 0 for others.
    """
    suffix = ".running_var"
    names = [n.removesuffix(suffix) + ".num_batches_tracked" for n in tensors if n.endswith(suffix)]
    return {name: of_int(kept.get(name, 0)) for name in names}


def of_int(value: int) -> Tensor:
    """An int64 scalar."""
    return of(np.asarray(value, np.int64))


def openai_size(
    tensors: Mapping[str, Tensor], prefix: str, activation: str, where: str
) -> tuple[ClipSize, int]:
    """(size, text positions) of a state dict in OpenAI's names, from its shapes.

    Heads are of 64 channels, as in all of OpenAI's networks.

    Raises:
      UserError: a tensor that tells the size is missing or has a shape that no CLIP has.
    """

    def shape(name: str, axes: int) -> tuple[int, ...]:
        tensor = tensors.get(prefix + name)
        if tensor is None or len(tensor.shape) != axes:
            has = "is missing" if tensor is None else f"has {len(tensor.shape)} axes, not {axes}"
            raise UserError(
                f"{where} is no CLIP of OpenAI's layout: {prefix}{name}, which tells its size, "
                f"{has}"
            )
        return tensor.shape

    def layers(root: str) -> int:
        return _count(tensors, rf"{re.escape(prefix + root)}\.resblocks\.(\d+)\..*")

    def mlp(root: str) -> int:
        return shape(f"{root}.resblocks.0.mlp.c_fc.weight", 2)[0]

    vision: VisionTransformerSize | ResNetSize
    if prefix + "visual.proj" in tensors:
        width, embedding = shape("visual.proj", 2)
        patch = shape("visual.conv1.weight", 4)[-1]
        across = _root(shape("visual.positional_embedding", 2)[0] - 1, "patches", where)
        vision = VisionTransformerSize(
            patch * across, patch, width, layers("visual.transformer"), _heads(width),
            mlp("visual.transformer"),
        )  # fmt: skip
    else:
        rows, width = shape("visual.attnpool.positional_embedding", 2)
        embedding = shape("visual.attnpool.c_proj.weight", 2)[0]
        blocks = [
            _count(tensors, rf"{re.escape(prefix)}visual\.layer{i}\.(\d+)\..*")
            for i in (1, 2, 3, 4)
        ]
        image = 32 * _root(rows - 1, "positions of the attention pool", where)
        vision = ResNetSize(image, tuple(blocks), width // 32, _heads(width))
    vocabulary, width = shape("token_embedding.weight", 2)
    context = shape("positional_embedding", 2)[0]
    check_vocabulary(vocabulary, where)
    text = TextSize(width, layers("transformer"), _heads(width), mlp("transformer"))
    size = normal_form(ClipSize(vision, text, embedding, activation))
    check(size, where)
    return size, context


def check_vocabulary(rows: int, where: str) -> None:
    """Raises UserError if a text tower is not of CLIP's tokens."""
    if rows != VOCABULARY:
        raise UserError(
            f"{where} has {rows} tokens, not CLIP's {VOCABULARY}: it belongs to another tokenizer, "
            "which this project does not have"
        )


def context_key(context: int) -> int:
    """`model.context` of so many text positions: 0 means CLIP's own 77."""
    return 0 if context == CONTEXT else context


def _openai_vit() -> list[Rule]:
    return [
        Rule("visual.conv1.weight", "visual/patch_kernel", CONVOLUTION),
        Rule("visual.class_embedding", "visual/class_token"),
        Rule("visual.positional_embedding", "visual/position"),
        *norm("visual.ln_pre", "visual/norm_in"),
        *norm("visual.ln_post", "visual/norm_out"),
        Rule("visual.proj", "visual/proj"),
        *_openai_blocks("visual.transformer", "visual/blocks"),
    ]


def _openai_resnet() -> list[Rule]:
    rules = []
    for root, ours in (
        ("visual", "visual"),
        ("visual.layer{stage}.{block}", "visual/stage{stage}/{block}"),
    ):
        for n in (1, 2, 3):
            rules += [
                Rule(f"{root}.conv{n}.weight", f"{ours}/conv{n}/kernel", CONVOLUTION),
                *_batch_norm(f"{root}.bn{n}", f"{ours}/norm{n}"),
            ]
    shortcut = "visual.layer{stage}.{block}.downsample"
    rules += [
        Rule(
            f"{shortcut}.0.weight",
            "visual/stage{stage}/{block}/shortcut_conv/kernel",
            CONVOLUTION,
        ),
        *_batch_norm(f"{shortcut}.1", "visual/stage{stage}/{block}/shortcut_norm"),
        Rule("visual.attnpool.positional_embedding", "visual/pool/position"),
    ]
    for theirs, name in (("q", "query"), ("k", "key"), ("v", "value"), ("c", "out")):
        rules += dense(f"visual.attnpool.{theirs}_proj", f"visual/pool/{name}")
    return rules


def _openai_blocks(root: str, ours: str) -> list[Rule]:
    block = f"{root}.resblocks.{{layer}}"
    rules = [
        *norm(f"{block}.ln_1", f"{ours}/norm1"),
        *norm(f"{block}.ln_2", f"{ours}/norm2"),
        *dense(f"{block}.attn.out_proj", f"{ours}/attention/out"),
        *dense(f"{block}.mlp.c_fc", f"{ours}/mlp/fc1"),
        *dense(f"{block}.mlp.c_proj", f"{ours}/mlp/fc2"),
    ]
    for n, name in enumerate(("query", "key", "value")):
        leaf = f"{ours}/attention/{name}"
        rules += [
            Rule(f"{block}.attn.in_proj_weight", f"{leaf}/kernel", LINEAR, (n, 3)),
            Rule(f"{block}.attn.in_proj_bias", f"{leaf}/bias", SAME, (n, 3)),
        ]
    return rules


def _huggingface_blocks(root: str, ours: str) -> list[Rule]:
    block = f"{root}.encoder.layers.{{layer}}"
    rules = [
        *norm(f"{block}.layer_norm1", f"{ours}/norm1"),
        *norm(f"{block}.layer_norm2", f"{ours}/norm2"),
        *dense(f"{block}.mlp.fc1", f"{ours}/mlp/fc1"),
        *dense(f"{block}.mlp.fc2", f"{ours}/mlp/fc2"),
    ]
    for theirs, name in (("q", "query"), ("k", "key"), ("v", "value"), ("out", "out")):
        rules += dense(f"{block}.self_attn.{theirs}_proj", f"{ours}/attention/{name}")
    return rules


def _batch_norm(source: str, path: str) -> list[Rule]:
    return [
        *norm(source, path),
        Rule(f"{source}.running_mean", f"{path}/mean"),
        Rule(f"{source}.running_var", f"{path}/var"),
    ]


def as_openai_computes(size: ClipSize) -> str:
    """Why OpenAI's code would be another function with these weights; "" if it is this one.

    Neither activation nor heads are in a state dict: it has QuickGELU, and width / 64 heads.
    """
    parts = [("text", size.text.width, size.text.heads)]
    wide = 32 if isinstance(size.vision, ResNetSize) else 1
    parts.append(("vision", wide * size.vision.width, size.vision.heads))
    said = [f"{name} has {heads} heads, not {width} / {HEAD}" for name, width, heads in parts
            if heads * HEAD != width]  # fmt: skip
    for name, part in (("vision", size.vision), ("text", size.text)):
        if not isinstance(part, ResNetSize) and part.mlp:
            said.append(f"{name} has an MLP of {part.mlp}, not 4 x {part.width}")
    if size.activation != "quick_gelu":
        said.append(f"its activation is {size.activation}, not QuickGELU")
    return "; ".join(said)


def _heads(width: int) -> int:
    return max(width // HEAD, 1)


def _count(tensors: Mapping[str, Tensor], regex: str) -> int:
    """One more than the largest number that names of this form have; 0 if there is none."""
    found = (re.fullmatch(regex, name) for name in tensors)
    return max((int(f[1]) + 1 for f in found if f), default=0)


def _root(number: int, what: str, where: str) -> int:
    root = math.isqrt(max(number, 0))
    if root * root != number or not root:
        raise UserError(f"{where} has {number} {what}, which is no square")
    return root
