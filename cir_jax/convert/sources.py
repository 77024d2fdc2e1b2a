# SPDX-License-Identifier: Apache-2.0
"""A file or folder of weights, opened: names, shapes and configs, but no values yet.

What a file is, is told by its first bytes and by what it holds, never by its name.
"""

import dataclasses
import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cir_jax.convert.containers import safe_tensors, sharded, torch_archive
from cir_jax.convert.containers.tensors import Tensor
from cir_jax.data import json_files, text_files
from cir_jax.errors import UserError, nearest

# Weights a folder may hold, the safer format first, transformers' names before open_clip's.
WEIGHTS = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)  # fmt: skip
ADAPTER = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
CONFIGS = ("config.json", "open_clip_config.json")
PART = "::"  # between a file and the part of it that is to be read: best.pt::model_ema
_LISTED = 12  # parts that a message shows
_NESTED = 2  # keys that a state dict may lie deeper than the top of a file


@dataclass(frozen=True)
class Source:
    """What a file or folder holds.

    Attributes:
      place: the file or folder.
      container: "torchscript", "torch" or "safetensors".
      groups: key of a state dict inside the file -> tensor name -> Tensor; "" where the file itself
        is one.
      values: what else is at the top of the file: an epoch, a name.
      configs: file name -> JSON that lies beside the weights.
      metadata: of a safetensors file.
      files: the files of weights.
      beside: what lies beside the part that was asked for, in words.
    """

    place: Path
    container: str
    groups: dict[str, dict[str, Tensor]]
    values: dict[str, Any] = field(default_factory=dict)
    configs: dict[str, dict[str, Any]] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    beside: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Where files beside the weights lie."""
        return self.place if self.place.is_dir() else self.place.parent


def open_source(place: str | Path) -> Source:
    """Opens a weight file, or a folder with one.

    Args:
      place: its path; `PATH::PART` for what lies under a key of the file, or below a prefix of its
        names, e.g. "best.pt::model_ema" or "best.pt::state_dict.teacher".

    Raises:
      UserError: there is none, it is damaged, it wants to run code, or it holds no weights or no
        such part.
    """
    path, _, part = str(place).rpartition(PART)
    if path and not Path(place).exists():
        return _only(open_source(path), part)
    place = Path(place)
    if not place.exists():
        hub = ""
        if re.fullmatch(r"[\w.-]+/[\w.-]+", str(place)):
            hub = f". A model of the hub comes by `hf download {place} --local-dir FOLDER`"
        raise UserError(
            f"{place} does not exist; give a file of weights, or a folder that has one{hub}"
        )
    if place.is_dir():
        return _folder(place)
    source = _file(place, place)
    # A config that lies beside a lone file says what the file itself cannot.
    beside = place.parent / "open_clip_config.json"
    configs = {beside.name: read_json(beside)} if beside.is_file() else {}
    return dataclasses.replace(source, configs=configs)


def _only(source: Source, part: str) -> Source:
    """The source with one part of what it holds."""
    chosen: dict[str, dict[str, Tensor]] = {}
    beside = []
    for key, group in source.groups.items():
        if key == part:
            chosen[key] = group
            continue
        prefix = f"{part.removeprefix(f'{key}.' if key else '')}."
        below = part.startswith(f"{key}." if key else "")
        inside = {n: t for n, t in group.items() if below and n.startswith(prefix)}
        chosen |= {key: {n.removeprefix(prefix): t for n, t in inside.items()}} if inside else {}
        if rest := len(group) - len(inside):
            beside.append(f"{key or 'names of its own'} ({rest} tensors)")
    if chosen:
        return dataclasses.replace(source, groups=chosen, beside=tuple(beside))
    firsts = {n.partition(".")[0]: None for group in source.groups.values() for n in group}
    there = [*filter(None, source.groups), *firsts]
    more = f" and {len(there) - _LISTED} more" if len(there) > _LISTED else ""
    raise UserError(
        f"{source.place} has no part {part!r}; there are {', '.join(map(repr, there[:_LISTED]))}"
        f"{more}.{nearest(part, there)} `cir-jax inspect` lists all names"
    )


def fingerprint(source: Source) -> list[dict[str, Any]]:
    """[{"file", "bytes", "sha256"}] of the files of weights, for the record of a run."""
    return [
        {"file": str(file.absolute()), "bytes": file.stat().st_size, "sha256": _sha256(file)}
        for file in source.files
    ]


def _folder(place: Path) -> Source:
    if is_adapter(place):
        raise UserError(_adapter(place, "it has an adapter_config.json"))
    present = [name for name in WEIGHTS if (place / name).is_file()]
    if not present:
        have = ", ".join(sorted(p.name for p in place.iterdir())[:8]) or "nothing"
        raise UserError(
            f"{place} holds no weights: none of {', '.join(WEIGHTS)}, and no checkpoints/ of a "
            f"run; there is {have}. Give the file itself, or another folder"
        )
    configs = {n: read_json(place / n) for n in CONFIGS if (place / n).is_file()}
    return dataclasses.replace(_file(place / present[0], place), configs=configs)


def _file(file: Path, place: Path, adapter: bool = False) -> Source:
    source = _any(file, place)
    return source if adapter else _checked(source)


def _any(file: Path, place: Path) -> Source:
    if file.name.endswith(".index.json"):
        tensors, metadata, shards = sharded.read(file, _shard)
        kind = "safetensors" if all(map(safe_tensors.looks_like, shards)) else "torch"
        return Source(place, kind, {"": tensors}, metadata=metadata, files=(*shards, file))
    if safe_tensors.looks_like(file):
        tensors, metadata = safe_tensors.read(file)
        return Source(place, "safetensors", {"": tensors}, metadata=metadata, files=(file,))
    # Whatever it is, this reader says so.
    container, tree = torch_archive.read(file)
    groups, values = _groups(tree, file)
    return Source(place, container, groups, values, files=(file,))


def _shard(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of one file of several."""
    if safe_tensors.looks_like(file):
        return safe_tensors.read(file)
    groups = _file(file, file).groups
    if list(groups) != [""]:
        raise UserError(
            f"{file} holds {', '.join(groups)}, no bare state dict as shards are; give one file"
        )
    return groups[""], {}


def _groups(tree: Any, file: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """The state dicts inside what was saved, and the rest."""
    if not isinstance(tree, dict):
        what = f"a {type(tree).__name__}"
        if isinstance(tree, list):
            what = f"a list of {len(tree)}, as banks of the released code are"
        raise UserError(f"{file} holds {what}, no state dict; give a file of weights")
    groups: dict[str, dict[str, Tensor]] = {}
    own = {str(k): v for k, v in tree.items() if isinstance(v, Tensor)}
    if own:
        groups[""] = own
    values = {}
    for key, value in tree.items():
        inside = _state_dicts(str(key), value)
        groups |= inside
        if isinstance(value, (int, float, str, bool)):
            values[str(key)] = value
        elif not isinstance(value, Tensor) and not inside:  # an optimizer, say
            values[str(key)] = type(value).__name__
    if not groups:
        raise UserError(
            f"{file} holds no state dict, only {', '.join(map(str, tree)) or 'nothing'}; give a "
            "file of weights"
        )
    return groups, values


def _state_dicts(key: str, value: Any, depth: int = 0) -> dict[str, dict[str, Tensor]]:
    """Dotted key -> state dict, of what lies under a key: itself, or those a few keys deeper.

    An optimizer keeps small dicts of tensors under the number or the name of each parameter.
    """
    if not isinstance(value, dict) or not value or "optim" in key.lower():
        return {}
    if all(isinstance(one, Tensor) for one in value.values()):
        return {key: {str(name): one for name, one in value.items()}}
    if depth == _NESTED or not all(isinstance(name, str) for name in value):
        return {}
    inside = [_state_dicts(f"{key}.{name}", one, depth + 1) for name, one in value.items()]
    return {name: group for groups in inside for name, group in groups.items()}


def is_adapter(place: str | Path) -> bool:
    """Whether a folder holds an adapter of PEFT."""
    return (Path(place) / ADAPTER).is_file()


def open_adapter(place: str | Path) -> tuple[Source, dict[str, Any]]:
    """(the tensors, the config) of the folder of an adapter.

    Raises:
      UserError: they are not there, or damaged.
    """
    place = Path(place)
    for name in ADAPTER_WEIGHTS:
        if (place / name).is_file():
            source = _file(place / name, place, adapter=True)
            return source, read_json(place / ADAPTER)
    raise UserError(
        f"{place} has {ADAPTER} and none of {', '.join(ADAPTER_WEIGHTS)}; fetch that file too"
    )


def _checked(source: Source) -> Source:
    names = [name for group in source.groups.values() for name in group]
    marks = ("lora_A", "lora_B", "lora_down", "lora_up", "lora_embedding")
    low_rank = [n for n in names if any(m in n for m in marks)]
    if low_rank:
        raise UserError(_adapter(source.place, f"it holds {low_rank[0]}"))
    return source


def _adapter(place: Path, why: str) -> str:
    base = ""
    if is_adapter(place):
        named = read_json(place / ADAPTER).get("base_model_name_or_path")
        of = f", {named!r} by its config" if named else ""
        base = (
            f"Give the folder of those weights too{of}, and it is merged: --init-from {place} BASE "
            f"(init_from={place},BASE). Or merge"
        )
    return (
        f"{place} is a LoRA adapter ({why}): differences to the weights of another model, and no "
        f"model. {base or 'Merge'} it into that model yourself (in PEFT, `merge_and_unload`), save "
        "the result, give that"
    )


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
      UserError: it cannot be read, is no text or no object, or is what `json_files` refuses.
    """
    text = text_files.read(path)
    try:
        content = json_files.loads(text)
    except ValueError as error:
        raise UserError(f"{path} is no JSON ({error}); fetch it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not an object; fetch it again")
    return content


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
