# SPDX-License-Identifier: Apache-2.0
"""BLIP's two encoders and projections in Salesforce's and in transformers' names, and their size.

Both name the text encoder alike. Salesforce's code has heads of 64 channels, which shapes do not
say; transformers has a config.
"""

import re
from collections.abc import Mapping

from cir_jax.convert.containers.tensors import Tensor
from cir_jax.errors import UserError
from cir_jax.towers.blip import pos_embed
from cir_jax.towers.blip.sizes import HEAD, VOCABULARY, BlipSize, check, normal_form
from cir_jax.towers.clip.sizes import TextSize, VisionTransformerSize
from cir_jax.weight_rules import CONVOLUTION, LINEAR, Ignored, Rule, dense, norm

IMAGE = "visual_encoder"
POSITIONS = {"salesforce": f"{IMAGE}.pos_embed",
             "huggingface": "vision_model.embeddings.position_embedding"}  # fmt: skip

TEMPERATURE = Ignored(
    r"(blip\.temp|temp|tau)",
    "a temperature of training, here a leaf of the stage; export writes it",
)
BUFFER = Ignored(r"(blip\.)?text_encoder\.embeddings\.position_ids", "the numbers 0, 1, 2, ...")
MATCHING = Ignored(r"itm_head\..*", "the head of image-text matching: retrieval does not ask it")
PRETRAINING = (
    Ignored(r"\w+_m\..*", "the slow copies of BLIP's own training"),
    Ignored(r"text_decoder\..*", "the decoder, which writes captions"),
    Ignored(r"(\w+_queue|queue_ptr)", "the queues of BLIP's own training"),
)


def salesforce(prefix: str = "") -> list[Rule]:
    """The rules in the names of Salesforce's code, which the released runs have too."""
    block = f"{prefix}{IMAGE}.blocks.{{layer}}"
    return [
        Rule(f"{prefix}{IMAGE}.cls_token", "visual/class_token"),
        Rule(f"{prefix}{IMAGE}.pos_embed", "visual/position"),
        *_patches(f"{prefix}{IMAGE}.patch_embed.proj"),
        *norm(f"{block}.norm1", "visual/blocks/norm1"),
        *_fused(f"{block}.attn.qkv", "visual/blocks/attention"),
        *dense(f"{block}.attn.proj", "visual/blocks/attention/out"),
        *norm(f"{block}.norm2", "visual/blocks/norm2"),
        *dense(f"{block}.mlp.fc1", "visual/blocks/mlp/fc1"),
        *dense(f"{block}.mlp.fc2", "visual/blocks/mlp/fc2"),
        *norm(f"{prefix}{IMAGE}.norm", "visual/norm_out"),
        *_text(prefix),
    ]


def huggingface() -> list[Rule]:
    """The rules in the names of transformers' BlipForImageTextRetrieval."""
    block = "vision_model.encoder.layers.{layer}"
    return [
        Rule("vision_model.embeddings.class_embedding", "visual/class_token"),
        Rule("vision_model.embeddings.position_embedding", "visual/position"),
        *_patches("vision_model.embeddings.patch_embedding"),
        *norm(f"{block}.layer_norm1", "visual/blocks/norm1"),
        *_fused(f"{block}.self_attn.qkv", "visual/blocks/attention"),
        *dense(f"{block}.self_attn.projection", "visual/blocks/attention/out"),
        *norm(f"{block}.layer_norm2", "visual/blocks/norm2"),
        *dense(f"{block}.mlp.fc1", "visual/blocks/mlp/fc1"),
        *dense(f"{block}.mlp.fc2", "visual/blocks/mlp/fc2"),
        *norm("vision_model.post_layernorm", "visual/norm_out"),
        *_text(""),
    ]


def size_of(tensors: Mapping[str, Tensor], prefix: str, where: str) -> tuple[BlipSize, int]:
    """(size, text positions) of a state dict in Salesforce's names, from its shapes.

    Raises:
      UserError: a tensor that tells the size is missing or has a shape that no BLIP has, or a width
        is no multiple of 64.
    """

    def shape(name: str, axes: int) -> tuple[int, ...]:
        tensor = tensors.get(prefix + name)
        if tensor is None or len(tensor.shape) != axes:
            has = "is missing" if tensor is None else f"has {len(tensor.shape)} axes, not {axes}"
            raise UserError(
                f"{where} is no BLIP of Salesforce's layout: {prefix}{name}, which tells its size, "
                f"{has}"
            )
        return tensor.shape

    def layers(root: str) -> int:
        found = (re.match(rf"{re.escape(prefix + root)}\.(\d+)\.", name) for name in tensors)
        return max((int(f[1]) + 1 for f in found if f), default=0)

    width, _, _, patch = shape(f"{IMAGE}.patch_embed.proj.weight", 4)
    across = pos_embed.grid(shape(f"{IMAGE}.pos_embed", 3)[1], where)
    vision = VisionTransformerSize(
        patch * across, patch, width, layers(f"{IMAGE}.blocks"), _heads(width, where),
        shape(f"{IMAGE}.blocks.0.mlp.fc1.weight", 2)[0],
    )  # fmt: skip
    vocabulary, width = shape("text_encoder.embeddings.word_embeddings.weight", 2)
    check_vocabulary(vocabulary, where)
    text = TextSize(
        width, layers("text_encoder.encoder.layer"), _heads(width, where),
        shape("text_encoder.encoder.layer.0.intermediate.dense.weight", 2)[0],
    )  # fmt: skip
    size = normal_form(BlipSize(vision, text, shape("vision_proj.weight", 2)[0]))
    check(size, where)
    return size, shape("text_encoder.embeddings.position_embeddings.weight", 2)[0]


def check_vocabulary(rows: int, where: str) -> None:
    """Raises UserError if a text encoder is not of BLIP's tokens."""
    if rows != VOCABULARY:
        raise UserError(
            f"{where} has {rows} tokens, not the {VOCABULARY} of BLIP (bert-base-uncased, [DEC], "
            "[ENC]): it belongs to another tokenizer, which this model does not have"
        )


def as_salesforce_computes(size: BlipSize) -> str:
    """Why Salesforce's code would be another function with these weights; "" if it is this one."""
    return "; ".join(
        f"the {name} side has {part.heads} heads, not {part.width} / {HEAD}"
        for name, part in (("image", size.vision), ("text", size.text))
        if part.heads * HEAD != part.width
    )


def _heads(width: int, where: str) -> int:
    if width % HEAD:
        raise UserError(
            f"{where} has a width of {width}, no multiple of {HEAD}: Salesforce's code has "
            f"heads of {HEAD} channels; give the weights in another layout, which says its heads"
        )
    return width // HEAD


def _text(prefix: str) -> list[Rule]:
    root, layer = f"{prefix}text_encoder", f"{prefix}text_encoder.encoder.layer.{{layer}}"
    rules = [
        Rule(f"{root}.embeddings.word_embeddings.weight", "text/embeddings/words"),
        Rule(f"{root}.embeddings.position_embeddings.weight", "text/embeddings/positions"),
        *norm(f"{root}.embeddings.LayerNorm", "text/embeddings/norm"),
        *dense(f"{layer}.intermediate.dense", "text/layers/mlp/fc1"),
        *dense(f"{layer}.output.dense", "text/layers/mlp/fc2"),
        *norm(f"{layer}.output.LayerNorm", "text/layers/mlp/norm"),
        *dense(f"{prefix}vision_proj", "vision_proj"),
        *dense(f"{prefix}text_proj", "text_proj"),
    ]
    for theirs, ours in (("attention", "attention"), ("crossattention", "cross")):
        for name in ("query", "key", "value"):
            rules += dense(f"{layer}.{theirs}.self.{name}", f"text/layers/{ours}/{name}")
        rules += dense(f"{layer}.{theirs}.output.dense", f"text/layers/{ours}/out")
        rules += norm(f"{layer}.{theirs}.output.LayerNorm", f"text/layers/{ours}/norm")
    return rules


def _patches(source: str) -> list[Rule]:
    return [
        Rule(f"{source}.weight", "visual/patch_kernel", CONVOLUTION),
        Rule(f"{source}.bias", "visual/patch_bias"),
    ]


def _fused(source: str, path: str) -> list[Rule]:
    """One product for queries, keys and values, in this order."""
    rules = []
    for n, name in enumerate(("query", "key", "value")):
        rules += [
            Rule(f"{source}.weight", f"{path}/{name}/kernel", LINEAR, (n, 3)),
            Rule(f"{source}.bias", f"{path}/{name}/bias", part=(n, 3)),
        ]
    return rules
