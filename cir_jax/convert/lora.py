# SPDX-License-Identifier: Apache-2.0
"""A LoRA adapter of PEFT, merged into the weights that it was trained on.

An adapter is a folder with `adapter_config.json` and `adapter_model.safetensors` or `.bin`. Of a
layer of weight W it holds A and B, and the layer computes with W + s * B A, where s is alpha / r,
or alpha / sqrt(r) with `use_rslora`; both may differ from layer to layer. With `use_dora` each
output's weights are scaled to a length that was learned; with `lora_bias` B has a bias, and s times
it is added to that of the layer. What is in `modules_to_save`, and biases that were trained, take
the place of those of the base. Merged in float32, when a tensor is read. Source: PEFT,
`tuners/lora` and `utils/save_and_load.py`.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cir_jax.convert.arrays import float32
from cir_jax.convert.containers.tensors import FLOATS, Tensor
from cir_jax.convert.sources import Source
from cir_jax.errors import UserError

# ".lora_A.weight"; a name of the adapter stands before "weight" where a whole model was saved.
_PART = re.compile(
    r"(?P<layer>.+)\.lora_(?P<kind>A|B|embedding_A|embedding_B|magnitude_vector)"
    r"((\.(?!bias$)\w+)?(\.weight)?|(?P<bias>(\.\w+)?\.bias))"
)
# What layers are called inside the ones that PEFT puts around them.
_INNER = re.compile(r"\.base_layer(?=\.)|\.base_layer$")
# With `bias` PEFT saves those of whole modules three times: here as well, as trained and as before.
_COPIES = re.compile(r"\.(modules_to_save|original_module)(?=\.bias$)")
_PACKED = "in_proj_weight"
# Keys of the config that make it another function than the one above -> what to say.
_OTHERS = {
    "use_qalora": "its inputs are pooled",
    "layer_replication": "layers are repeated",
    "megatron_config": "its layers are split",
    "alora_invocation_tokens": "it is active behind some tokens only",
    "target_parameters": "it is of bare parameters",
    "trainable_token_indices": "single tokens were trained",
    "use_bdlora": "A and B are made of blocks",
    "kasa_config": "B A has a factor between",
    "monteclora_config": "A and B are drawn at random",
    "velora_config": "its inputs are compressed",
    "arrow_config": "it chooses between adapters",
}
# Keys that say what was adapted and how it was trained, and change nothing of what comes out.
_SAID_ELSEWHERE = {
    "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying",
    "eva_config", "exclude_modules", "inference_mode", "init_lora_weights", "layers_pattern",
    "layers_to_transform", "loftq_config", "lora_dropout", "lora_ga_config", "megatron_core",
    "modules_to_save", "peft_version", "qalora_group_size", "revision", "runtime_config",
    "target_modules", "task_type",
}  # fmt: skip
_READ = {
    "peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora",
    "lora_bias", "fan_in_fan_out",
}  # fmt: skip
# Ways to start that change the base as well, so that the published base is not what it belongs to.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_LISTED = 3
_LONGEST, _REPEATS = 1000, 3  # characters of a pattern, and what is repeated in it


@dataclass(frozen=True)
class Pair:
    """A and B of one layer, what they are multiplied with, and what else was learned of it."""

    a: Tensor
    b: Tensor
    embedding: bool
    transposed: bool
    scale: float
    magnitude: Tensor | None = None  # of DoRA: length of the weights of each output
    bias: Tensor | None = None

    @property
    def plain(self) -> bool:
        """Whether it is A and B of a linear layer, and nothing else."""
        special = self.embedding or self.transposed or self.magnitude or self.bias
        return not special and len(self.a.shape) == 2

    def weight(self, before: np.ndarray) -> np.ndarray:
        """The weight of the layer, of that of the base."""
        found = before + self.difference()
        if self.magnitude is not None:
            lengths = float32(self.magnitude.read()).ravel()
            output = 1 if self.embedding or self.transposed else 0
            others = tuple(axis for axis in range(found.ndim) if axis != output)
            now = np.sqrt((found * found).sum(axis=others, keepdims=True, dtype=np.float64))
            found = found * (lengths.reshape(now.shape) / now)
        return np.ascontiguousarray(found, np.float32)

    def difference(self) -> np.ndarray:
        """What is added to the weight of the layer."""
        a, b = float32(self.a.read()), float32(self.b.read())
        if a.ndim == 4:  # a convolution: B is one of 1 x 1
            return self.scale * np.einsum("or,rikl->oikl", b[:, :, 0, 0], a)
        found = b @ a
        return self.scale * (found.T if self.embedding or self.transposed else found)

    def shape(self) -> tuple[int, ...]:
        """Of the difference; () where A and B do not fit each other."""
        a, b = self.a.shape, self.b.shape
        if len(a) != len(b) or len(a) not in (2, 4) or a[0] != b[1] or b[2:] not in ((), (1, 1)):
            return ()
        if self.magnitude is not None and math.prod(self.magnitude.shape) != b[0]:
            return ()
        found = (b[0], *a[1:])
        return found[::-1] if self.embedding or self.transposed else found


def merged(base: Source, adapter: Source, config: Mapping[str, Any]) -> Source:
    """The base with the adapter merged in; nothing is read yet.

    Args:
      base: a file or folder of weights.
      adapter: `adapter_model` of the folder.
      config: `adapter_config.json`.

    Raises:
      UserError: the config is of another kind of adapter, or a tensor of the adapter has no place
        in the base.
    """
    where = adapter.place
    group, pairs, others = parts(base, adapter, config)
    published, held = base.groups[group], dict(base.groups[group])
    for name, tensor in others.items():
        held[name] = _of_shape(name, tensor, tensor.shape, held[name], where)
    for layer, pair in pairs.items():
        name = f"{layer}.weight"
        before = _of_shape(name, held[name], pair.shape(), published[name], where)
        held[name] = Tensor(before.shape, "float32", _weight(before, pair))
        if pair.bias is not None:
            name = f"{layer}.bias"
            before = _of_shape(name, held[name], pair.bias.shape, published[name], where)
            held[name] = Tensor(before.shape, "float32", _bias(before, pair.bias, pair.scale))
    return dataclasses.replace(
        base,
        groups={**base.groups, group: held},
        files=(*base.files, *adapter.files, where / "adapter_config.json"),
    )


def parts(
    base: Source, adapter: Source, config: Mapping[str, Any]
) -> tuple[str, dict[str, Pair], dict[str, Tensor]]:
    """(group of the base, layer -> what adapts it, tensors that take the place of others).

    Layers and tensors have the names of the base.

    Raises:
      UserError: as `merged`.
    """
    where = adapter.place
    _check(config, where)
    held = adapter.groups.get("", {})
    once = {name: _COPIES.sub("", name) for name in held}
    tensors = {name: x for name, x in held.items() if once[name] == name or once[name] not in held}
    group, prefix = _place(base, tensors, where)
    names = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    others = {_target(name): x for name, x in names.items() if not _PART.fullmatch(name)}
    return group, _pairs(names, config, where), others


def _place(base: Source, tensors: Mapping[str, Tensor], where: Path) -> tuple[str, str]:
    """(group of the base, prefix of the adapter's names) by which every tensor has its place.

    Raises:
      UserError: there is none, or the base has several.
    """
    lacking = {
        (key, prefix): [
            target for name in tensors if (target := _target(name.removeprefix(prefix))) not in held
        ]
        for prefix in _prefixes(tensors)
        for key, held in base.groups.items()
    }
    fitting = [place for place, names in lacking.items() if not names]
    if tensors and len({key for key, _ in fitting}) == 1:
        return fitting[0]
    if tensors and fitting:
        raise UserError(
            f"{where} fits {', '.join(sorted({repr(key) for key, _ in fitting}))} of {base.place}; "
            "give the one that it was trained on alone"
        )
    (group, _), names = min(lacking.items(), key=lambda item: len(item[1]))
    held = base.groups[group]
    odd = next((name for name in names if ".lora_" in name), "")
    attention = next((n for n in names if n.removesuffix("weight") + _PACKED in held), "")
    if odd or attention:
        # Of the second, PEFT counts what it adds to the output projection twice.
        what = "no part of LoRA that is known here" if odd else "of torch.nn.MultiheadAttention"
        raise UserError(
            f"{where} has {odd or attention!r}, which is {what}. That is not merged here: merge "
            "it with PEFT (`merge_and_unload`), save the result, give that"
        )
    layer, have = min(names, key=len, default=""), next(iter(held), "")
    raise UserError(
        f"{where} has tensors of layers that {base.place} has not: {layer!r} is of the "
        f"adapter, {have!r} of the base. Give the weights that it was trained on, in the form "
        "that PEFT had them (a folder of transformers, or a state dict)"
    )


def _weight(before: Tensor, pair: Pair) -> Any:
    return lambda: pair.weight(float32(before.read()))


def _bias(before: Tensor, bias: Tensor, scale: float) -> Any:
    return lambda: float32(before.read()) + np.float32(scale) * float32(bias.read())


def _target(name: str) -> str:
    """The tensor of the base that one of the adapter belongs to."""
    found = _PART.fullmatch(name)
    layer = _INNER.sub("", found["layer"] if found else name)
    if not found:
        return layer
    return layer + (".bias" if found["bias"] else ".weight")


def _prefixes(tensors: Mapping[str, Tensor]) -> list[str]:
    """Prefixes that every name has, none among them: what PEFT and wrappers put before."""
    found = [""]
    first = min(tensors, default="")
    for end in (match.end() for match in re.finditer(r"\.", first)):
        if all(name.startswith(first[:end]) for name in tensors):
            found.append(first[:end])
    return found


def _pairs(names: Mapping[str, Tensor], config: Mapping[str, Any], where: Path) -> dict[str, Pair]:
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in names.items():
        if found := _PART.fullmatch(name):
            parts = layers.setdefault(_INNER.sub("", found["layer"]), {})
            kind = found["kind"] + (".bias" if found["bias"] else "")
            if kind in parts or tensor.dtype not in FLOATS:
                raise UserError(f"{where}: {name!r} is there twice, or is no float; save it again")
            parts[kind] = tensor
    pairs = {}
    for layer, parts in layers.items():
        embedding = "embedding_A" in parts
        first, second = ("embedding_A", "embedding_B") if embedding else ("A", "B")
        needed = {first, second}
        needed |= {"magnitude_vector"} if config.get("use_dora") else set()
        needed |= {f"{second}.bias"} if config.get("lora_bias") and not embedding else set()
        if parts.keys() != needed:
            raise UserError(
                f"{where} has half of the adapter of {layer!r}, or more than one: "
                f"{', '.join(sorted(parts))}, where adapter_config.json asks for "
                f"{', '.join(sorted(needed))}; fetch both files again, of one version"
            )
        a = parts[first]
        rank = _pattern(config.get("rank_pattern"), layer, config["r"])
        alpha = _pattern(config.get("alpha_pattern"), layer, config["lora_alpha"])
        if not a.shape or rank != a.shape[0]:
            raise UserError(
                f"{where}: adapter_config.json says rank {rank!r} for {layer!r}, whose A has the "
                f"shape {list(a.shape)}; fetch both files again, of one version"
            )
        scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        transposed = bool(config.get("fan_in_fan_out"))
        magnitude, bias = parts.get("magnitude_vector"), parts.get(f"{second}.bias")
        pairs[layer] = Pair(a, parts[second], embedding, transposed, scale, magnitude, bias)
    return pairs


def _pattern(patterns: Any, layer: str, otherwise: float) -> float:
    """The value of the first pattern that the end of a layer's name has."""
    for pattern, value in (patterns or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", layer):
            return value
    return otherwise


def _of_shape(
    name: str, tensor: Tensor, shape: tuple[int, ...], base: Tensor, where: Path
) -> Tensor:
    if shape != base.shape or tensor.dtype not in FLOATS:
        raise UserError(
            f"{where}: what it has for {name!r} is {list(shape)} {tensor.dtype}, and the base has "
            f"{list(base.shape)}; give the weights that the adapter was trained on"
        )
    return tensor


def _is_factor(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < 1e6


def _pattern_trouble(key: str, patterns: Any) -> list[str]:
    """What is wrong with a table of patterns and numbers, in words."""
    if not isinstance(patterns, dict) or not all(map(_is_factor, patterns.values())):
        return [f"{key}={patterns!r}, no table of numbers"]
    try:
        [re.compile(pattern) for pattern in patterns]
    except (re.error, RecursionError, OverflowError) as error:
        return [f"{key}: {error}"]
    slow = next(filter(_without_end, patterns), None)
    return [] if slow is None else [f"{key}: {slow[:80]!r}, which may take without end to look for"]


def _without_end(pattern: str) -> bool:
    """Whether looking for a pattern may take longer than a power of a name's length.

    Repeated groups and back references do; so do many repeats in a row. PEFT's own patterns are
    names of layers with ".*" or a number between.
    """
    bare = re.sub(r"\\[^1-9]", "_", pattern)
    repeats = len(re.findall(r"[*+{]", bare))
    return (
        len(pattern) > _LONGEST or repeats > _REPEATS or bool(re.search(r"\)[*+{]|\\|\(\?P=", bare))
    )


def _check(config: Mapping[str, Any], where: Path) -> None:
    kind = config.get("peft_type")
    trouble = [f"{key} ({why})" for key, why in _OTHERS.items() if config.get(key)]
    known = _OTHERS.keys() | _SAID_ELSEWHERE | _READ
    trouble += [
        f"{key}={value!r}, which is not known here"
        for key, value in config.items()
        if value and key not in known and kind == "LORA"
    ]
    if kind != "LORA":
        trouble.append(f"peft_type={kind!r}, not 'LORA'")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        trouble.append(f"init_lora_weights={start!r}, which changes the base too")
    for key in ("r", "lora_alpha"):
        if not _is_factor(config.get(key)):
            trouble.append(f"{key}={config.get(key)!r}, no number above 0")
    for key in ("rank_pattern", "alpha_pattern"):
        trouble += _pattern_trouble(key, config.get(key) or {})
    if trouble:
        raise UserError(
            f"{where}: adapter_config.json has {'; '.join(trouble[:_LISTED])}. That is not merged "
            "here: merge it with PEFT (`merge_and_unload`), save the result, give that"
        )
