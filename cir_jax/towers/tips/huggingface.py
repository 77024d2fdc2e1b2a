# SPDX-License-Identifier: Apache-2.0
"""config.json of transformers' Tipsv2Model <-> our sizes.

Transformers completes what a config leaves out; that needs no torch. Keys that change nothing at
inference are let be: dropout, stochastic depth, initialisation.
"""

from pathlib import Path
from typing import Any

from cir_jax.convert import inputs, remote_code
from cir_jax.convert.config_values import square_side, whole_number
from cir_jax.convert.transformers_files import completed
from cir_jax.data.pixels import INTERPOLATIONS, Normalisation
from cir_jax.errors import UserError
from cir_jax.towers.clip.sizes import TextSize, VisionTransformerSize
from cir_jax.towers.tips import text, vision
from cir_jax.towers.tips.encoder import PIXELS, RESIZE, TEMPERATURE
from cir_jax.towers.tips.sizes import PADDING, TipsSize, check, normal_form

KIND = "tipsv2"
# Key of a side -> the one value with which it is the encoder that is here.
NEEDED: dict[str, dict[str, Any]] = {
    "vision_config": {
        "hidden_act": "gelu", "layer_norm_eps": vision.EPSILON, "num_channels": 3,
        "qkv_bias": True,
    },
    "text_config": {
        "hidden_act": "relu", "layer_norm_eps": text.EPSILON, "pooling_epsilon": text.FEW,
        "scale_sqrt_depth": True, "pad_token_id": PADDING,
    },
}  # fmt: skip
RATIO = 4.0  # of widths of an MLP, where nothing else is said


def size_of(config: dict[str, Any], where: Path) -> tuple[TipsSize, int]:
    """What a config.json says: (size in its normal form, text positions).

    Args:
      config: the JSON.
      where: file or folder it is from, for messages.

    Raises:
      UserError: it is of another kind of model, or of encoders that ours cannot be; every key that
        is at fault is named with its value.
    """
    name = f"{where}: config.json"
    if config.get("model_type") != KIND:
        raise UserError(
            f"{name} is of a model of the kind {config.get('model_type')!r}, not {KIND!r}; give "
            "the folder of a whole Tipsv2Model of transformers"
        )
    remote_code.check(config, name, "Tipsv2Model")
    full = _complete(config, name)
    sides = {"vision_config": full.vision_config, "text_config": full.text_config}
    wrong = [
        f"{part}.{key}={getattr(sides[part], key)!r} (only {value!r} is possible)"
        for part, needed in NEEDED.items()
        for key, value in needed.items()
        if getattr(sides[part], key) != value
    ]
    if wrong:
        raise UserError(
            f"{name} is of a TIPSv2 that this project cannot be: {'; '.join(wrong)}. Take other "
            "weights, or correct the config if it is not what the weights were trained with"
        )

    def number(part: str, key: str) -> int:
        return whole_number(getattr(sides[part], key), f"{part}.{key}", name)

    def sizes(part: str) -> tuple[int, int, int]:
        first, second, third = ("hidden_size", "num_hidden_layers", "num_attention_heads")
        return number(part, first), number(part, second), number(part, third)

    image = square_side(full.vision_config.image_size, "vision_config.image_size", name)
    patch = square_side(full.vision_config.patch_size, "vision_config.patch_size", name)
    gated = bool(full.vision_config.use_swiglu_ffn)
    wide = sizes("vision_config")
    inner = _inner(wide[0], full.vision_config.mlp_ratio, gated)
    size = TipsSize(
        VisionTransformerSize(image, patch, *wide, inner),
        TextSize(*sizes("text_config"), number("text_config", "intermediate_size")),
        number("vision_config", "num_register_tokens"),
        gated,
        number("text_config", "vocab_size"),
    )
    check(size, name)
    return normal_form(size), number("text_config", "max_position_embeddings")


def config_of(size: TipsSize, context: int, temperature: float = TEMPERATURE) -> dict[str, Any]:
    """config.json of a Tipsv2Model of this size, as transformers writes it.

    Args:
      size: see `cir_jax.towers.tips.sizes`.
      context: text positions.
      temperature: of the softmax that image and text were trained with.

    Raises:
      UserError: an inner width that transformers' config cannot say.
    """
    from transformers import Tipsv2Config  # takes seconds, and other formats do without

    image = size.vision
    config = Tipsv2Config(
        vision_config={
            **NEEDED["vision_config"], **_transformer(image), "image_size": image.image,
            "patch_size": image.patch, "mlp_ratio": _ratio(size),
            "use_swiglu_ffn": size.gated, "num_register_tokens": size.registers,
        },
        text_config=_text(size, context),
        temperature_init_value=temperature,
        architectures=["Tipsv2Model"],
        dtype="float32",
    )  # fmt: skip
    return config.to_diff_dict()


def text_config_of(size: TipsSize, context: int) -> dict[str, Any]:
    """config.json of a Tipsv2TextModel: the text side of a model of this size."""
    from transformers import Tipsv2TextConfig

    config = Tipsv2TextConfig(
        **_text(size, context), architectures=["Tipsv2TextModel"], dtype="float32"
    )
    return config.to_diff_dict()


def processor_of(settings: dict[str, Any], where: str) -> inputs.Processor:
    """What an image processor beside the weights says; its class normalises nothing by itself.

    Raises:
      UserError: it makes pixels that are not possible here.
    """
    said = {"do_normalize": False, "size": {"height": 0, "width": 0}, "resample": 2} | settings
    return inputs.of_transformers(said, where, PIXELS, RESIZE)


def image_processor(image: int, pixels: Normalisation, interpolation: str) -> dict[str, Any]:
    """preprocessor_config.json with which transformers makes our pixels.

    Args:
      image: side in pixels.
      pixels: the normalisation.
      interpolation: the filter.
    """
    return {
        "image_processor_type": "Tipsv2ImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": image, "width": image},
        "resample": int(INTERPOLATIONS[interpolation]),  # Pillow's number
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": pixels != PIXELS,
        "image_mean": list(pixels.mean),
        "image_std": list(pixels.deviation),
    }


def _text(size: TipsSize, context: int) -> dict[str, Any]:
    words = size.text
    return {
        **NEEDED["text_config"],
        **_transformer(words),
        "vocab_size": size.vocabulary,
        "intermediate_size": words.mlp or 4 * words.width,
        "max_position_embeddings": context,
    }


def _transformer(part: VisionTransformerSize | TextSize) -> dict[str, int]:
    return {
        "hidden_size": part.width,
        "num_hidden_layers": part.layers,
        "num_attention_heads": part.heads,
    }


def _inner(width: int, ratio: float, gated: bool) -> int:
    """Inner width of an MLP of the image side; a gated one keeps two thirds of it, in eights."""
    inner = int(width * ratio)
    return (int(inner * 2 / 3) + 7) // 8 * 8 if gated else inner


def _ratio(size: TipsSize) -> float:
    """The ratio from which transformers computes the inner width of the image side."""
    width, inner = size.vision.width, size.vision.mlp or 4 * size.vision.width
    wide = inner * 3 / 2 if size.gated else inner
    for ratio in (RATIO, wide / width, (wide + 0.5) / width):
        if _inner(width, ratio, size.gated) == inner:
            return ratio
    raise UserError(
        f"transformers' Tipsv2Model has no gated MLP of {inner}, only of multiples of 8; use "
        "--format safetensors"
    )


def _complete(config: dict[str, Any], name: str) -> Any:
    """The Tipsv2Config with every default of transformers."""
    from transformers import Tipsv2Config

    return completed(config, name, Tipsv2Config.from_dict)
