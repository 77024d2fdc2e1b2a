# SPDX-License-Identifier: Apache-2.0
"""open_clip_config.json of open_clip <-> our sizes.

The same keys are in the model configs that open_clip has by name, without the `model_cfg` around
them. What a key means and what it is when left out is as in open_clip 3: heads are `width //
head_width`, the inner width of an MLP is `int(width * mlp_ratio)`, and the activation is the exact
GELU unless `quick_gelu` says otherwise. A name such as `ViT-B-32-quickgelu` is a config with that
key; the option `force_quick_gelu` of its loader is in no file, and such weights need the key added.

With `custom_text` the tensors of the text side have `text.` before their names. CoCa's two encoders
are read and written as such a model, without its writer of captions. Of the encoders of timm there
is EVA-02-CLIP.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from cir_jax.convert import inputs
from cir_jax.convert.config_values import square_side, whole_number
from cir_jax.data.pixels import CLIP, Normalisation
from cir_jax.errors import UserError
from cir_jax.towers.clip.open_clip_keys import (
    EPSILONS,
    EVA,
    EVA_NUMBERS,
    TANH,
    check_keys,
    gelu_of,
    is_object,
    short,
)
from cir_jax.towers.clip.sizes import (
    VOCABULARY,
    ClipSize,
    EvaSize,
    ResNetSize,
    TextSize,
    TextVariant,
    VisionTransformerSize,
    VisionVariant,
    check,
    normal_form,
)

HEAD_WIDTH, MLP_RATIO = 64, 4.0


def size_of(config: dict[str, Any], where: Path) -> tuple[ClipSize, int]:
    """What an open_clip_config.json, or a model config without `model_cfg`, says.

    Args:
      config: the JSON.
      where: file or folder it is from, for messages.

    Returns:
      (size in its normal form, text positions).

    Raises:
      UserError: it is no such config, or of a network that is none of ours; every key that is at
        fault is named with its value.
    """
    name = f"{where}: the config of open_clip"
    model = config.get("model_cfg", config)
    parts = [model, *(model.get(k) for k in ("vision_cfg", "text_cfg"))] if is_object(model) else []
    if not parts or not all(map(is_object, parts)):
        missing = "model_cfg" if not parts else "vision_cfg or text_cfg"
        has = ", ".join(map(str, model if parts else config)) or "nothing"
        raise UserError(
            f"{name} has no {missing}, only {has}; it is not of an image-text model of open_clip"
        )
    check_keys(model, name)
    preprocess = config.get("preprocess_cfg") or {}
    if not is_object(preprocess):
        raise UserError(f"{name} has preprocess_cfg={short(preprocess)}, no object; correct that")
    inputs.of_open_clip(preprocess, f"{name}: preprocess_cfg")
    vision, text = parts[1:]
    size = ClipSize(
        _vision(vision, name),
        _text(text, name),
        whole_number(model.get("embed_dim"), "embed_dim", name),
        _activation(model),
        _vision_variant(vision, name),
        _text_variant(text, name),
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


def needs_custom_text(size: ClipSize) -> bool:
    """Whether open_clip has a model of this size only with `custom_text`."""
    return size.text_variant.class_token or isinstance(size.vision, EvaSize)


def config_of(
    size: ClipSize,
    context: int,
    normalisation: Normalisation = CLIP,
    interpolation: str = "bicubic",
    *,
    custom: bool = False,
    bias: bool = False,
) -> dict[str, Any]:
    """open_clip_config.json of a CLIP of this size.

    Args:
      size: of any CLIP.
      context: text positions.
      normalisation: of the pixels.
      interpolation: filter of the resize; open_clip's own is bicubic.
      custom: the tensors are named as with `custom_text`.
      bias: there is a `logit_bias` among them.
    """
    image = size.vision_variant
    activation = {"act_kwargs": TANH} if size.activation == "gelu_tanh" else {}
    vision_cfg = {"image_size": size.vision.image, **_vision_numbers(size), **activation}
    vision_cfg |= {
        **({"ls_init_value": 1.0} if image.scale else {}),
        **({"no_ln_pre": True} if not image.norm_in else {}),
        **({"pool_type": "avg"} if image.pool != "class" else {}),
        **({"final_ln_after_pool": True} if image.pool == "mean" else {}),
        **_epsilon(image.epsilon),
    }
    if image.queries:
        vision_cfg |= {"attentional_pool": True, "attn_pooler_queries": image.queries}
        vision_cfg["attn_pooler_heads"] = image.query_heads
    model = {
        "embed_dim": size.embedding,
        "quick_gelu": size.activation == "quick_gelu",
        **({"custom_text": True} if custom else {}),
        **({"init_logit_bias": 0.0} if bias else {}),
        "vision_cfg": vision_cfg,
        "text_cfg": _text_numbers(size, context) | activation,
    }
    preprocess: dict[str, Any] = {
        "mean": list(normalisation.mean), "std": list(normalisation.deviation)
    }  # fmt: skip
    if interpolation != "bicubic":
        preprocess["interpolation"] = interpolation
    return {"model_cfg": model, "preprocess_cfg": preprocess}


def _text_numbers(size: ClipSize, context: int) -> dict[str, Any]:
    """The section of the text tower."""
    text = size.text_variant
    return {
        "context_length": context,
        "vocab_size": text.vocabulary,
        "width": size.text.width,
        "heads": size.text.heads,
        "layers": size.text.layers,
        "mlp_ratio": _ratio(size.text),
        **({"ls_init_value": 1.0} if text.scale else {}),
        **({"pool_type": text.pool} if text.pool != "end" else {}),
        **({"pool_type": "eos", "eos_id": text.end} if text.end else {}),
        # open_clip then takes the tokenizer that lies in the folder, whatever its name.
        **({"hf_tokenizer_name": "own"} if size.tokenizer != "clip" else {}),
        **({"embed_cls": True} if text.class_token else {}),
        **({"no_causal_mask": True} if not text.causal else {}),
        **({"proj_bias": True} if text.bias else {}),
        **_epsilon(text.epsilon),
    }


def _vision_numbers(size: ClipSize) -> dict[str, Any]:
    """The keys of `vision_cfg` that say which encoder it is, and of which size."""
    vision = size.vision
    if isinstance(vision, ResNetSize):
        head = 32 * vision.width // vision.heads
        numbers = {"layers": list(vision.blocks), "width": vision.width, "patch_size": None}
        return {**numbers, "head_width": head}
    if isinstance(vision, EvaSize):
        return _timm(vision)
    return {
        "layers": vision.layers,
        "width": vision.width,
        "patch_size": vision.patch,
        "head_width": vision.width // vision.heads,
        "mlp_ratio": _ratio(vision),
    }


def _timm(vision: EvaSize) -> dict[str, Any]:
    name = next((name for name, size in EVA.items() if size == vision), "")
    said: dict[str, Any] = {"timm_model_name": name or next(iter(EVA))}
    if not name:
        said["timm_model_kwargs"] = {
            key: getattr(vision, ours) for key, ours in EVA_NUMBERS.items()
        }
        said["timm_model_kwargs"]["mlp_ratio"] = _ratio(vision)
    return {**said, "timm_model_pretrained": False, "timm_pool": "token", "timm_proj": None}


def _epsilon(epsilon: float) -> dict[str, Any]:
    return {} if epsilon == EPSILONS[0] else {"norm_kwargs": {"eps": epsilon}}


def _activation(model: dict[str, Any]) -> str:
    return "quick_gelu" if model.get("quick_gelu", False) else gelu_of(model["text_cfg"])


def _vision(part: dict[str, Any], name: str) -> VisionTransformerSize | ResNetSize:
    def number(key: str, default: int) -> int:
        return whole_number(part.get(key, default), f"vision_cfg.{key}", name)

    image = square_side(part.get("image_size", 224), "vision_cfg.image_size", name)
    if part.get("timm_model_name"):
        return _eva(part, image, name)
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


def _eva(part: dict[str, Any], image: int, name: str) -> EvaSize:
    size, said = EVA[part["timm_model_name"]], part.get("timm_model_kwargs") or {}
    wrong = [
        f"vision_cfg.{key}={short(part.get(key))}"
        for key, value in (("timm_pool", "token"), ("timm_proj", None))
        if part.get(key) != value
    ]
    known = (*EVA_NUMBERS, "mlp_ratio")
    if not is_object(said) or any(key not in known for key in said):
        wrong.append(f"vision_cfg.timm_model_kwargs={short(said)}")
    if wrong:
        raise UserError(
            f"{name} has {', '.join(wrong)}; EVA-02-CLIP is here with timm_pool='token', "
            f"timm_proj=null, and of timm_model_kwargs {', '.join(known)}"
        )
    numbers = {
        ours: whole_number(said[key], f"vision_cfg.timm_model_kwargs.{key}", name)
        for key, ours in EVA_NUMBERS.items()
        if key in said
    }
    size = replace(size, **numbers)
    if "mlp_ratio" in said:
        inner = _inner(said, size.width, "vision_cfg.timm_model_kwargs", name)
        size = replace(size, mlp=inner)
    if size.image != image:
        raise UserError(
            f"{name} has vision_cfg.image_size={image}, but {part['timm_model_name']} takes "
            f"{size.image}; correct the config"
        )
    return size


def _vision_variant(part: dict[str, Any], name: str) -> VisionVariant:
    if part.get("timm_model_name"):
        return VisionVariant()  # EVA's own norms and pool; other keys are not read by open_clip
    pool = "class"
    if part.get("pool_type", "tok") == "avg":
        pool = "mean" if part.get("final_ln_after_pool") else "normed_mean"
    queries, heads = 0, VisionVariant.query_heads
    if part.get("attentional_pool"):
        key = "vision_cfg.attn_pooler_"
        queries = whole_number(part.get("attn_pooler_queries", 256), f"{key}queries", name)
        heads = whole_number(part.get("attn_pooler_heads", heads), f"{key}heads", name)
    return VisionVariant(
        scale=_scaled(part, "vision_cfg", name),
        norm_in=not part.get("no_ln_pre", False),
        pool=pool,
        queries=queries,
        query_heads=heads,
        epsilon=(part.get("norm_kwargs") or {}).get("eps", EPSILONS[0]),
    )


def _text_variant(part: dict[str, Any], name: str) -> TextVariant:
    vocabulary = whole_number(part.get("vocab_size", VOCABULARY), "text_cfg.vocab_size", name)
    pool, class_token = part.get("pool_type", "argmax"), part.get("embed_cls", False)
    end = 0
    if pool == "eos" and not class_token:
        end = whole_number(part["eos_id"], "text_cfg.eos_id", name)
        if (vocabulary, end) == (VOCABULARY, VOCABULARY - 1):
            end = 0  # the largest id of all
    return TextVariant(
        vocabulary=vocabulary,
        end=end,
        pool=pool if pool in ("first", "last") and not class_token else "end",
        class_token=class_token,
        causal=not part.get("no_causal_mask", False),
        scale=_scaled(part, "text_cfg", name),
        bias=part.get("proj_bias", False),
        epsilon=(part.get("norm_kwargs") or {}).get("eps", EPSILONS[0]),
    )


def _scaled(part: dict[str, Any], where: str, name: str) -> bool:
    """Whether there is a LayerScale; the value it started from is no part of trained weights."""
    value = part.get("ls_init_value")
    if value is None:
        return False
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UserError(f"{name} has {where}.ls_init_value={value!r}; it must be a number or null")
    return True


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
