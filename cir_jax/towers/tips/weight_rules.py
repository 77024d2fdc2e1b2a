# SPDX-License-Identifier: Apache-2.0
"""Rules of the encoders of TIPSv2, in the names of the published files.

Transformers keeps these names in the files of its Tipsv2Model, and has others in memory alone.
Queries, keys and values are one tensor, and so are both first products of a gated MLP, gate first.
"""

from cir_jax.towers.tips.sizes import TipsSize
from cir_jax.weight_rules import CONVOLUTION, LINEAR, SAME, Rule, dense, norm

VISION, TEXT = "vision_encoder", "text_encoder"
MARK = f"{VISION}.register_tokens"


def rules(size: TipsSize) -> list[Rule]:
    """The rules of a whole model."""
    return [
        Rule(f"{VISION}.patch_embed.proj.weight", "visual/patch_kernel", CONVOLUTION),
        Rule(f"{VISION}.patch_embed.proj.bias", "visual/patch_bias"),
        Rule(f"{VISION}.cls_token", "visual/class_token", ones=(0, 1)),
        Rule(f"{VISION}.register_tokens", "visual/registers", ones=(0,)),
        Rule(f"{VISION}.pos_embed", "visual/position", ones=(0,)),
        Rule(f"{VISION}.mask_token", "visual/mask_token", ones=(0,)),
        *norm(f"{VISION}.norm", "visual/norm_out"),
        *_image_blocks(size.gated),
        *text_rules(),
        Rule("logit_scale", "logit_scale"),
    ]


def text_rules() -> list[Rule]:
    """The rules of the text side alone."""
    block, ours = f"{TEXT}.transformer.resblocks.{{layer}}", "text/blocks"
    return [
        Rule(f"{TEXT}.token_embedding.weight", "text/token_embedding"),
        *norm(f"{TEXT}.ln_final", "text/norm_out"),
        *norm(f"{block}.ln_1", f"{ours}/norm1"),
        *norm(f"{block}.ln_2", f"{ours}/norm2"),
        *dense(f"{block}.mlp.c_fc", f"{ours}/mlp/fc1"),
        *dense(f"{block}.mlp.c_proj", f"{ours}/mlp/fc2"),
        *dense(f"{block}.attn.out_proj", f"{ours}/attention/out"),
        *_thirds(f"{block}.attn.in_proj_", f"{ours}/attention"),
    ]


def _image_blocks(gated: bool) -> list[Rule]:
    block, ours = f"{VISION}.blocks.{{layer}}", "visual/blocks"
    rules = [
        *norm(f"{block}.norm1", f"{ours}/norm1"),
        *norm(f"{block}.norm2", f"{ours}/norm2"),
        *dense(f"{block}.attn.proj", f"{ours}/attention/out"),
        *_thirds(f"{block}.attn.qkv.", f"{ours}/attention"),
        *(Rule(f"{block}.ls{n}.gamma", f"{ours}/layer_scale{n}/scale") for n in (1, 2)),
    ]
    if not gated:
        first, last = f"{block}.mlp.c_fc", f"{block}.mlp.c_proj"
        return [*rules, *dense(first, f"{ours}/mlp/fc1"), *dense(last, f"{ours}/mlp/fc2")]
    for n, name in enumerate(("gate", "fc1")):
        rules += [
            Rule(f"{block}.mlp.w12.weight", f"{ours}/mlp/{name}/kernel", LINEAR, (n, 2)),
            Rule(f"{block}.mlp.w12.bias", f"{ours}/mlp/{name}/bias", SAME, (n, 2)),
        ]
    return [*rules, *dense(f"{block}.mlp.w3", f"{ours}/mlp/fc2")]


def _thirds(source: str, ours: str) -> list[Rule]:
    """Queries, keys and values of one tensor."""
    rules = []
    for n, name in enumerate(("query", "key", "value")):
        rules += [
            Rule(f"{source}weight", f"{ours}/{name}/kernel", LINEAR, (n, 3)),
            Rule(f"{source}bias", f"{ours}/{name}/bias", SAME, (n, 3)),
        ]
    return rules
