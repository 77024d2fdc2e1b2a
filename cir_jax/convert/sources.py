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

from cir_jax.convert.containers import safe_tensors, torch_archive
from cir_jax.convert.containers.tensors import Tensor
from cir_jax.data import json_files
from cir_jax.errors import UserError

# Weights a folder may hold, the safer format first, transformers' names before open_clip's.
WEIGHTS = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
    "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)  # fmt: skip
CONFIGS = ("config.json", "open_clip_config.json")


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
    """

    place: Path
    container: str
    groups: dict[str, dict[str, Tensor]]
    values: dict[str, Any] = field(default_factory=dict)
    configs: dict[str, dict[str, Any]] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    files: tuple[Path, ...] = ()

    @property
    def folder(self) -> Path:
        """Where files beside the weights lie."""
        return self.place if self.place.is_dir() else self.place.parent


def open_source(place: str | Path) -> Source:
    """Opens a weight file, or a folder with one.

    Raises:
      UserError: there is none, it is damaged, it wants to run code, or it holds no weights.
    """
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


def fingerprint(source: Source) -> list[dict[str, Any]]:
    """[{"file", "bytes", "sha256"}] of the files of weights, for the record of a run."""
    return [
        {"file": str(file.absolute()), "bytes": file.stat().st_size, "sha256": _sha256(file)}
        for file in source.files
    ]


def _folder(place: Path) -> Source:
    if (place / "adapter_config.json").is_file():
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


def _file(file: Path, place: Path) -> Source:
    if file.name.endswith(".index.json"):
        tensors, metadata = safe_tensors.read_sharded(file)
        shards = sorted({file.parent / n for n in read_json(file)["weight_map"].values()})
        return _checked(Source(place, "safetensors", {"": tensors}, metadata=metadata,
                               files=(*shards, file)))  # fmt: skip
    if safe_tensors.looks_like(file):
        tensors, metadata = safe_tensors.read(file)
        return _checked(
            Source(place, "safetensors", {"": tensors}, metadata=metadata, files=(file,))
        )
    # Whatever it is, this reader says so.
    container, tree = torch_archive.read(file)
    groups, values = _groups(tree, file)
    return _checked(Source(place, container, groups, values, files=(file,)))


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
        inside = isinstance(value, dict) and value
        if inside and all(isinstance(v, Tensor) for v in value.values()):
            groups[str(key)] = {str(k): v for k, v in value.items()}
        elif isinstance(value, (int, float, str, bool)):
            values[str(key)] = value
        elif not isinstance(value, Tensor):  # an optimizer, say
            values[str(key)] = type(value).__name__
    if not groups:
        raise UserError(
            f"{file} holds no state dict, only {', '.join(map(str, tree)) or 'nothing'}; give a "
            "file of weights"
        )
    return {key: _without_module(group) for key, group in groups.items()}, values


def _without_module(group: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names without the prefix that PyTorch's parallel wrappers add to every one."""
    if all(name.startswith("module.") for name in group):
        return {name.removeprefix("module."): tensor for name, tensor in group.items()}
    return group


def _checked(source: Source) -> Source:
    names = [name for group in source.groups.values() for name in group]
    marks = ("lora_A", "lora_B", "lora_down", "lora_up", "lora_embedding")
    low_rank = [n for n in names if any(m in n for m in marks)]
    if low_rank:
        raise UserError(_adapter(source.place, f"it holds {low_rank[0]}"))
    return source


def _adapter(place: Path, why: str) -> str:
    return (
        f"{place} is a LoRA adapter ({why}): differences to the weights of another model, and no "
        "model. Merge it into that model (in PEFT, `merge_and_unload`), save the result, give that"
    )


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
      UserError: it cannot be read, is something else, or is what `json_files` refuses.
    """
    try:
        content = json_files.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is no JSON ({error}); fetch it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not an object; fetch it again")
    return content


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
