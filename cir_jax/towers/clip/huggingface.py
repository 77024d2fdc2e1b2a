# SPDX-License-Identifier: Apache-2.0
"""config.json of transformers' CLIPModel <-> our sizes.

A config leaves out what is a default of transformers, and old ones say half of it in
`text_config_dict`, so transformers' own CLIPConfig completes it; that needs no torch. Keys that
change nothing of the network at inference are let be: dropout (a network in evaluation mode has
none, and ours never has), initialisation, `projection_dim` inside the two sides (CLIPModel reads
the outer one), the token that pads.
"""

import copy
from pathlib import Path
from typing import Any

from cir_jax.convert import remote_code
from cir_jax.convert.config_values import square_side, whole_number
from cir_jax.errors import UserError
from cir_jax.towers.clip.processor_files import (
    crops_as_clip,
    processor_of,
    tokenizer_files,
    write_processor,
)
from cir_jax.towers.clip.sizes import (
    ACTIVATIONS,
    VOCABULARY,
    ClipSize,
    ResNetSize,
    TextSize,
    VisionTransformerSize,
    check,
    normal_form,
)

__all__ = [
    "config_of",
    "crops_as_clip",
    "processor_of",
    "size_of",
    "text_config_of",
    "tokenizer_files",
    "write_processor",
]

EPSILON = 1e-5  # of every LayerNorm of CLIP
START, END = VOCABULARY - 2, VOCABULARY - 1
# Configs written before transformers 4.31 say 2; with it the largest id is pooled, which is END.
LEGACY_END = 2
# Code of other projects that computes what `clip_sum` computes, by its name in an `auto_map`: the
# file of BAAI/BGE-VL-base and -large is transformers' CLIPModel with methods that add the features
# of image and text and give the sum length 1.
SUMMED = {"modeling_MMRet_CLIP.CLIPModel": "BGE-VL, a CLIP with the sum of its two features"}
KINDS = {"text_config": "clip_text_model", "vision_config": "clip_vision_model"}


def size_of(config: dict[str, Any], where: Path) -> tuple[ClipSize, int]:
    """What a config.json says: (size in its normal form, text positions).

    Args:
      config: the JSON.
      where: file or folder it is from, for messages.

    Raises:
      UserError: it is of another kind of model, or of a CLIP that our encoders cannot be; every
        key that is at fault is named with its value.
    """
    name = f"{where}: config.json"
    _check_kind(config, name)
    remote_code.check(config, name, "CLIPModel", SUMMED)
    full = _complete(config, name)
    vision, text = full.vision_config, full.text_config
    _check_function(vision, text, name)

    def number(side: Any, part: str, key: str) -> int:
        return whole_number(getattr(side, key), f"{part}.{key}", name)

    def transformer(side: Any, part: str) -> dict[str, int]:
        return {
            "width": number(side, part, "hidden_size"),
            "layers": number(side, part, "num_hidden_layers"),
            "heads": number(side, part, "num_attention_heads"),
            "mlp": number(side, part, "intermediate_size"),
        }

    image = square_side(vision.image_size, "vision_config.image_size", name)
    patch = square_side(vision.patch_size, "vision_config.patch_size", name)
    size = ClipSize(
        VisionTransformerSize(image=image, patch=patch, **transformer(vision, "vision_config")),
        TextSize(**transformer(text, "text_config")),
        whole_number(full.projection_dim, "projection_dim", name),
        vision.hidden_act,
    )
    check(size, name)
    return normal_form(size), number(text, "text_config", "max_position_embeddings")


def config_of(size: ClipSize, context: int) -> dict[str, Any]:
    """config.json of a CLIPModel of this size, as transformers writes it.

    Args:
      size: of a ViT.
      context: text positions.

    Raises:
      UserError: a ResNet, which transformers does not have.
    """
    from transformers import CLIPConfig  # takes seconds, and other formats do without

    vision = size.vision
    if isinstance(vision, ResNetSize):
        raise UserError(
            "transformers has no CLIP with a ResNet, so it cannot be exported as huggingface; the "
            "formats that can hold one are: openai, clip4cir, spn, open_clip"
        )
    config = CLIPConfig(
        text_config=_text(size, context),
        vision_config={
            "image_size": vision.image,
            "patch_size": vision.patch,
            **_transformer(vision, size),
        },
        projection_dim=size.embedding,
        architectures=["CLIPModel"],
        dtype="float32",
    )
    return config.to_diff_dict()


def text_config_of(size: ClipSize, context: int) -> dict[str, Any]:
    """config.json of a CLIPTextModelWithProjection: the text side of a CLIP of this size."""
    from transformers import CLIPTextConfig

    config = CLIPTextConfig(
        **_text(size, context), architectures=["CLIPTextModelWithProjection"], dtype="float32"
    )
    return config.to_diff_dict()


def _text(size: ClipSize, context: int) -> dict[str, Any]:
    return {
        "max_position_embeddings": context,
        "vocab_size": VOCABULARY,
        "bos_token_id": START,
        "eos_token_id": END,
        **_transformer(size.text, size),
    }


def _transformer(part: VisionTransformerSize | TextSize, size: ClipSize) -> dict[str, Any]:
    return {
        "hidden_size": part.width,
        "intermediate_size": part.mlp or 4 * part.width,
        "num_hidden_layers": part.layers,
        "num_attention_heads": part.heads,
        "hidden_act": size.activation,
        "layer_norm_eps": EPSILON,
        "projection_dim": size.embedding,
    }


def _check_kind(config: dict[str, Any], name: str) -> None:
    kind = config.get("model_type")
    if kind != "clip":
        raise UserError(
            f"{name} is of a model of the kind {kind!r}, not 'clip'; the whole of a CLIP is "
            "needed, image and text, as transformers' CLIPModel saves it"
        )
    built = config.get("architectures")
    if built and "CLIPModel" not in built:
        raise UserError(
            f"{name} has architectures={built!r}; load the model with transformers' CLIPModel, "
            "save it from there, and give that folder"
        )
    if config.get("quantization_config"):
        raise UserError(
            f"{name} has quantization_config={config['quantization_config']!r}: its weights are "
            "not floats; give the model it was made from"
        )


def _complete(config: dict[str, Any], name: str) -> Any:
    """The CLIPConfig with every default of transformers."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CLIPConfig

    try:
        full = CLIPConfig.from_dict(copy.deepcopy(config))
    except (
        StrictDataclassError, ArithmeticError, AttributeError, KeyError, TypeError, ValueError
    ) as error:  # fmt: skip
        raise UserError(
            f"{name} is refused by transformers: {' '.join(str(error).split())}; correct that"
        ) from None
    for part, kind in KINDS.items():
        said = (config.get(part) or {}).get("model_type", kind)
        if said != kind:
            raise UserError(
                f"{name} has {part}.model_type={said!r}, not {kind!r}: an encoder of another kind, "
                "which this project does not have"
            )
    return full


def _check_function(vision: Any, text: Any, name: str) -> None:
    """Raises UserError for every key that makes another function of the same shapes."""
    wrong = []

    def need(fits: bool, key: str, value: Any, remedy: str) -> None:
        if not fits:
            wrong.append(f"{key}={value!r} ({remedy})")

    for part, side in (("vision_config", vision), ("text_config", text)):
        activation, epsilon = side.hidden_act, side.layer_norm_eps
        known = f"there are {' and '.join(ACTIVATIONS)}"
        need(activation in ACTIVATIONS, f"{part}.hidden_act", activation, known)
        need(epsilon == EPSILON, f"{part}.layer_norm_eps", epsilon, f"only {EPSILON} is possible")
    both = f"{vision.hidden_act!r} in vision_config: both sides must have the same"
    need(text.hidden_act == vision.hidden_act, "text_config.hidden_act", text.hidden_act, both)
    need(vision.num_channels == 3, "vision_config.num_channels", vision.num_channels, "RGB: 3")
    need(
        text.vocab_size == VOCABULARY, "text_config.vocab_size", text.vocab_size,
        f"CLIP's {VOCABULARY}: there is no other tokenizer here",
    )  # fmt: skip
    need(
        text.eos_token_id in (LEGACY_END, END), "text_config.eos_token_id", text.eos_token_id,
        f"texts are read at CLIP's {END}, which old configs write as {LEGACY_END}",
    )  # fmt: skip
    if wrong:
        raise UserError(
            f"{name} is of a CLIP that this project cannot be: {'; '.join(wrong)}. Take other "
            "weights, or correct the config if it is not what the weights were trained with"
        )
