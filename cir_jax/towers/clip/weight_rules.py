# SPDX-License-Identifier: Apache-2.0
"""Rules of the CLIP encoders, in the names of OpenAI (and of all who build on them, open_clip with
its own parts among them) and of transformers, and the sizes of the encoders as their shapes tell
them.

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
    PLAIN_TEXT,
    PLAIN_VISION,
    VOCABULARY,
    ClipSize,
    EvaSize,
    ResNetSize,
    TextSize,
    VisionTransformerSize,
    check,
    name_of,
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
DECODER = Ignored(r"text_decoder\..*", "CoCa's writer of captions, which a search does not need")
LOGIT_BIAS = Ignored("logit_bias", "of a sigmoid loss over pairs; no ranking depends on it")
CUSTOM = "text."  # before the names of the text side where open_clip has `custom_text`


def openai(size: ClipSize, prefix: str = "", text: str = "") -> list[Rule]:
    """The rules of a whole CLIP in OpenAI's names, or those that open_clip made of them.

    Args:
      size: of any CLIP.
      prefix: stands before every name.
      text: stands before the names of the text side, CUSTOM or nothing.
    """
    if isinstance(size.vision, ResNetSize):
        vision = _openai_resnet()
    else:
        vision = _eva() if isinstance(size.vision, EvaSize) else _openai_vit(size)
    rules = [*vision, *_openai_text(size, text), Rule("logit_scale", "logit_scale")]
    return [Rule(prefix + r.source, r.path, r.axes, r.part, r.ones) for r in rules]


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


def _openai_text(size: ClipSize, prefix: str) -> list[Rule]:
    variant, projection = size.text_variant, f"{prefix}text_projection"
    rules = [
        Rule(f"{prefix}token_embedding.weight", "text/token_embedding"),
        Rule(f"{prefix}positional_embedding", "text/position"),
        *norm(f"{prefix}ln_final", "text/norm_out"),
        *_openai_blocks(f"{prefix}transformer", "text/blocks", variant.scale),
    ]
    if variant.class_token:
        rules.append(Rule(f"{prefix}cls_emb", "text/class_token"))
    if variant.bias:
        rules.append(Rule(f"{projection}.weight", "text/proj", LINEAR))
        return [*rules, Rule(f"{projection}.bias", "text/proj_bias")]
    return [*rules, Rule(projection, "text/proj")]


def _openai_vit(size: ClipSize) -> list[Rule]:
    variant = size.vision_variant
    return [
        Rule("visual.conv1.weight", "visual/patch_kernel", CONVOLUTION),
        Rule("visual.class_embedding", "visual/class_token"),
        Rule("visual.positional_embedding", "visual/position"),
        *(norm("visual.ln_pre", "visual/norm_in") if variant.norm_in else []),
        *norm("visual.ln_post", "visual/norm_out"),
        Rule("visual.proj", "visual/proj"),
        *_openai_blocks("visual.transformer", "visual/blocks", variant.scale),
        *(_attention_pool(size) if variant.queries else []),
    ]


def _attention_pool(size: ClipSize) -> list[Rule]:
    """Of CoCa. PyTorch has one matrix for all three where the tokens are as wide as the queries."""
    theirs, ours = "visual.attn_pool", "visual/pool"
    rules = [
        Rule(f"{theirs}.query", f"{ours}/queries"),
        *norm(f"{theirs}.ln_q", f"{ours}/norm_query"),
        *norm(f"{theirs}.ln_k", f"{ours}/norm_key"),
        *dense(f"{theirs}.attn.out_proj", f"{ours}/out"),
    ]
    assert isinstance(size.vision, VisionTransformerSize)
    joined = size.vision.width == size.embedding
    for n, name in enumerate(("query", "key", "value")):
        leaf = f"{ours}/{name}"
        source = f"{theirs}.attn.{name[0]}_proj_weight"
        rules += [
            Rule(f"{theirs}.attn.in_proj_weight", f"{leaf}/kernel", LINEAR, (n, 3))
            if joined
            else Rule(source, f"{leaf}/kernel", LINEAR),
            Rule(f"{theirs}.attn.in_proj_bias", f"{leaf}/bias", SAME, (n, 3)),
        ]
    return rules


def _eva() -> list[Rule]:
    """The ViT of EVA-02-CLIP, in the names of timm, whose network open_clip builds it from."""
    trunk, block = "visual.trunk", "visual.trunk.blocks.{layer}"
    ours = "visual/blocks"
    rules = [
        Rule(f"{trunk}.patch_embed.proj.weight", "visual/patch_kernel", CONVOLUTION),
        Rule(f"{trunk}.patch_embed.proj.bias", "visual/patch_bias"),
        Rule(f"{trunk}.cls_token", "visual/class_token", ones=(0, 1)),
        Rule(f"{trunk}.pos_embed", "visual/position", ones=(0,)),
        *norm(f"{trunk}.norm", "visual/norm_out"),
        Rule(f"{trunk}.head.weight", "visual/proj", LINEAR),
        Rule(f"{trunk}.head.bias", "visual/proj_bias"),
        *norm(f"{block}.norm1", f"{ours}/norm1"),
        *norm(f"{block}.norm2", f"{ours}/norm2"),
        *norm(f"{block}.attn.norm", f"{ours}/attention/norm"),
        *norm(f"{block}.mlp.norm", f"{ours}/mlp/norm"),
        Rule(f"{block}.attn.k_proj.weight", f"{ours}/attention/key/kernel", LINEAR),
    ]
    for theirs, name in (
        ("attn.q_proj", "attention/query"),
        ("attn.v_proj", "attention/value"),
        ("attn.proj", "attention/out"),
        ("mlp.fc1_g", "mlp/gate"),
        ("mlp.fc1_x", "mlp/fc1"),
        ("mlp.fc2", "mlp/fc2"),
    ):
        rules += dense(f"{block}.{theirs}", f"{ours}/{name}")
    return rules


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


def _openai_blocks(root: str, ours: str, scale: bool = False) -> list[Rule]:
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
    for n in (1, 2) if scale else ():
        rules.append(Rule(f"{block}.ls_{n}.gamma", f"{ours}/layer_scale{n}/scale"))
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
    if differs_from_openai(size):
        said.append(f"its network is another one, {name_of(size)}")
    return "; ".join(said)


def differs_from_openai(size: ClipSize) -> bool:
    """True if an encoder has parts, or lacks some, that OpenAI's has not."""
    plain = (size.vision_variant, size.text_variant) == (PLAIN_VISION, PLAIN_TEXT)
    return isinstance(size.vision, EvaSize) or not plain


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
