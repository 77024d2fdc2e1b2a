# SPDX-License-Identifier: Apache-2.0
"""open_clip_config.json of open_clip <-> our sizes.

The same keys are in the model configs that open_clip has by name, without the `model_cfg` around
them. What a key means and what it is when left out is as in open_clip 3: heads are `width //
head_width`, the inner width of an MLP is `int(width * mlp_ratio)`, and the activation is the exact
GELU unless `quick_gelu` says otherwise. A name such as `ViT-B-32-quickgelu` is a config with that
key; the option `force_quick_gelu` of its loader is in no file, and such weights need the key added.
How an image becomes a square (`resize_mode`, `interpolation`) is a choice of the data, not of the
network: no size depends on it.
"""

import math
from pathlib import Path
from typing import Any

from cir_jax.convert import inputs
from cir_jax.convert.config_values import square_side, whole_number
from cir_jax.data.pixels import CLIP, Normalisation
from cir_jax.errors import UserError
from cir_jax.towers.clip.sizes import (
    VOCABULARY,
    ClipSize,
    ResNetSize,
    TextSize,
    VisionTransformerSize,
    check,
    normal_form,
)

HEAD_WIDTH, MLP_RATIO = 64, 4.0
EPSILON = {"eps": 1e-5}  # of every LayerNorm of CLIP, and PyTorch's default

# Key -> values with which the network is a CLIP of ours. A key in neither this nor READ or UNUSED
# is refused whatever its value: nobody knows what a later version means by it.
_BLOCKS = {
    "ls_init_value": (None,),
    "act_kwargs": (None, {}),
    "norm_kwargs": (None, {}, EPSILON),
    "final_ln_after_pool": (False,),
    "block_type": (None, "default"),
    **dict.fromkeys(
        ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn",
         "scale_fc", "output_tokens"),
        (False,),
    ),
}  # fmt: skip
PLAIN: dict[str, dict[str, tuple]] = {
    "": {
        "quick_gelu": (False, True),
        "custom_text": (False,),  # True names the tensors of the text side otherwise
        "init_logit_bias": (None,),
        "nonscalar_logit_scale": (False,),
    },
    "vision_cfg": {
        **_BLOCKS,
        "timm_model_name": (None, ""),
        "attentional_pool": (False, None, ""),
        "pool_type": ("tok",),
        "pos_embed_type": ("learnable",),
        "no_ln_pre": (False,),
        "input_patchnorm": (False,),
        "global_average_pool": (False,),
        "image_seq_len": (None,),
    },
    "text_cfg": {
        **_BLOCKS,
        "hf_model_name": (None, ""),
        "hf_tokenizer_name": (None, ""),
        "tokenizer_mode": (None,),
        "tokenizer_kwargs": (None, {}, {"clean": "lower"}),
        "tokenizer_type": (None, ""),
        "text_arch": ("clip",),
        "variable_text": (False,),
        "vocab_size": (VOCABULARY,),
        "embed_cls": (False,),
        "no_causal_mask": (False,),
        "pool_type": ("argmax", "eos"),
        "eos_id": (None, VOCABULARY - 1),
        "bos_id": (None, VOCABULARY - 2),
        "proj_type": ("linear",),
        "proj_bias": (False,),
    },
}
READ = {
    "": ("embed_dim", "vision_cfg", "text_cfg"),
    "vision_cfg": ("layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size"),
    "text_cfg": ("context_length", "width", "heads", "layers", "mlp_ratio"),
}
# No part of the function at inference, or settings of what PLAIN has switched off.
UNUSED = {
    "": ("init_logit_scale", "output_dict", "cast_dtype"),
    "vision_cfg": (
        "patch_dropout", "attn_pooler_queries", "attn_pooler_heads", "timm_model_pretrained",
        "timm_pool", "timm_proj", "timm_proj_bias", "timm_drop", "timm_drop_path",
        "timm_model_kwargs",
    ),
    "text_cfg": (
        "pad_id", "tiktoken_name", "hf_model_pretrained", "hf_proj_type", "hf_pooler_type",
        "hf_model_config",
    ),
}  # fmt: skip


def size_of(config: dict[str, Any], where: Path) -> tuple[ClipSize, int]:
    """What an open_clip_config.json, or a model config without `model_cfg`, says.

    Args:
      config: the JSON.
      where: file or folder it is from, for messages.

    Returns:
      (size in its normal form, text positions).

    Raises:
      UserError: it is no such config, or of a network that is not a plain CLIP; every key that is
        at fault is named with its value.
    """
    name = f"{where}: the config of open_clip"
    model = config.get("model_cfg", config)
    parts = [model, *(model.get(k) for k in ("vision_cfg", "text_cfg"))] if _object(model) else []
    if not parts or not all(map(_object, parts)):
        missing = "model_cfg" if not parts else "vision_cfg or text_cfg"
        has = ", ".join(map(str, model if parts else config)) or "nothing"
        raise UserError(
            f"{name} has no {missing}, only {has}; it is not of an image-text model of open_clip"
        )
    _check_plain(model, name)
    preprocess = config.get("preprocess_cfg") or {}
    if not _object(preprocess):
        raise UserError(f"{name} has preprocess_cfg={_short(preprocess)}, no object; correct that")
    inputs.of_open_clip(preprocess, f"{name}: preprocess_cfg")
    vision, text = parts[1:]
    size = ClipSize(
        _vision(vision, name),
        _text(text, name),
        whole_number(model.get("embed_dim"), "embed_dim", name),
        "quick_gelu" if model.get("quick_gelu", False) else "gelu",
    )
    check(size, name)
    context = whole_number(text.get("context_length", 77), "text_cfg.context_length", name)
    return normal_form(size), context


def processor_of(config: dict[str, Any], where: Path) -> inputs.Processor:
    """What `preprocess_cfg` of a config says; arguments and errors as of `size_of`."""
    name = f"{where}: the config of open_clip: preprocess_cfg"
    return inputs.of_open_clip(config.get("preprocess_cfg") or {}, name)


def crops_as_clip(config: dict[str, Any]) -> bool:
    """Whether a config has images resized and cropped as CLIP does, which is its default."""
    return (config.get("preprocess_cfg") or {}).get("resize_mode", "shortest") == "shortest"


def config_of(
    size: ClipSize,
    context: int,
    normalisation: Normalisation = CLIP,
    interpolation: str = "bicubic",
) -> dict[str, Any]:
    """open_clip_config.json of a CLIP of this size.

    Args:
      size: of any CLIP.
      context: text positions.
      normalisation: of the pixels.
      interpolation: filter of the resize; open_clip's own is bicubic.
    """
    vision, text = size.vision, size.text
    if isinstance(vision, ResNetSize):
        image = {"layers": list(vision.blocks), "width": vision.width, "patch_size": None}
        image["head_width"] = 32 * vision.width // vision.heads
    else:
        image = {"layers": vision.layers, "width": vision.width, "patch_size": vision.patch}
        image["head_width"] = vision.width // vision.heads
        image["mlp_ratio"] = _ratio(vision)
    model = {
        "embed_dim": size.embedding,
        "quick_gelu": size.activation == "quick_gelu",
        "vision_cfg": {"image_size": vision.image, **image},
        "text_cfg": {
            "context_length": context,
            "vocab_size": VOCABULARY,
            "width": text.width,
            "heads": text.heads,
            "layers": text.layers,
            "mlp_ratio": _ratio(text),
        },
    }
    preprocess: dict[str, Any] = {
        "mean": list(normalisation.mean), "std": list(normalisation.deviation)
    }  # fmt: skip
    if interpolation != "bicubic":
        preprocess["interpolation"] = interpolation
    return {"model_cfg": model, "preprocess_cfg": preprocess}


def _check_plain(model: dict[str, Any], name: str) -> None:
    wrong = []
    for part, plain in PLAIN.items():
        keys = model[part] if part else model
        known = (*READ[part], *UNUSED[part])
        for key, value in keys.items():
            if key not in known and not _among(value, plain.get(key, ())):
                wrong.append(f"{part}{part and '.'}{key}={_short(value)}")
    text = model["text_cfg"]
    if text.get("pool_type") == "eos" and text.get("eos_id") is None:
        wrong.append("text_cfg.pool_type='eos' without eos_id")
    if wrong:
        raise UserError(
            f"{name} is not of a plain CLIP: {', '.join(wrong)}. Only OpenAI's two image encoders "
            "(ViT, ResNet) and its text encoder are here; take weights of a model without these"
        )


def _among(value: Any, allowed: tuple) -> bool:
    # Types too: 1 is no True, and a list can be in no set.
    return any(type(value) is type(one) and value == one for one in allowed)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _object(value: Any) -> bool:
    return isinstance(value, dict)


def _vision(part: dict[str, Any], name: str) -> VisionTransformerSize | ResNetSize:
    def number(key: str, default: int) -> int:
        return whole_number(part.get(key, default), f"vision_cfg.{key}", name)

    image = square_side(part.get("image_size", 224), "vision_cfg.image_size", name)
    width, head = number("width", 768), number("head_width", HEAD_WIDTH)
    layers = part.get("layers", 12)
    if isinstance(layers, list):
        if len(layers) != 4:
            raise UserError(
                f"{name} has vision_cfg.layers={layers!r}; a ResNet has blocks in four stages"
            )
        blocks = tuple(whole_number(n, "vision_cfg.layers", name) for n in layers)
        return ResNetSize(image, blocks, width, 32 * width // head)
    patch = square_side(part.get("patch_size", 16), "vision_cfg.patch_size", name)
    inner = _inner(part, width, "vision_cfg", name)
    return VisionTransformerSize(image, patch, width, number("layers", 12), width // head, inner)


def _text(part: dict[str, Any], name: str) -> TextSize:
    def number(key: str, default: int) -> int:
        return whole_number(part.get(key, default), f"text_cfg.{key}", name)

    width = number("width", 512)
    inner = _inner(part, width, "text_cfg", name)
    return TextSize(width, number("layers", 12), number("heads", 8), inner)


def _inner(part: dict[str, Any], width: int, where: str, name: str) -> int:
    ratio = part.get("mlp_ratio", MLP_RATIO)
    number = isinstance(ratio, (int, float)) and not isinstance(ratio, bool)
    if not number or not math.isfinite(ratio) or int(width * ratio) < 1:
        raise UserError(f"{name} has {where}.mlp_ratio={ratio!r}; it must be a number above 0")
    return int(width * ratio)


def _ratio(part: VisionTransformerSize | TextSize) -> float:
    """The ratio from which open_clip computes the inner width: it rounds the product down."""
    inner = part.mlp or 4 * part.width
    ratio = inner / part.width
    return ratio if int(part.width * ratio) == inner else math.nextafter(ratio, math.inf)
