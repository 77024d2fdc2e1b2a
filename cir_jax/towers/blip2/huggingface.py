# SPDX-License-Identifier: Apache-2.0
"""transformers' Blip2ForImageTextRetrieval <-> our sizes and tensors.

Of transformers' BLIP-2 models it is the one that has the text side of the Q-Former. Two differences
to the weights of LAVIS are let be: the norm behind the image encoder has an epsilon of 1e-6 there
and of 1e-5 here, as LAVIS has it; and its own forward runs slots through their MLP without an image
as well, where SPRC runs them through that of the text. Neither is in the tensors.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cir_jax.convert import remote_code
from cir_jax.convert.config_values import square_side, whole_number
from cir_jax.convert.containers.tensors import Tensor
from cir_jax.errors import UserError
from cir_jax.towers.blip2 import sizes
from cir_jax.towers.blip2.sizes import POSITIONS, VOCABULARY, Blip2Size, QFormerSize
from cir_jax.towers.clip.sizes import VisionTransformerSize

ARCHITECTURE = "Blip2ForImageTextRetrieval"
FUSED = ".self_attn.qkv.bias"
PARTS = (".self_attn.q_bias", ".self_attn.v_bias")
# What a config leaves out, and which values are possible.
VISION = {
    "hidden_size": 1408, "intermediate_size": 6144, "num_hidden_layers": 39,
    "num_attention_heads": 16, "image_size": 224, "patch_size": 14,
}  # fmt: skip
FORMER = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12,
}  # fmt: skip
VISION_ONLY = {"hidden_act": "gelu", "layer_norm_eps": 1e-6, "qkv_bias": True}
FORMER_ONLY = {
    "hidden_act": "gelu", "layer_norm_eps": 1e-12, "cross_attention_frequency": 2,
    "max_position_embeddings": POSITIONS, "vocab_size": VOCABULARY,
}  # fmt: skip


def size_of(config: Mapping[str, Any], where: Path) -> Blip2Size:
    """What a config.json says.

    Args:
      config: the JSON.
      where: file or folder it is from, for messages.

    Raises:
      UserError: it is of another kind of model, or of one that our encoders cannot be.
    """
    name = f"{where}: config.json"
    built = config.get("architectures") or []
    if config.get("model_type") != "blip-2" or ARCHITECTURE not in built:
        raise UserError(
            f"{name} has model_type={config.get('model_type')!r} and architectures={built!r}; only "
            f"transformers' {ARCHITECTURE} has all of what SPRC starts from (the models with a "
            "language model lack the text side of the Q-Former). Take Salesforce/blip2-itm-vit-g"
        )
    remote_code.check(config, name, ARCHITECTURE)
    vision, former = (config.get(f"{part}_config") or {} for part in ("vision", "qformer"))
    _check_only(vision, VISION_ONLY, f"{name}: vision_config")
    # Without the key it would be 30522: BERT's own words, without the one that BLIP-2 added.
    _check_only({"vocab_size": 30522} | former, FORMER_ONLY, f"{name}: qformer_config")

    def number(side: Mapping[str, Any], part: str, defaults: Mapping[str, int], key: str) -> int:
        return whole_number(side.get(key, defaults[key]), f"{part}.{key}", name)

    def transformer(side: Mapping[str, Any], part: str, defaults: Mapping[str, int]) -> dict:
        return {
            "width": number(side, part, defaults, "hidden_size"),
            "mlp": number(side, part, defaults, "intermediate_size"),
            "layers": number(side, part, defaults, "num_hidden_layers"),
            "heads": number(side, part, defaults, "num_attention_heads"),
        }

    sides = {
        key: square_side(vision.get(f"{key}_size", VISION[f"{key}_size"]), f"{key}_size", name)
        for key in ("image", "patch")
    }
    queries = whole_number(config.get("num_query_tokens", 32), "num_query_tokens", name)
    embedding = config.get("image_text_hidden_size", 256)
    size = Blip2Size(
        VisionTransformerSize(**sides, **transformer(vision, "vision_config", VISION)),
        QFormerSize(queries=queries, **transformer(former, "qformer_config", FORMER)),
        whole_number(embedding, "image_text_hidden_size", name),
    )
    sizes.check(size, name)
    return sizes.normal_form(size)


def config_of(size: Blip2Size) -> dict[str, Any]:
    """config.json of a model of this size."""

    def transformer(part: VisionTransformerSize | QFormerSize) -> dict[str, int]:
        return {
            "hidden_size": part.width,
            "intermediate_size": part.mlp or 4 * part.width,
            "num_hidden_layers": part.layers,
            "num_attention_heads": part.heads,
        }

    vision = {"image_size": size.vision.image, "patch_size": size.vision.patch}
    return {
        "architectures": [ARCHITECTURE],
        "model_type": "blip-2",
        "dtype": "float32",
        "image_text_hidden_size": size.embedding,
        "num_query_tokens": size.former.queries,
        "vision_config": {
            "model_type": "blip_2_vision_model", **vision, **transformer(size.vision), **VISION_ONLY
        },
        "qformer_config": {
            "model_type": "blip_2_qformer", **transformer(size.former), **FORMER_ONLY,
            "encoder_hidden_size": size.vision.width, "use_qformer_text_input": True,
        },
    }  # fmt: skip


def apart(tensors: Mapping[str, Tensor], where: Path) -> dict[str, Tensor]:
    """The tensors, with the bias of queries, keys and values as one of queries and one of values.

    When they are read, a bias of the keys that is not zero raises UserError: ours have none.
    """
    found = {}
    for name, tensor in tensors.items():
        if not name.endswith(FUSED) or len(tensor.shape) != 1 or tensor.shape[0] % 3:
            found[name] = tensor
            continue
        third = (tensor.shape[0] // 3,)
        for number, end in zip((0, 2), PARTS, strict=True):

            def read(name: str = name, tensor: Tensor = tensor, number: int = number) -> np.ndarray:
                parts = tensor.read().reshape(3, -1)
                if np.any(parts[1]):
                    raise UserError(
                        f"{where}: {name} has a bias of the keys that is not zero (up to "
                        f"{np.abs(parts[1]).max():.3g}); the image encoder of BLIP-2 has none, so "
                        "these weights are of another network"
                    )
                return parts[number]

            found[name.removesuffix(FUSED) + end] = Tensor(third, tensor.dtype, read)
    return found


def together(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `apart`, with zeros for the keys."""
    found = {name: x for name, x in tensors.items() if not name.endswith(PARTS)}
    for name, query in tensors.items():
        if name.endswith(PARTS[0]):
            root = name.removesuffix(PARTS[0])

            def read(query: Tensor = query, value: Tensor = tensors[root + PARTS[1]]) -> np.ndarray:
                first, last = query.read(), value.read()
                return np.concatenate([first, np.zeros_like(first), last])

            found[root + FUSED] = Tensor((3 * query.shape[0],), query.dtype, read)
    return found


def _check_only(side: Mapping[str, Any], only: Mapping[str, Any], where: str) -> None:
    wrong = [f"{k}={side[k]!r}, not {v!r}" for k, v in only.items() if side.get(k, v) != v]
    if wrong:
        raise UserError(
            f"{where} has {', '.join(wrong)}: a BLIP-2 that this project cannot be; take other "
            "weights, or correct the config if it is not what the weights were trained with"
        )
