# SPDX-License-Identifier: Apache-2.0
"""EmbeddingGemma 2 in the names of transformers' `EmbeddingGemma2Model`.

Its layers are numbered through; here those at one place of a period are one leaf.
"""

from cir_jax.towers.gemma.sizes import GemmaSize
from cir_jax.weight_rules import LINEAR, Ignored, Rule

MARK = "language_model.ple.per_layer_projection_norm.weight"
VISION_MARK = "vision_tower.patch_embedder.position_embedding_table"
TEXT = "language_model."
AUDIO = Ignored(r"(audio_tower|embed_audio)\..*", "the audio encoder: there is no sound here")
# Ours -> theirs, of a layer.
_ATTENTION = {
    "query/kernel": "q_proj.weight", "key/kernel": "k_proj.weight", "value/kernel": "v_proj.weight",
    "out/kernel": "o_proj.weight", "query_norm/scale": "q_norm.weight",
    "key_norm/scale": "k_norm.weight",
}  # fmt: skip
_NORMS = {
    "norm1": "input_layernorm", "norm1_out": "post_attention_layernorm",
    "norm2": "pre_feedforward_layernorm", "norm2_out": "post_feedforward_layernorm",
}  # fmt: skip
_MLP = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
_SIGNAL = {"gate": "per_layer_input_gate", "join": "per_layer_projection"}


def huggingface(size: GemmaSize) -> list[Rule]:
    """The rules of both encoders."""
    root = "vision_tower.patch_embedder"
    layer = "vision_tower.encoder.layers.{layer}"
    return [
        Rule(f"{root}.input_proj.weight", "visual/patch/kernel", LINEAR),
        Rule(f"{root}.position_embedding_table", "visual/position"),
        # The linear layers of this tower may have limits, and so lie one level deeper.
        *_layer(layer, "visual/blocks", (0, 1), ".linear.weight"),
        Rule("embed_vision.embedding_projection.weight", "visual/proj/kernel", LINEAR),
        *text(size.text.period, TEXT),
    ]


def text(period: int, prefix: str = "") -> list[Rule]:
    """The rules of the encoder of tokens alone, as transformers' EmbeddingGemma2TextModel has it.

    Args:
      period: of which layers the last is global.
      prefix: before every name.
    """
    rules = [
        Rule(f"{prefix}embed_tokens.weight", "text/tokens"),
        Rule(f"{prefix}ple.per_layer_model_projection.weight", "text/signal/kernel", LINEAR),
        Rule(f"{prefix}ple.per_layer_projection_norm.weight", "text/signal_norm/scale"),
        Rule(f"{prefix}norm.weight", "text/norm_out/scale"),
        Rule(f"{prefix}embedding_projection.weight", "text/proj/kernel", LINEAR),
    ]
    layer = prefix + "layers.{layer}"
    for n in range(period):
        path, numbers = f"text/periods/layers/{n}", (n, period)
        rules += _layer(layer, path, numbers, ".weight")
        rules += [
            Rule(f"{layer}.ple_block.{theirs}.weight", f"{path}/{ours}/kernel", LINEAR,
                 numbers=numbers)
            for ours, theirs in _SIGNAL.items()
        ]  # fmt: skip
        norm = f"{layer}.ple_block.post_per_layer_input_norm.weight"
        rules.append(Rule(norm, f"{path}/norm3_out/scale", numbers=numbers))
        rules.append(Rule(f"{layer}.layer_scalar", f"{path}/factor", numbers=numbers))
    return rules


def _layer(source: str, path: str, numbers: tuple[int, int], suffix: str) -> list[Rule]:
    """Attention, gated MLP and their norms; `suffix` is that of the linear layers."""
    rules = [
        Rule(f"{source}.{theirs}.weight", f"{path}/{ours}/scale", numbers=numbers)
        for ours, theirs in _NORMS.items()
    ]
    for ours, theirs in _ATTENTION.items():
        if ours.endswith("/kernel"):
            theirs = theirs.removesuffix(".weight") + suffix
        axes = LINEAR if ours.endswith("/kernel") else ()
        rules.append(
            Rule(f"{source}.self_attn.{theirs}", f"{path}/attention/{ours}", axes, numbers=numbers)
        )
    for ours, theirs in _MLP.items():
        rules.append(
            Rule(f"{source}.mlp.{theirs}{suffix}", f"{path}/mlp/{ours}/kernel", LINEAR,
                 numbers=numbers)
        )  # fmt: skip
    return rules
