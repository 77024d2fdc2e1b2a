# SPDX-License-Identifier: Apache-2.0
"""Rules of the encoders of TIPSv2, in the names of transformers' Tipsv2Model."""

from cir_jax.towers.tips.sizes import TipsSize
from cir_jax.weight_rules import CONVOLUTION, Rule, dense, norm

MARK = "vision_model.embeddings.register_tokens"


def rules(size: TipsSize) -> list[Rule]:
    """The rules of a whole model."""
    vision = "vision_model.embeddings"
    return [
        Rule(f"{vision}.patch_embeddings.projection.weight", "visual/patch_kernel", CONVOLUTION),
        Rule(f"{vision}.patch_embeddings.projection.bias", "visual/patch_bias"),
        Rule(f"{vision}.cls_token", "visual/class_token", ones=(0, 1)),
        Rule(f"{vision}.register_tokens", "visual/registers", ones=(0,)),
        Rule(f"{vision}.position_embeddings", "visual/position", ones=(0,)),
        Rule(f"{vision}.mask_token", "visual/mask_token", ones=(0,)),
        *norm("vision_model.layernorm", "visual/norm_out"),
        *_image_blocks(size.gated),
        *text_rules(),
        Rule("logit_scale", "logit_scale"),
    ]


def text_rules() -> list[Rule]:
    """The rules of the text side alone."""
    text = "text_model"
    return [
        Rule(f"{text}.embeddings.token_embedding.weight", "text/token_embedding"),
        *norm(f"{text}.final_layer_norm", "text/norm_out"),
        *_text_blocks(f"{text}.encoder.layers.{{layer}}", "text/blocks"),
    ]


def _image_blocks(gated: bool) -> list[Rule]:
    block, ours = "vision_model.encoder.layer.{layer}", "visual/blocks"
    rules = [*norm(f"{block}.norm1", f"{ours}/norm1"), *norm(f"{block}.norm2", f"{ours}/norm2")]
    for theirs, name in (("q", "query"), ("k", "key"), ("v", "value"), ("o", "out")):
        rules += dense(f"{block}.attention.{theirs}_proj", f"{ours}/attention/{name}")
    for n in (1, 2):
        rules.append(Rule(f"{block}.layer_scale{n}.lambda1", f"{ours}/layer_scale{n}/scale"))
    plain = (("fc1", "fc1"), ("fc2", "fc2"))
    products = (("gate_proj", "gate"), ("up_proj", "fc1"), ("down_proj", "fc2"))
    for theirs, name in products if gated else plain:
        rules += dense(f"{block}.mlp.{theirs}", f"{ours}/mlp/{name}")
    return rules


def _text_blocks(block: str, ours: str) -> list[Rule]:
    rules = [
        *norm(f"{block}.layer_norm1", f"{ours}/norm1"),
        *norm(f"{block}.layer_norm2", f"{ours}/norm2"),
        *dense(f"{block}.mlp.fc1", f"{ours}/mlp/fc1"),
        *dense(f"{block}.mlp.fc2", f"{ours}/mlp/fc2"),
    ]
    for theirs, name in (("q", "query"), ("k", "key"), ("v", "value"), ("out", "out")):
        rules += dense(f"{block}.self_attn.{theirs}_proj", f"{ours}/attention/{name}")
    return rules
