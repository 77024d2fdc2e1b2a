# SPDX-License-Identifier: Apache-2.0
"""Weights of a SigLIP or a SigLIP 2, for every model that stands on two towers."""

from pathlib import Path
from typing import Any

from cir_jax.convert import inputs, sources
from cir_jax.convert.containers import safe_tensors
from cir_jax.convert.containers.tensors import Tensor
from cir_jax.convert.layout import Found, Layout, Written
from cir_jax.convert.sources import Source
from cir_jax.convert.tables import expand, tensors_of
from cir_jax.data.pixels import Normalisation
from cir_jax.errors import UserError
from cir_jax.files import whole
from cir_jax.models.clip_sum.folders import INDEX_TEXT, check_alone, write_json
from cir_jax.towers import encoders
from cir_jax.towers.siglip import encoder, huggingface, sizes, weight_rules
from cir_jax.weight_rules import Rule

NAME = "siglip"


def find(source: Source) -> Found | None:
    """A folder of transformers' SiglipModel, with its tokenizer and image processor."""
    group = next((g for g, tensors in source.groups.items() if weight_rules.MARK in tensors), None)
    if group is None:
        return None
    if "config.json" not in source.configs:
        raise UserError(
            f"{source.place} has the names of transformers' SiglipModel but no config.json was "
            "given, which says its heads, and no tokenizer; give the folder that has all, not the "
            "file alone"
        )
    size = huggingface.size_of(source.configs["config.json"], source.folder)
    said = huggingface.processor_of(source.folder, size)
    config = {"tower": sizes.name_of(size), "context": 0}

    def agrees(key: str, value: Any) -> bool:
        if key == "context":
            return (value or size.text.context) == size.text.context
        encoders.find(value)  # says what exists, where there is no tower of that name
        return encoder.owns(value) and sizes.normal_form(sizes.find(value)) == size

    return Found(group, config, agrees=agrees, data=said.data, inputs=said.model)


def rules(config: Any) -> list[Rule]:
    """The rules in transformers' names.

    Raises:
      UserError: the towers are another family's.
    """
    _size(config)
    return weight_rules.huggingface()


def index(source: Source) -> tuple[Source, list[Rule]] | None:
    """The text tower of the index tree that an export of stage two left beside the model."""
    folder = source.folder / INDEX_TEXT
    if not source.place.is_dir() or not folder.is_dir():
        return None
    return sources.open_source(folder), weight_rules.huggingface_text()


def write(place: Path, tensors: dict[str, Tensor], written: Written) -> list[Path]:
    """A folder that `SiglipModel.from_pretrained` loads, with the text tower of the index apart."""
    size, config = _size(written.config), written.config
    another = any(path.startswith("text/") for path in written.differ)
    check_alone(place, ("model.safetensors", *([INDEX_TEXT] if another else [])))
    with whole(place / "model.safetensors") as file:
        safe_tensors.write(file, tensors, {"format": "pt"})
    write_json(place / "config.json", huggingface.config_of(size))
    pixels = Normalisation(
        tuple(config.get(inputs.MEAN, ())) or encoder.PIXELS.mean,
        tuple(config.get(inputs.DEVIATION, ())) or encoder.PIXELS.deviation,
    )
    filter_of = config.get(inputs.INTERPOLATION, "")
    filter_of = filter_of or encoder.RESIZES[size.generation].interpolation
    place_of = config.get(inputs.TOKENIZER, "")
    huggingface.write_files(place, size, place_of, pixels, filter_of, written.files)
    if another:
        folder = place / INDEX_TEXT
        text = {path: x for path, x in written.index.items() if path.startswith("text/")}
        table = expand(weight_rules.huggingface_text(), text)
        with whole(folder / "model.safetensors") as file:
            safe_tensors.write(file, tensors_of(table, text, written.dtypes), {"format": "pt"})
        write_json(folder / "config.json", huggingface.text_config_of(size))
    return sorted(p for p in place.rglob("*") if p.is_file())


def _size(config: Any) -> sizes.SiglipSize:
    if not encoder.owns(config.tower):
        raise UserError(
            f"model.tower={config.tower} is no SigLIP, so it cannot be written as {NAME}; the "
            "formats of its own family are huggingface, open_clip, openai"
        )
    return sizes.find(config.tower)


def files(source: Source, config: Any) -> list[Path]:
    """Tokenizer and image processor beside the weights."""
    return huggingface.files(source.place) if source.place.is_dir() else []


LAYOUTS = (
    Layout(
        NAME,
        "a folder of transformers' SiglipModel (SigLIP, SigLIP 2 of a fixed resolution)",
        find,
        rules,
        ignored=(weight_rules.POSITIONS,),
        write=write,
        index=index,
        files=files,
    ),
)
