# SPDX-License-Identifier: Apache-2.0
"""Weights of `clip_sum`: every CLIP that is published, and the released runs of CLIP4CIR.

The released runs keep the state dict of OpenAI's CLIP: after stage one as {"epoch", "CLIP"}, in
`best.pt` as {"epoch", "state_dict"} with `clip.` before every name. They load without being strict:
a missing tensor passes there in silence. Here nothing may be missing and nothing left over.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cir_jax.convert import inputs, sources
from cir_jax.convert.containers import safe_tensors, torch_writer
from cir_jax.convert.containers.tensors import Tensor, of
from cir_jax.convert.layout import Found, Layout, Written
from cir_jax.convert.sources import Source
from cir_jax.convert.tables import expand, tensors_of
from cir_jax.data import tokenizer_files, tokens
from cir_jax.errors import UserError
from cir_jax.files import whole
from cir_jax.models.clip_sum import sentence_transformers
from cir_jax.models.clip_sum.folders import (
    INDEX_TEXT,
    check_alone,
    own_tokenizer,
    pixels_of,
    write_json,
)
from cir_jax.towers import encoders
from cir_jax.towers.clip import huggingface, open_clip, sizes
from cir_jax.towers.clip import weight_rules as clip
from cir_jax.towers.clip.encoder import owns
from cir_jax.towers.clip.sizes import ClipSize
from cir_jax.towers.siglip import weight_rules as siglip
from cir_jax.weight_rules import Rule

MARK = "visual.conv1.weight"  # the first tensor of every CLIP in OpenAI's names
EVA_MARK = "visual.trunk.patch_embed.proj.weight"  # of open_clip's models with an encoder of timm
OPEN_CLIP = "open_clip_config.json"
HUGGINGFACE_MARK = "vision_model.embeddings.patch_embedding.weight"
# transformers' BLIP and BLIP-2 have that too; CLIP has no such attention.
OTHER_MARK = "vision_model.encoder.layers.0.self_attn.qkv.weight"
TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
# How images become squares, see `Found.data`: as the published runs of CLIP4CIR and SPN were
# trained, and as CLIP's own preprocessing does.
PADDED = {"pad": "target", "target_ratio": 1.25, "loading": "released"}
CROPPED = {"pad": "none"}
LOGIT_BIAS = clip.LOGIT_BIAS.regex
DOUBT = (
    "its tensors do not say whether the activation is OpenAI's QuickGELU or the GELU of most "
    "models of open_clip, nor how many heads there are"
)


def _agrees(size: ClipSize, context: int, sure: bool) -> Callable[[str, Any], bool]:
    def agrees(key: str, value: Any) -> bool:
        if key == "context":
            return (value or size.context) == context
        if not owns(value):
            encoders.find(value)  # says what exists, where there is no tower of that name
            return False
        given = sizes.find(value)
        return (given if sure else _bare(given)) == (size if sure else _bare(size))

    return agrees


def _bare(size: ClipSize) -> ClipSize:
    """What shapes say of a size."""
    return dataclasses.replace(
        size,
        vision=dataclasses.replace(size.vision, heads=1),
        text=dataclasses.replace(size.text, heads=1),
        activation="",
    )


def _found(
    group: str,
    size: ClipSize,
    context: int,
    data: Mapping[str, Any],
    doubt: str = "",
    came: Mapping[str, Any] | None = None,
    folder: Path | None = None,
) -> Found:
    """`came` and `folder`: what came with the weights, and where files beside them lie."""
    config = {"tower": sizes.name_of(size), "context": clip.context_key(context)}
    came = dict(came or {})
    if size.tokenizer == tokens.FILE and folder and tokenizer_files.vocabularies(folder):
        came |= inputs.tokenizer(folder)
    agrees = _agrees(size, context, sure=not doubt)
    return Found(group, config, doubt, agrees, data=data, inputs=came)


def _in_openai_names(
    source: Source, group: str, data: Mapping[str, Any], prefix: str = "", doubt: str = ""
) -> Found:
    size, context = clip.openai_size(
        source.groups[group], prefix, "quick_gelu", f"{source.place}{group and f' ({group})'}"
    )
    return _found(group, size, context, {} if doubt else data, doubt)


def _group(source: Source, name: str, groups: tuple[str, ...] = ()) -> str | None:
    """Key of the first state dict that has a tensor called `name`."""
    chosen = (g for g in source.groups if not groups or g in groups)
    return next((g for g in chosen if name in source.groups[g]), None)


def find_huggingface(source: Source, kind: huggingface.Kind = huggingface.CLIP) -> Found | None:
    """A folder of transformers' CLIPModel, or of another kind."""
    group = _group(source, HUGGINGFACE_MARK)
    if group is None or {OTHER_MARK, siglip.MARK} & source.groups[group].keys():
        return None
    if "config.json" not in source.configs:
        raise UserError(
            f"{source.place} has the names of transformers' CLIPModel but no config.json was "
            "given, which says its heads and its activation; give the folder that has both, not "
            "the file alone"
        )
    config = source.configs["config.json"]
    if huggingface.kind_of(config) not in (kind, None):
        return None
    size, context = huggingface.size_of(config, source.folder, kind)
    crops = huggingface.crops_as_clip(source.folder)
    said = huggingface.processor_of(source.folder).model
    data = CROPPED if crops else {}
    return _found(group, size, context, data, came=said, folder=source.folder)


def find_open_clip(source: Source, custom: bool = False) -> Found | None:
    """A state dict of open_clip, with its config beside it or with a doubt.

    Args:
      source: any.
      custom: of a model whose text side has names of its own although open_clip has it without.
    """
    groups = (_group(source, mark, ("", "state_dict")) for mark in (MARK, EVA_MARK))
    group = next((one for one in groups if one is not None), None)
    if group is None or source.container == "torchscript":  # OpenAI's, whatever lies beside it
        return None
    tensors = source.groups[group]
    apart = f"{clip.CUSTOM}token_embedding.weight" in tensors
    if OPEN_CLIP not in source.configs:
        if apart or EVA_MARK in tensors:
            raise UserError(
                f"{source.place} has names of an open_clip model whose network they do not tell; "
                f"put its {OPEN_CLIP} beside it"
            )
        doubtful = group != "" and not custom
        return _in_openai_names(source, group, {}, doubt=DOUBT) if doubtful else None
    config = source.configs[OPEN_CLIP]
    size, context = open_clip.size_of(config, source.folder)
    if custom != (apart and not open_clip.needs_custom_text(size)):
        return None
    said = open_clip.processor_of(config, source.folder).model
    data = CROPPED if open_clip.crops_as_clip(config) else {}
    return _found(group, size, context, data, came=said, folder=source.folder)


def find_openai(source: Source) -> Found | None:
    """OpenAI's archive, or the state dict of it."""
    if _group(source, MARK, ("",)) is None:
        return None
    doubt = "" if source.container == "torchscript" else DOUBT
    return _in_openai_names(source, "", CROPPED, doubt=doubt)


def find_clip4cir(source: Source) -> Found | None:
    """Stage one of CLIP4CIR."""
    return _in_openai_names(source, "CLIP", PADDED) if _group(source, MARK, ("CLIP",)) else None


def find_spn(source: Source) -> Found | None:
    """`best.pt` of the released stage two, and of its zero-shot runs."""
    group = _group(source, f"clip.{MARK}")
    return None if group is None else _in_openai_names(source, group, PADDED, "clip.")


def openai_rules(config: Any, prefix: str = "") -> list[Rule]:
    """The rules in OpenAI's names.

    Raises:
      UserError: the towers are another family's.
    """
    return clip.openai(clip_size(config), prefix)


def clip_size(config: Any) -> ClipSize:
    """The size that a `model` section names.

    Raises:
      UserError: the towers are another family's.
    """
    if not owns(config.tower):
        raise UserError(
            f"model.tower={config.tower} is no CLIP, so it cannot be written as one; use --format "
            f"{encoders.find(config.tower).family} or safetensors"
        )
    return sizes.find(config.tower)


def open_clip_rules(config: Any, custom: bool = False) -> list[Rule]:
    """The rules in the names of open_clip, `custom` as for `find_open_clip`."""
    size = clip_size(config)
    apart = custom or open_clip.needs_custom_text(size)
    return clip.openai(size, text=clip.CUSTOM if apart else "")


def huggingface_rules(config: Any, kind: huggingface.Kind = huggingface.CLIP) -> list[Rule]:
    """The rules in transformers' names.

    Raises:
      UserError: a ResNet, or another network that transformers' class is not.
    """
    size = clip_size(config)
    huggingface.config_of(size, config.context or size.context, kind)
    return clip.huggingface()


def processor_files(source: Source, config: Any) -> list[Path]:
    """Tokenizer and image processor beside the weights; the tokenizer, if it is not the weights'
    own, must be CLIP's."""
    if not source.place.is_dir():
        return []
    size = sizes.find(config.tower)
    own = size.tokenizer == tokens.FILE
    return huggingface.tokenizer_files(source.place, size.vision.image, own)


def huggingface_index(source: Source) -> tuple[Source, list[Rule]] | None:
    """The text tower of the index tree that an export of stage two left beside the model."""
    folder = source.folder / INDEX_TEXT
    if not source.place.is_dir() or not folder.is_dir():
        return None
    return sources.open_source(folder), clip.huggingface_text()


def write_state_dict(
    key: str, place: Path, tensors: dict[str, Tensor], written: Written
) -> list[Path]:
    """{"epoch", key: tensors} as .pt, or without a key the tensors alone, also as .safetensors."""
    if other := clip.as_openai_computes(_size(written)[0]):
        raise UserError(
            f"{place}: OpenAI's code would compute something else with these weights: {other}. "
            "Use --format huggingface, open_clip or safetensors, which say it"
        )
    check_name(place, key)
    with whole(place) as file:
        if place.suffix == ".safetensors":
            safe_tensors.write(file, tensors, {"format": "pt"})
        else:
            tree = {"epoch": written.epoch, key: tensors} if key else tensors
            torch_writer.write(file, tree)
    return [place]


def check_name(place: Path, key: str) -> None:
    """Raises UserError unless the name of a file says what will be in it."""
    if place.suffix == ".safetensors" and key:
        raise UserError(
            f"{place}: safetensors hold tensors only, no {key!r}; name it .pt, or use "
            "--format openai or safetensors"
        )
    if place.suffix not in (".safetensors", *TORCH_SUFFIXES):
        also = "" if key else ", or .safetensors"
        raise UserError(f"{place}: name the file {place.stem}.pt{also}, as what it will be")


def write_open_clip(place: Path, tensors: dict[str, Tensor], written: Written) -> list[Path]:
    """A folder that open_clip loads as `local-dir:FOLDER`."""
    check_alone(place, ("open_clip_model.safetensors",))
    size, context = _size(written)
    own = own_tokenizer(written)
    config = place / OPEN_CLIP
    custom = any(name.startswith(clip.CUSTOM) for name in tensors)
    weights = place / "open_clip_model.safetensors"
    with whole(weights) as file:
        safe_tensors.write(file, tensors, {"format": "pt"})
    pixels, bias = pixels_of(written), LOGIT_BIAS in tensors
    write_json(config, open_clip.config_of(size, context, *pixels, custom=custom, bias=bias))
    for name, content in own.items():
        with whole(place / name) as file:
            file.write(content)
    return [weights, config, *(place / name for name in own)]


def scalar_logit_scale(
    tensors: Mapping[str, Tensor], config: Any, where: str
) -> Mapping[str, Tensor]:
    """The same tensors; a logit scale that open_clip keeps as a list of one as the number."""
    scale = tensors.get("logit_scale")
    if scale is None or scale.shape != (1,):
        return tensors
    return {**tensors, "logit_scale": Tensor((), scale.dtype, lambda: scale.read().reshape(()))}


def open_clip_extra(tensors: Mapping[str, Any], kept: Mapping[str, Any]) -> dict[str, Tensor]:
    """Counters, and the bias of a sigmoid loss if the weights came with one."""
    bias = {LOGIT_BIAS: of(np.asarray(kept[LOGIT_BIAS], np.float32))} if LOGIT_BIAS in kept else {}
    return clip.counters(tensors, kept) | bias


def write_huggingface(
    place: Path,
    tensors: dict[str, Tensor],
    written: Written,
    kind: huggingface.Kind = huggingface.CLIP,
) -> list[Path]:
    """A folder that transformers' `from_pretrained` loads, and the index's text tower if it
    differs."""
    size, context = _size(written)
    config, own = huggingface.config_of(size, context, kind), own_tokenizer(written)
    another = any(path.startswith("text/") for path in written.differ)
    check_alone(place, ("model.safetensors", *([INDEX_TEXT] if another else [])))
    with whole(place / "model.safetensors") as file:
        safe_tensors.write(file, tensors, {"format": "pt"})
    write_json(place / "config.json", config)
    files = list(written.files)
    huggingface.write_processor(place, size, context, files, *pixels_of(written), own)
    # Whose query is the sum of what the folder gives; a CLIP module of theirs is a CLIPModel.
    if written.config.name == "clip_sum" and kind == huggingface.CLIP:
        sentence_transformers.write(place, dict(written.data))
    if another:
        folder = place / INDEX_TEXT
        text = {path: x for path, x in written.index.items() if path.startswith("text/")}
        table = expand(clip.huggingface_text(), text)
        with whole(folder / "model.safetensors") as file:
            safe_tensors.write(file, tensors_of(table, text, written.dtypes), {"format": "pt"})
        write_json(folder / "config.json", huggingface.text_config_of(size, context, kind))
    return sorted(p for p in place.rglob("*") if p.is_file())


def _size(written: Written) -> tuple[ClipSize, int]:
    size = sizes.find(written.config.tower)
    return size, written.config.context or size.context


_OPENAI: dict[str, Any] = {
    "ignored": (clip.COUNTERS, clip.ABOUT, clip.MASK),
    "extra": clip.counters,
}
_OPEN_CLIP: dict[str, Any] = {
    "write": write_open_clip,
    "files": processor_files,
    "fitted": scalar_logit_scale,
    "ignored": (*_OPENAI["ignored"], clip.DECODER, clip.LOGIT_BIAS),
    "extra": open_clip_extra,
}
_HUGGINGFACE: dict[str, Any] = {
    "ignored": (clip.POSITIONS,), "index": huggingface_index, "files": processor_files,
}  # fmt: skip
LAYOUTS = (
    Layout(
        "huggingface",
        "a folder of transformers' CLIPModel",
        find_huggingface,
        huggingface_rules,
        write=write_huggingface,
        **_HUGGINGFACE,
    ),
    Layout(
        "metaclip2",
        "a folder of transformers' MetaClip2Model (MetaCLIP 2; published weights are CC-BY-NC 4.0, "
        "not for commercial use)",
        functools.partial(find_huggingface, kind=huggingface.METACLIP_2),
        functools.partial(huggingface_rules, kind=huggingface.METACLIP_2),
        write=functools.partial(write_huggingface, kind=huggingface.METACLIP_2),
        **_HUGGINGFACE,
    ),
    Layout(
        "open_clip",
        "a folder of open_clip",
        find_open_clip,
        open_clip_rules,
        **_OPEN_CLIP,
    ),
    Layout(
        "open_clip_custom_text",
        "a folder of open_clip with custom_text, whose text side has names of its own",
        functools.partial(find_open_clip, custom=True),
        functools.partial(open_clip_rules, custom=True),
        **_OPEN_CLIP,
    ),
    Layout(
        "clip4cir",
        "stage one of CLIP4CIR, {epoch, CLIP}",
        find_clip4cir,
        openai_rules,
        write=functools.partial(write_state_dict, "CLIP"),
        **_OPENAI,
    ),
    Layout(
        "spn",
        "best.pt of the released runs, {epoch, state_dict}",
        find_spn,
        functools.partial(openai_rules, prefix="clip."),
        write=functools.partial(write_state_dict, "state_dict"),
        **_OPENAI,
    ),
    Layout(
        "openai",
        "OpenAI's CLIP, archive or state dict",
        find_openai,
        openai_rules,
        write=functools.partial(write_state_dict, ""),
        **_OPENAI,
    ),
)
