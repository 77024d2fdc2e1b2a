# SPDX-License-Identifier: Apache-2.0
"""Rules of the SigLIP encoders in the names of transformers' SiglipModel."""

from cir_jax.weight_rules import CONVOLUTION, LINEAR, SAME, Ignored, Rule, dense, norm

IMAGE, TEXT = "vision_model", "text_model"
HEAD = f"{IMAGE}.head"
MARK = f"{HEAD}.probe"  # no other model has it
POSITIONS = Ignored(r".*\.position_ids", "the numbers 0, 1, 2 and so on")


def huggingface() -> list[Rule]:
    """The rules of a SiglipModel."""
    attention = f"{HEAD}.attention"
    rules = [
        Rule(f"{IMAGE}.embeddings.patch_embedding.weight", "visual/patch_kernel", CONVOLUTION),
        Rule(f"{IMAGE}.embeddings.patch_embedding.bias", "visual/patch_bias"),
        Rule(f"{IMAGE}.embeddings.position_embedding.weight", "visual/position"),
        *_blocks(IMAGE, "visual/blocks"),
        *norm(f"{IMAGE}.post_layernorm", "visual/norm_out"),
        Rule(f"{HEAD}.probe", "visual/head/probe"),
        *dense(f"{attention}.out_proj", "visual/head/attention/out"),
        *norm(f"{HEAD}.layernorm", "visual/head/norm"),
        *dense(f"{HEAD}.mlp.fc1", "visual/head/mlp/fc1"),
        *dense(f"{HEAD}.mlp.fc2", "visual/head/mlp/fc2"),
        *huggingface_text(),
        Rule("logit_scale", "logit_scale", ones=(0,)),
        Rule("logit_bias", "logit_bias", ones=(0,)),
    ]
    # PyTorch's attention keeps queries, keys and values in one matrix.
    for n, name in enumerate(("query", "key", "value")):
        leaf = f"visual/head/attention/{name}"
        rules += [
            Rule(f"{attention}.in_proj_weight", f"{leaf}/kernel", LINEAR, (n, 3)),
            Rule(f"{attention}.in_proj_bias", f"{leaf}/bias", SAME, (n, 3)),
        ]
    return rules


def huggingface_text() -> list[Rule]:
    """The rules of a SiglipTextModel, under the names that it has in a SiglipModel."""
    return [
        Rule(f"{TEXT}.embeddings.token_embedding.weight", "text/token_embedding"),
        Rule(f"{TEXT}.embeddings.position_embedding.weight", "text/position"),
        *_blocks(TEXT, "text/blocks"),
        *norm(f"{TEXT}.final_layer_norm", "text/norm_out"),
        *dense(f"{TEXT}.head", "text/head"),
    ]


def _blocks(root: str, ours: str) -> list[Rule]:
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
