# SPDX-License-Identifier: Apache-2.0
"""Weights of `clip_sum` with the encoders of TIPSv2: a folder of transformers' Tipsv2Model.

Its temperature may be missing from a file, and is that of the config then. It is the inverse of our
`exp(logit_scale)`, and written with the very bits that it came with where training did not move it.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cir_jax.convert import inputs
from cir_jax.convert.containers import safe_tensors
from cir_jax.convert.containers.tensors import Tensor
from cir_jax.convert.layout import Found, Layout, Written
from cir_jax.convert.sources import Source, read_json
from cir_jax.data import tokenizer_files
from cir_jax.errors import UserError
from cir_jax.files import whole
from cir_jax.models.clip_sum import folders
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
    """A folder that `Tipsv2Model.from_pretrained` loads."""
    folders.check_alone(place, ("model.safetensors",))
    size, context = sizes.find(written.config.tower), written.config.context or sizes.CONTEXT
    own = folders.own_tokenizer(written)
    held = {name: tensor for name, tensor in tensors.items() if name != SCALE}
    temperature = float(held[TEMPERATURE].read())
    with whole(place / "model.safetensors") as file:
        safe_tensors.write(file, held, {"format": "pt"})
    pixels, interpolation = folders.pixels_of(written)
    image = huggingface.image_processor(size.vision.image, pixels, interpolation)
    content = {
        "config.json": _bytes(huggingface.config_of(size, context, temperature)),
        PROCESSORS[0]: _bytes(image),
        **own,
    }
    for name, what in content.items():
        with whole(place / name) as file:
            file.write(what)
    return [place / "model.safetensors", *(place / name for name in content)]


def extra(tensors: Mapping[str, Any], kept: Mapping[str, Any]) -> dict[str, Tensor]:
    """The temperature of the logit scale that is written."""

    def read() -> np.ndarray:
        scale = float(tensors[SCALE].read())
        came = kept.get(TEMPERATURE)
        same = came is not None and np.float32(-math.log(came)) == np.float32(scale)
        return np.asarray(came if same else math.exp(-scale), np.float32)

    return {TEMPERATURE: Tensor((), "float32", read)}


def _processor(folder: Path) -> inputs.Processor:
    for name in PROCESSORS:
        if (folder / name).is_file():
            said = read_json(folder / name)
            said = said if name == PROCESSORS[0] else said.get("image_processor")
            if isinstance(said, dict):
                return huggingface.processor_of(said, str(folder / name))
    return inputs.Processor()


def _bytes(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


LAYOUT = Layout(
    "tipsv2",
    "a folder of transformers' Tipsv2Model (TIPSv2; published weights are Apache-2.0)",
    find,
    rules,
    ignored=(UNREAD,),
    write=write,
    extra=extra,
)
