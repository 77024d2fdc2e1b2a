# SPDX-License-Identifier: Apache-2.0
"""Rules of BLIP-2's encoders, in the names of LAVIS (and of SPRC, which builds on it) and of
transformers.

Both have queries, keys and values of the image encoder as one tensor, rows q, k, v. The keys have
no bias; transformers writes one of zeros, see `cir_jax.towers.blip2.huggingface`. Cross-attention
is in every second layer of a Q-Former. Source: the published state dicts.
"""

from cir_jax.weight_rules import CONVOLUTION, LINEAR, Rule, dense, norm

EVEN, ODD = (0, 2), (1, 2)  # numbers of the layers with cross-attention, and of those without


def lavis(prefix: str = "", query: str = "Qformer", projection: str = "text_proj") -> list[Rule]:
    """The rules of a whole SPRC.

    Args:
      prefix: before every name.
      query: module of the Q-Former whose text side is the query tree's.
      projection: module of the text projection of the query tree.
    """
    return [
        *eva(f"{prefix}visual_encoder."),
        *norm(f"{prefix}ln_vision", "norm_image"),
        Rule(f"{prefix}query_tokens", "query_tokens"),
        Rule(f"{prefix}prompt_tokens", "prompt_tokens"),
        *dense(f"{prefix}vision_proj", "image_projection"),
        *_slot_side(f"{prefix}Qformer.bert.encoder"),
        *lavis_query(prefix, query, projection),
    ]


def lavis_query(prefix: str, query: str = "Qformer", projection: str = "text_proj") -> list[Rule]:
    """The rules of what makes a query: embeddings, self-attention, MLPs and projection of texts."""
    bert = f"{prefix}{query}.bert"
    return [
        *_embeddings(f"{bert}.embeddings", f"{bert}.embeddings.LayerNorm"),
        *_text_side(f"{bert}.encoder"),
        *dense(f"{prefix}{projection}", "text_projection"),
    ]


def eva(prefix: str = "") -> list[Rule]:
    """The rules of the image encoder."""
    block = f"{prefix}blocks.{{layer}}"
    bias = [
        Rule(f"{block}.attn.q_bias", "visual/blocks/attention/query/bias"),
        Rule(f"{block}.attn.v_bias", "visual/blocks/attention/value/bias"),
    ]
    return [
        Rule(f"{prefix}cls_token", "visual/class_token"),
        Rule(f"{prefix}pos_embed", "visual/position"),
        *_patches(f"{prefix}patch_embed.proj"),
        *_block(block, "attn", "proj", ("norm1", "norm2")),
        *bias,
    ]


def huggingface() -> list[Rule]:
    """The rules of transformers' Blip2ForImageTextRetrieval, its biases of q and v apart."""
    vision, layer = "vision_model", "vision_model.encoder.layers.{layer}"
    bias = [
        Rule(f"{layer}.self_attn.{letter}_bias", f"visual/blocks/attention/{name}/bias")
        for letter, name in (("q", "query"), ("v", "value"))
    ]
    return [
        Rule(f"{vision}.embeddings.class_embedding", "visual/class_token"),
        Rule(f"{vision}.embeddings.position_embedding", "visual/position"),
        *_patches(f"{vision}.embeddings.patch_embedding"),
        *_block(layer, "self_attn", "projection", ("layer_norm1", "layer_norm2")),
        *bias,
        *norm(f"{vision}.post_layernorm", "norm_image"),
        Rule("query_tokens", "query_tokens"),
        *dense("vision_projection", "image_projection"),
        *dense("text_projection", "text_projection"),
        *_embeddings("embeddings", "qformer.layernorm"),
        *_text_side("qformer.encoder", attention="attention"),
        *_slot_side("qformer.encoder", attention="attention"),
    ]


def _patches(source: str) -> list[Rule]:
    return [
        Rule(f"{source}.weight", "visual/patch_kernel", CONVOLUTION),
        Rule(f"{source}.bias", "visual/patch_bias"),
    ]


def _block(block: str, attention: str, out: str, norms: tuple[str, str]) -> list[Rule]:
    """A block of the image encoder but for the biases of queries and values."""
    ours = "visual/blocks"
    return [
        *norm(f"{block}.{norms[0]}", f"{ours}/norm1"),
        *norm(f"{block}.{norms[1]}", f"{ours}/norm2"),
        *(
            Rule(
                f"{block}.{attention}.qkv.weight", f"{ours}/attention/{name}/kernel", LINEAR, (n, 3)
            )
            for n, name in enumerate(("query", "key", "value"))
        ),
        *dense(f"{block}.{attention}.{out}", f"{ours}/attention/out"),
        *dense(f"{block}.mlp.fc1", f"{ours}/mlp/fc1"),
        *dense(f"{block}.mlp.fc2", f"{ours}/mlp/fc2"),
    ]


def _embeddings(source: str, theirs: str) -> list[Rule]:
    ours = "former/embeddings"
    return [
        Rule(f"{source}.word_embeddings.weight", f"{ours}/words"),
        Rule(f"{source}.position_embeddings.weight", f"{ours}/positions"),
        *norm(theirs, f"{ours}/norm"),
    ]


def _text_side(encoder: str, attention: str = "self") -> list[Rule]:
    """Self-attention and the MLP for texts, which a query goes through."""
    rules, layer = [], f"{encoder}.layer.{{layer}}"
    for kind, numbers in (("even", EVEN), ("odd", ODD)):
        ours = f"former/pairs/{kind}"
        rules += _attention(f"{layer}.attention", attention, f"{ours}/attention", numbers)
        rules += _mlp(layer, "", f"{ours}/mlp", numbers)
    return rules


def _slot_side(encoder: str, attention: str = "self") -> list[Rule]:
    """Cross-attention and the MLP for query tokens, which only images need."""
    layer = f"{encoder}.layer.{{layer}}"
    rules = _attention(f"{layer}.crossattention", attention, "former/pairs/even/cross", EVEN)
    for kind, numbers in (("even", EVEN), ("odd", ODD)):
        rules += _mlp(layer, "_query", f"former/pairs/{kind}/slot_mlp", numbers)
    return rules


def _attention(source: str, inner: str, path: str, numbers: tuple[int, int]) -> list[Rule]:
    rules = [
        *dense(f"{source}.output.dense", f"{path}/out", numbers),
        *norm(f"{source}.output.LayerNorm", f"{path}/norm", numbers),
    ]
    for name in ("query", "key", "value"):
        rules += dense(f"{source}.{inner}.{name}", f"{path}/{name}", numbers)
    return rules


def _mlp(layer: str, end: str, path: str, numbers: tuple[int, int]) -> list[Rule]:
    return [
        *dense(f"{layer}.intermediate{end}.dense", f"{path}/fc1", numbers),
        *dense(f"{layer}.output{end}.dense", f"{path}/fc2", numbers),
        *norm(f"{layer}.output{end}.LayerNorm", f"{path}/norm", numbers),
    ]
