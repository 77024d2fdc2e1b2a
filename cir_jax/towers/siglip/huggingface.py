# SPDX-License-Identifier: Apache-2.0
"""A folder of transformers' SiglipModel <-> our sizes, and the files beside the weights.

SigLIP 2 at fixed resolution is published as a SiglipModel too; of its own class are the weights
that take images of any sides ("NaFlex"), which this project does not have. Which of the two
generations a folder is of is told by the words of its table, or else by what its tokenizer fills
texts up with.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cir_jax.convert import inputs, remote_code
from cir_jax.convert.config_values import square_side, whole_number
from cir_jax.convert.transformers_files import (
    PREPROCESSOR,
    PROCESSOR,
    check_floats,
    completed,
    image_settings,
    json_bytes,
)
from cir_jax.data import tokenizer_files
from cir_jax.data.pixels import INTERPOLATIONS, Normalisation
from cir_jax.errors import UserError
from cir_jax.files import whole
from cir_jax.towers.clip.sizes import VisionTransformerSize
from cir_jax.towers.siglip import encoder, sizes
from cir_jax.towers.siglip.sizes import SiglipSize, SiglipTextSize
from cir_jax.towers.siglip.vit import EPSILON

ACTIVATION = "gelu_pytorch_tanh"
_CLASSES = ("SiglipModel", "Siglip2Model")


def size_of(config: dict[str, Any], where: Path) -> SiglipSize:
    """The size that a config.json says, in its normal form, with what the tokenizer says.

    Raises:
      UserError: it is of another kind of model, or of a SigLIP that our encoders cannot be; every
        key that is at fault is named with its value.
    """
    name = f"{where}: config.json"
    _check_kind(config, name)
    remote_code.check(config, name, "SiglipModel", {})
    full = _complete(config, name)
    vision, text = full.vision_config, full.text_config
    _check_function(vision, text, name)

    def number(side: Any, part: str, key: str) -> int:
        return whole_number(getattr(side, key), f"{part}.{key}", name)

    def transformer(side: Any, part: str) -> tuple[int, int, int, int]:
        keys = "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"
        width, layers, heads, mlp = (number(side, part, key) for key in keys)
        return width, layers, heads, mlp

    image = square_side(vision.image_size, "vision_config.image_size", name)
    patch = square_side(vision.patch_size, "vision_config.patch_size", name)
    words, context = (
        number(text, "text_config", key) for key in ("vocab_size", "max_position_embeddings")
    )
    size = SiglipSize(
        VisionTransformerSize(image, patch, *transformer(vision, "vision_config")),
        SiglipTextSize(*transformer(text, "text_config"), words=words, context=context),
        number(text, "text_config", "projection_size"),
        _generation(words, where),
    )
    sizes.check(size, name)
    return sizes.normal_form(size)


def config_of(size: SiglipSize) -> dict[str, Any]:
    """config.json of a SiglipModel of this size, as transformers writes it."""
    from transformers import SiglipConfig  # takes seconds, and other formats do without

    vision = size.vision
    config = SiglipConfig(
        text_config=_text(size),
        vision_config={
            "image_size": vision.image,
            "patch_size": vision.patch,
            **_transformer(vision),
        },
        architectures=["SiglipModel"],
        dtype="float32",
    )
    return config.to_diff_dict()


def text_config_of(size: SiglipSize) -> dict[str, Any]:
    """config.json of a SiglipTextModel: the text side of a SigLIP of this size."""
    from transformers import SiglipTextConfig

    config = SiglipTextConfig(**_text(size), architectures=["SiglipTextModel"], dtype="float32")
    return config.to_diff_dict()


def processor_of(folder: Path, size: SiglipSize) -> inputs.Processor:
    """What image processor and tokenizer in a folder say.

    Raises:
      UserError: one of them is not there, or makes what is not possible here.
    """
    paths = [folder / name for name in (PREPROCESSOR, PROCESSOR) if (folder / name).is_file()]
    found = image_settings(paths)
    if not found:
        raise UserError(
            f"{folder} has no {PREPROCESSOR}, which says how pictures become what these weights "
            "learned from (SigLIP and SigLIP 2 differ in it); fetch it with the weights"
        )
    path, settings = found[0]
    own, resize = encoder.PIXELS, encoder.RESIZES[size.generation]
    said = inputs.of_transformers(settings, str(path), own, resize)
    sides = settings.get("size")
    sides = set(sides.values()) if isinstance(sides, dict) else {sides}
    if sides - {None, size.vision.image}:
        raise UserError(
            f"{path} has size={settings['size']!r} where the model has {size.vision.image} pixels; "
            "take the file that belongs to these weights"
        )
    return inputs.Processor({**said.model, **inputs.tokenizer(folder)}, said.data)


def files(folder: Path) -> list[Path]:
    """The files beside the weights that an export takes along."""
    names = (PREPROCESSOR, PROCESSOR, *tokenizer_files.SETTINGS)
    beside = [folder / name for name in names if (folder / name).is_file()]
    return [*beside, *tokenizer_files.vocabularies(folder)]


def write_files(
    folder: Path,
    size: SiglipSize,
    tokenizer: str,
    normalisation: Normalisation,
    interpolation: str,
    taken_over: Sequence[Path],
) -> list[Path]:
    """Writes tokenizer and image processor, with which transformers does what we do.

    Args:
      folder: of the model that is exported.
      size: of the model.
      tokenizer: where its tokenizer lies.
      normalisation: of the pixels.
      interpolation: filter of the resize.
      taken_over: files that came with the weights: an image processor among them is copied.

    Returns:
      The files written.
    """
    content = tokenizer_files.read(tokenizer)
    kept = [path for path in taken_over if path.name in (PREPROCESSOR, PROCESSOR)]
    content |= {path.name: path.read_bytes() for path in kept}
    if not kept:
        side = size.vision.image
        content[PREPROCESSOR] = json_bytes(
            {
                "image_processor_type": "SiglipImageProcessor",
                "do_convert_rgb": True,
                "do_resize": True,
                "size": {"height": side, "width": side},
                "resample": int(INTERPOLATIONS[interpolation]),  # Pillow's number
                "do_rescale": True,
                "rescale_factor": 1 / 255,
                "do_normalize": True,
                "image_mean": list(normalisation.mean),
                "image_std": list(normalisation.deviation),
            }
        )
    for name, what in content.items():
        with whole(folder / name) as file:
            file.write(what)
    return sorted(folder / name for name in content)


def _generation(words: int, folder: Path) -> int:
    known = {count: generation for generation, count in sizes.WORDS.items()}
    if words in known:
        return known[words]
    pads = {pad: generation for generation, pad in sizes.PADS.items()}
    pad = tokenizer_files.load(str(folder)).pad
    if pad not in pads:
        raise UserError(
            f"{folder}: the tokenizer fills texts up with {pad}; SigLIP's does so with "
            f"{sizes.PADS[1]}, SigLIP 2's with {sizes.PADS[2]}: take the one of these weights"
        )
    return pads[pad]


def _text(size: SiglipSize) -> dict[str, Any]:
    text = size.text
    return {
        "max_position_embeddings": text.context,
        "vocab_size": text.words,
        "projection_size": size.embedding,
        "pad_token_id": sizes.PADS[size.generation],
        **_transformer(text),
    }


def _transformer(part: VisionTransformerSize | SiglipTextSize) -> dict[str, Any]:
    return {
        "hidden_size": part.width,
        "intermediate_size": part.mlp or 4 * part.width,
        "num_hidden_layers": part.layers,
        "num_attention_heads": part.heads,
        "hidden_act": ACTIVATION,
        "layer_norm_eps": EPSILON,
    }


def _check_kind(config: dict[str, Any], name: str) -> None:
    kind, built = config.get("model_type"), config.get("architectures")
    if kind == "siglip2":
        raise UserError(
            f"{name} is of the kind 'siglip2', whose images keep their sides (NaFlex); take the "
            "weights of a fixed resolution, e.g. siglip2-base-patch16-224"
        )
    if kind != "siglip" or (built and not {*built} & {*_CLASSES}):
        raise UserError(
            f"{name} is of a model of the kind {kind!r} with architectures={built!r}; the whole of "
            "a SigLIP is needed, image and text, as transformers' SiglipModel saves it"
        )
    check_floats(config, name)


def _complete(config: dict[str, Any], name: str) -> Any:
    """The SiglipConfig with every default of transformers."""
    from transformers import SiglipConfig

    return completed(config, name, SiglipConfig.from_dict)


def _check_function(vision: Any, text: Any, name: str) -> None:
    """Raises UserError for every key that makes another function of the same shapes."""
    wrong = [
        f"{part}.{key}={getattr(side, key)!r} (only {value!r} is possible)"
        for part, side in (("vision_config", vision), ("text_config", text))
        for key, value in (("hidden_act", ACTIVATION), ("layer_norm_eps", EPSILON))
        if getattr(side, key) != value
    ]
    for key, value in (("vision_use_head", True), ("num_channels", 3)):
        if getattr(vision, key) != value:
            wrong.append(f"vision_config.{key}={getattr(vision, key)!r} (only {value!r})")
    if wrong:
        raise UserError(
            f"{name} is of a SigLIP that this project cannot be: {'; '.join(wrong)}. Take other "
            "weights, or correct the config if it is not what the weights were trained with"
        )
