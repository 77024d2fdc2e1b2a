# SPDX-License-Identifier: Apache-2.0
"""config.json of transformers' CLIPModel, and of MetaClip2Model, <-> our sizes.

MetaCLIP 2 is a CLIP with a vocabulary of its own, whose texts are read at the first token that ends
one; its published weights are CC-BY-NC 4.0, not for commercial use. Names of its tensors are those
of CLIPModel. A config leaves out what is a default of transformers, and old ones say half of it in
`text_config_dict`, so transformers' own CLIPConfig completes it; that needs no torch. Keys that
change nothing of the network at inference are let be: dropout (a network in evaluation mode has
none, and ours never has), initialisation, `projection_dim` inside the two sides (CLIPModel reads
the outer one), the token that pads.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cir_jax.convert import remote_code
from cir_jax.convert.config_values import square_side, whole_number
from cir_jax.convert.transformers_files import check_floats, completed
from cir_jax.errors import UserError
from cir_jax.towers.clip.processor_files import (
    crops_as_clip,
    processor_of,
    tokenizer_files,
    write_processor,
)
from cir_jax.towers.clip.sizes import (
    PLAIN_TEXT,
    VOCABULARY,
    ClipSize,
    ResNetSize,
    TextSize,
    TextVariant,
    VisionTransformerSize,
    check,
    name_of,
    normal_form,
)
from cir_jax.towers.clip.weight_rules import differs_from_openai

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
# An activation's name in transformers -> ours.
ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}


@dataclass(frozen=True)
class Kind:
    """A kind of model of transformers.

    Attributes:
      name: its `model_type`.
      classes: what the names of its classes begin with.
    """

    name: str
    classes: str

    @property
    def model(self) -> str:
        """Name of the class of the whole model."""
        return f"{self.classes}Model"

    def make(self, what: str) -> Any:
        """A class of its configs: "Config" or "TextConfig"."""
        import transformers  # takes seconds, and other formats do without

        return getattr(transformers, self.classes + what)


CLIP, METACLIP_2 = Kind("clip", "CLIP"), Kind("metaclip_2", "MetaClip2")


def size_of(config: dict[str, Any], where: Path, kind: Kind = CLIP) -> tuple[ClipSize, int]:
    """What a config.json says: (size in its normal form, text positions).

    Args:
      config: the JSON.
      where: file or folder it is from, for messages.
      kind: which it must be of.

    Raises:
      UserError: it is of another kind of model, or of a CLIP that our encoders cannot be; every
        key that is at fault is named with its value.
    """
    name = f"{where}: config.json"
    _check_kind(config, name, kind)
    remote_code.check(config, name, kind.model, SUMMED if kind == CLIP else None)
    full = _complete(config, name, kind)
    vision, text = full.vision_config, full.text_config
    _check_function(vision, text, name, kind)

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
    variant = PLAIN_TEXT
    if kind == METACLIP_2 and (text.vocab_size, text.eos_token_id) != (VOCABULARY, END):
        ids = number(text, "text_config", "vocab_size"), number(text, "text_config", "eos_token_id")
        variant = TextVariant(vocabulary=ids[0], end=ids[1])
    size = ClipSize(
        VisionTransformerSize(image=image, patch=patch, **transformer(vision, "vision_config")),
        TextSize(**transformer(text, "text_config")),
        whole_number(full.projection_dim, "projection_dim", name),
        ACTIVATIONS[vision.hidden_act],
        text_variant=variant,
    )
    check(size, name)
    return normal_form(size), number(text, "text_config", "max_position_embeddings")


def kind_of(config: dict[str, Any]) -> Kind | None:
    """Which of the two kinds a config.json is of; None if neither."""
    kinds = {kind.name: kind for kind in (CLIP, METACLIP_2)}
    named = config.get("model_type")
    return kinds.get(named) if isinstance(named, str) else None


def config_of(size: ClipSize, context: int, kind: Kind = CLIP) -> dict[str, Any]:
    """config.json of a model of this size, as transformers writes it.

    Args:
      size: of a ViT.
      context: text positions.
      kind: which it is to be.

    Raises:
      UserError: a ResNet, or another part that transformers' class does not have.
    """
    vision = size.vision
    if isinstance(vision, ResNetSize):
        raise UserError(
            "transformers has no CLIP with a ResNet, so it cannot be exported as huggingface; the "
            "formats that can hold one are: openai, clip4cir, spn, open_clip"
        )
    own = TextVariant(vocabulary=size.text_variant.vocabulary, end=size.text_variant.end)
    if differs_from_openai(size) and (kind == CLIP or differs_from_openai(_with(size, own))):
        other = "metaclip2" if not differs_from_openai(_with(size, own)) else "open_clip"
        raise UserError(
            f"transformers' {kind.model} is another network than {name_of(size)}; use --format "
            f"{other} or safetensors"
        )
    config = kind.make("Config")(
        text_config=_text(size, context),
        vision_config={
            "image_size": vision.image,
            "patch_size": vision.patch,
            **_transformer(vision, size),
        },
        projection_dim=size.embedding,
        architectures=[kind.model],
        dtype="float32",
    )
    return config.to_diff_dict()


def text_config_of(size: ClipSize, context: int, kind: Kind = CLIP) -> dict[str, Any]:
    """config.json of the text side of a model of this size, with its projection."""
    name = f"{kind.classes}TextModelWithProjection"
    config = kind.make("TextConfig")(**_text(size, context), architectures=[name], dtype="float32")
    return config.to_diff_dict()


def _with(size: ClipSize, taken: TextVariant) -> ClipSize:
    """`size` without what a variant of its text side says, if that is all there is to it."""
    return replace(size, text_variant=PLAIN_TEXT) if size.text_variant == taken else size


def _text(size: ClipSize, context: int) -> dict[str, Any]:
    return {
        "max_position_embeddings": context,
        "vocab_size": size.text_variant.vocabulary,
        "bos_token_id": 0 if size.text_variant.end else START,
        "eos_token_id": size.text_variant.end or END,
        **_transformer(size.text, size),
    }


def _transformer(part: VisionTransformerSize | TextSize, size: ClipSize) -> dict[str, Any]:
    return {
        "hidden_size": part.width,
        "intermediate_size": part.mlp or 4 * part.width,
        "num_hidden_layers": part.layers,
        "num_attention_heads": part.heads,
        "hidden_act": {ours: theirs for theirs, ours in ACTIVATIONS.items()}[size.activation],
        "layer_norm_eps": EPSILON,
        "projection_dim": size.embedding,
    }


def _check_kind(config: dict[str, Any], name: str, kind: Kind) -> None:
    named = config.get("model_type")
    if named != kind.name:
        raise UserError(
            f"{name} is of a model of the kind {named!r}, not {kind.name!r}; the whole of a CLIP "
            f"is needed, image and text, as transformers' {kind.model} saves it"
        )
    built = config.get("architectures")
    if built and kind.model not in built:
        raise UserError(
            f"{name} has architectures={built!r}; load the model with transformers' {kind.model}, "
            "save it from there, and give that folder"
        )
    check_floats(config, name)


def _complete(config: dict[str, Any], name: str, kind: Kind) -> Any:
    """The config of its class, with every default of transformers."""
    full = completed(config, name, kind.make("Config").from_dict)
    for part in ("text", "vision"):
        wanted = f"{kind.name}_{part}_model"
        said = (config.get(f"{part}_config") or {}).get("model_type", wanted)
        if said != wanted:
            raise UserError(
                f"{name} has {part}_config.model_type={said!r}, not {wanted!r}: an encoder of "
                "another kind, which this project does not have"
            )
    return full


def _check_function(vision: Any, text: Any, name: str, kind: Kind) -> None:
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
    if kind == METACLIP_2:
        end = text.eos_token_id
        need(type(end) is int, "text_config.eos_token_id", end, "texts are read at one id")
    else:
        need(
            text.vocab_size == VOCABULARY, "text_config.vocab_size", text.vocab_size,
            f"CLIP's {VOCABULARY}: a CLIPModel of another tokenizer is not known here",
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
