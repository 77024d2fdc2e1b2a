# SPDX-License-Identifier: Apache-2.0
"""Weights of `clip_sum` with the encoders of TIPSv2: a folder of transformers' Tipsv2Model.

Its temperature may be missing from a file, and is that of the config then. It is the inverse of our
`exp(logit_scale)`, and written with the very bits that it came with where training did not move it.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cir_jax.convert import inputs, sources
from cir_jax.convert.containers import safe_tensors
from cir_jax.convert.containers.tensors import Tensor
from cir_jax.convert.layout import Found, Layout, Written
from cir_jax.convert.sources import Source, read_json
from cir_jax.convert.tables import expand, tensors_of
from cir_jax.data import tokenizer_files
from cir_jax.errors import UserError
from cir_jax.files import whole
from cir_jax.models.clip_sum.folders import (
    INDEX_TEXT,
    check_alone,
    own_tokenizer,
    pixels_of,
    write_json,
)
from cir_jax.towers import encoders
from cir_jax.towers.tips import encoder, huggingface, sizes, weight_rules
from cir_jax.weight_rules import Ignored, Rule

TEMPERATURE, SCALE = "temperature", "logit_scale"
UNREAD = Ignored(TEMPERATURE, "the inverse of our exp(logit_scale)")
PROCESSORS = ("preprocessor_config.json", "processor_config.json")


def find(source: Source) -> Found | None:
    """A folder of transformers' Tipsv2Model."""
    group = next((g for g, held in source.groups.items() if weight_rules.MARK in held), None)
    if group is None:
        return None
    if "config.json" not in source.configs:
        raise UserError(
            f"{source.place} has the names of transformers' Tipsv2Model but no config.json was "
            "given, which says its heads; give the folder that has both, not the file alone"
        )
    size, context = huggingface.size_of(source.configs["config.json"], source.folder)
    said = _processor(source.folder)
    came = dict(said.model)
    if tokenizer_files.vocabularies(source.folder):
        came |= inputs.tokenizer(source.folder)
    keys = {"tower": sizes.name_of(size), "context": 0 if context == sizes.CONTEXT else context}

    def agrees(key: str, value: Any) -> bool:
        if key == "context":
            return (value or sizes.CONTEXT) == context
        encoders.find(value)  # says what exists, where there is no tower of that name
        return sizes.owns(value) and sizes.find(value) == size

    data = {"pad": "squash", **said.data}
    tensors = with_scale(source.groups[group], source.configs["config.json"])
    return Found(group, keys, agrees=agrees, tensors=tensors, data=data, inputs=came)


def with_scale(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a file, and the logit scale that their temperature is."""

    def read() -> np.ndarray:
        said = tensors.get(TEMPERATURE)
        default = config.get("temperature_init_value", encoder.TEMPERATURE)
        value = float(default if said is None else said.read())
        return np.asarray(-math.log(value), np.float32)

    return {**tensors, SCALE: Tensor((), "float32", read)}


def rules(config: Any) -> list[Rule]:
    """The rules in transformers' names.

    Raises:
      UserError: towers of another family.
    """
    if not sizes.owns(config.tower):
        raise UserError(
            f"transformers' Tipsv2Model has no towers called {config.tower}; use --format "
            "huggingface, open_clip or safetensors"
        )
    return weight_rules.rules(sizes.find(config.tower))


def write(place: Path, tensors: dict[str, Tensor], written: Written) -> list[Path]:
    """A folder that `Tipsv2Model.from_pretrained` loads, with the text tower of the index apart."""
    another = any(path.startswith("text/") for path in written.differ)
    check_alone(place, ("model.safetensors", *([INDEX_TEXT] if another else [])))
    size, context = sizes.find(written.config.tower), written.config.context or sizes.CONTEXT
    own = own_tokenizer(written)
    held = {name: tensor for name, tensor in tensors.items() if name != SCALE}
    temperature = float(held[TEMPERATURE].read())
    with whole(place / "model.safetensors") as file:
        safe_tensors.write(file, held, {"format": "pt"})
    pixels, interpolation = pixels_of(written)
    image = huggingface.image_processor(size.vision.image, pixels, interpolation)
    write_json(place / "config.json", huggingface.config_of(size, context, temperature))
    write_json(place / PROCESSORS[0], image)
    for name, content in own.items():
        with whole(place / name) as file:
            file.write(content)
    if another:
        folder = place / INDEX_TEXT
        text = {path: x for path, x in written.index.items() if path.startswith("text/")}
        table = expand(weight_rules.text_rules(), text)
        with whole(folder / "model.safetensors") as file:
            safe_tensors.write(file, tensors_of(table, text, written.dtypes), {"format": "pt"})
        write_json(folder / "config.json", huggingface.text_config_of(size, context))
    return sorted(p for p in place.rglob("*") if p.is_file())


def index(source: Source) -> tuple[Source, list[Rule]] | None:
    """The text tower of the index tree that an export of stage two left beside the model."""
    folder = source.folder / INDEX_TEXT
    if not source.place.is_dir() or not folder.is_dir():
        return None
    return sources.open_source(folder), weight_rules.text_rules()


def extra(tensors: Mapping[str, Any], kept: Mapping[str, Any]) -> dict[str, Tensor]:
    """The temperature of the logit scale that is written."""

    def read() -> np.ndarray:
        scale = float(tensors[SCALE].read())
        came = kept.get(TEMPERATURE)
        same = came is not None and np.float32(-math.log(came)) == np.float32(scale)
        return np.asarray(came if same else math.exp(-scale), np.float32)

    return {TEMPERATURE: Tensor((), "float32", read)}


def _processor(folder: Path) -> inputs.Processor:
    for path in (folder / name for name in PROCESSORS):
        if not path.is_file():
            continue
        held = read_json(path)
        said = held if path.name == PROCESSORS[0] else held.get("image_processor")
        if isinstance(said, dict):
            return huggingface.processor_of(said, str(path))
    return inputs.Processor()


LAYOUTS = (
    Layout(
        "tipsv2",
        "a folder of transformers' Tipsv2Model (TIPSv2; published weights are Apache-2.0)",
        find,
        rules,
        ignored=(UNREAD,),
        write=write,
        extra=extra,
        index=index,
    ),
)
