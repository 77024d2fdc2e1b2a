# SPDX-License-Identifier: Apache-2.0
"""Weights of `blip`: Salesforce's BLIP, transformers' copy of it, and the released runs.

Stage one leaves {"BLIP_Retrieval": state dict}; `best.pt` of stage two is {"epoch", "state_dict"}
with `blip.` before every name and the learned temperature `tau` beside. They load without being
strict there: a missing tensor passes in silence. Here nothing may be missing, and what a file holds
beyond the model is named with its reason. Weights of images of another size are read too; their
positions are interpolated, as the released code does with pretrained weights.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cir_jax.convert.containers import safe_tensors, tensors, torch_writer
from cir_jax.convert.containers.tensors import Tensor
from cir_jax.convert.layout import Found, Layout, Written
from cir_jax.convert.sources import WEIGHTS, Source
from cir_jax.convert.transformers_files import json_bytes
from cir_jax.errors import UserError
from cir_jax.files import whole
from cir_jax.models.blip.model import size_of
from cir_jax.models.clip_sum import layouts as clip_sum
from cir_jax.towers import image_transformer
from cir_jax.towers.blip import huggingface, pos_embed, sizes, weight_rules
from cir_jax.towers.blip.sizes import BlipSize

MARK = "text_encoder.encoder.layer.0.crossattention.self.query.weight"
IMAGE_MARK = f"{weight_rules.IMAGE}.patch_embed.proj.weight"
HUGGINGFACE_MARK = "vision_model.embeddings.patch_embedding.weight"
STAGE_ONE = "BLIP_Retrieval"
STAGE_TWO = "state_dict"
PREFIX = "blip."
TEMPERATURE = 0.07  # BLIP's own at the start: for weights that say none


def _found(
    group: str, size: BlipSize, context: int, data: Mapping[str, Any] | None = None
) -> Found:
    def agrees(key: str, value: Any) -> bool:
        if key == "context":
            return (value or sizes.CONTEXT) == context
        # The side of the images is no property of the weights: positions are interpolated.
        return sizes.find(value, size.vision.image) == size

    says = 0 if context == sizes.CONTEXT else context
    config = {"tower": sizes.name_of(size), "context": says}
    return Found(group, config, agrees=agrees, data=data or {})


def _group(source: Source, groups: tuple[str, ...], marks: tuple[str, ...]) -> str | None:
    """Key of the first of these state dicts that has all the marks."""
    held = (g for g in groups if g in source.groups)
    return next((g for g in held if all(m in source.groups[g] for m in marks)), None)


def _in_salesforce_names(
    source: Source,
    groups: tuple[str, ...],
    prefix: str = "",
    data: Mapping[str, Any] | None = None,
) -> Found | None:
    group = _group(source, groups, (prefix + MARK, prefix + IMAGE_MARK))
    if group is None:
        return None
    where = f"{source.place}{group and f' ({group})'}"
    return _found(group, *weight_rules.size_of(source.groups[group], prefix, where), data)


def find_stage_one(source: Source) -> Found | None:
    """Stage one of BLIP4CIR."""
    return _in_salesforce_names(source, (STAGE_ONE,), data=clip_sum.PADDED)


def find_spn(source: Source) -> Found | None:
    """`best.pt` of the released stage two."""
    return _in_salesforce_names(source, (STAGE_TWO, ""), PREFIX, clip_sum.PADDED)


def find_salesforce(source: Source) -> Found | None:
    """Salesforce's weights, pretrained or of its own retrieval, or a bare state dict."""
    return _in_salesforce_names(source, ("model", ""))


def find_huggingface(source: Source) -> Found | None:
    """A folder of transformers' BlipForImageTextRetrieval."""
    group = _group(source, ("",), (MARK, HUGGINGFACE_MARK))
    if group is None:
        return None
    if "config.json" not in source.configs:
        raise UserError(
            f"{source.place} has the names of transformers' BLIP but no config.json was given, "
            "which says its heads; give the folder that has both, not the file alone"
        )
    size, context = huggingface.size_of(source.configs["config.json"], source.folder)
    return _found(group, size, context)


def check_processor(source: Source, config: Any) -> list[Path]:
    """Compares the tokenizer files beside the weights with ours; none is taken over."""
    if source.place.is_dir():
        huggingface.check_files(source.place)
    return []


def fitted(name: str, held: Mapping[str, Tensor], config: Any, where: str) -> Mapping[str, Tensor]:
    """The tensors, with the positions called `name` for images of the model's size."""
    if name not in held:
        return held
    rows = image_transformer.positions(size_of(config).vision)
    return {**held, name: pos_embed.fitted(held[name], rows, where)}


def extra(prefix: str, held: Mapping[str, Tensor], kept: Mapping[str, Any]) -> dict[str, Tensor]:
    """The numbering of positions, and the temperature of training that the file came with."""
    root = f"{prefix}text_encoder.embeddings"
    count = held[f"{root}.position_embeddings.weight"].shape[0]
    temperature = kept.get("temp", kept.get(f"{PREFIX}temp", TEMPERATURE))
    return {
        f"{root}.position_ids": tensors.of(np.arange(count)[None]),
        f"{prefix}temp": _scalar(temperature),
        **({"tau": _scalar(kept.get("tau", temperature))} if prefix else {}),
    }


def no_matching(held: Mapping[str, Tensor], kept: Mapping[str, Any]) -> dict[str, Tensor]:
    """A head of image-text matching that says nothing: transformers' class has one."""
    width = held["text_proj.weight"].shape[1]
    return {
        "itm_head.weight": tensors.of(np.zeros((2, width), np.float32)),
        "itm_head.bias": tensors.of(np.zeros(2, np.float32)),
    }


def write_state_dict(
    key: str, place: Path, held: dict[str, Tensor], written: Written
) -> list[Path]:
    """{"epoch", key: tensors} as .pt; a temperature that the run ended with is put in."""
    size = size_of(written.config)
    if other := weight_rules.as_salesforce_computes(size):
        raise UserError(
            f"{place}: the released code would compute something else with these weights: {other}. "
            "Use --format huggingface or safetensors, which say it"
        )
    clip_sum.check_name(place, key)
    if written.temperature:
        name = "tau" if key == STAGE_TWO else "temp"
        held = held | {name: _scalar(written.temperature)}
    with whole(place) as file:
        torch_writer.write(file, {"epoch": written.epoch, key: held})
    return [place]


def write_huggingface(place: Path, held: dict[str, Tensor], written: Written) -> list[Path]:
    """A folder that `BlipForImageTextRetrieval.from_pretrained` loads."""
    there = [n for n in WEIGHTS if n != "model.safetensors" and (place / n).exists()]
    if there:
        raise UserError(
            f"{place} holds {', '.join(there)} of another export, and would be read as a mixture "
            "of both; give another folder, or delete that"
        )
    size, context = size_of(written.config), written.config.context or sizes.CONTEXT
    content = huggingface.processor_files(size, context)
    config = huggingface.config_of(size, context)
    content["config.json"] = json_bytes(config)
    with whole(place / "model.safetensors") as file:
        safe_tensors.write(file, held, {"format": "pt"})
    for name, what in content.items():
        with whole(place / name) as file:
            file.write(what)
    return sorted(place / name for name in (*content, "model.safetensors"))


def _scalar(value: float) -> Tensor:
    return tensors.of(np.asarray(value, np.float32))


_POSITIONS = weight_rules.POSITIONS["salesforce"]
LAYOUTS = (
    Layout(
        "huggingface",
        f"a folder of transformers' {huggingface.CLASS}",
        find_huggingface,
        lambda config: weight_rules.huggingface(),
        fitted=functools.partial(fitted, weight_rules.POSITIONS["huggingface"]),
        ignored=(weight_rules.MATCHING, weight_rules.BUFFER),
        write=write_huggingface,
        extra=no_matching,
        files=check_processor,
    ),
    Layout(
        "blip4cir",
        "stage one of BLIP4CIR, {BLIP_Retrieval}",
        find_stage_one,
        lambda config: weight_rules.salesforce(),
        fitted=functools.partial(fitted, _POSITIONS),
        ignored=(weight_rules.TEMPERATURE, weight_rules.BUFFER),
        write=functools.partial(write_state_dict, STAGE_ONE),
        extra=functools.partial(extra, ""),
    ),
    Layout(
        "spn",
        "best.pt of the released runs, {epoch, state_dict}",
        find_spn,
        lambda config: weight_rules.salesforce(PREFIX),
        fitted=functools.partial(fitted, PREFIX + _POSITIONS),
        ignored=(weight_rules.TEMPERATURE, weight_rules.BUFFER),
        write=functools.partial(write_state_dict, STAGE_TWO),
        extra=functools.partial(extra, PREFIX),
    ),
    Layout(
        "salesforce",
        "Salesforce's BLIP, {model}",
        find_salesforce,
        lambda config: weight_rules.salesforce(),
        fitted=functools.partial(fitted, _POSITIONS),
        ignored=(
            weight_rules.TEMPERATURE,
            weight_rules.BUFFER,
            weight_rules.MATCHING,
            *weight_rules.PRETRAINING,
        ),
    ),
)
