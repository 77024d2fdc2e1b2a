# SPDX-License-Identifier: Apache-2.0
"""Adapters of ours <-> a folder of PEFT, in the names of transformers.

    adapter_config.json          rank, alpha and names of the layers
    adapter_model.safetensors    A [r, I] and B [O, r] of each, and what trained beside them

Only models with a layout of transformers have such names: the rules by which that layout is read
say them. Where transformers has queries, keys and values in one tensor, A of that tensor is our
factors A one above the other, and B has each B in its own rows and columns: rank and alpha are as
many times ours, and the product is the same. `cir_jax.convert.lora` merges such folders into their
base; here an adapter stays one, to go on from.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cir_jax import files
from cir_jax.convert import identify, lora, tables
from cir_jax.convert.arrays import float32
from cir_jax.convert.containers import safe_tensors
from cir_jax.convert.containers.tensors import Tensor, of
from cir_jax.convert.sources import ADAPTER, ADAPTER_WEIGHTS, Source, open_adapter
from cir_jax.convert.tables import Piece, Table
from cir_jax.errors import UserError
from cir_jax.params import LORA_A, LORA_B, AdapterParams, ModelParams, Params
from cir_jax.weight_rules import LINEAR

# Layouts in the names of transformers; which one a model has depends on its towers.
LAYOUTS = ("huggingface", "siglip", "metaclip2", "tipsv2")
BASE = "cir_jax_base"  # in the metadata of the tensors: checksum of the matrices below the adapters
_BEFORE = "base_model.model."  # what PEFT puts before every name
_WEIGHT, _BIAS = ".weight", ".bias"
_LISTED = 4


@dataclass(frozen=True)
class Layer:
    """A layer of transformers that is adapted.

    Attributes:
      name: of the layer.
      pieces: the places of its weight in our tree, in the order of its rows.
      adapted: numbers of those that have factors.
    """

    name: str
    pieces: list[Piece]
    adapted: list[int]

    def of(self, params: Params, number: int) -> tuple[np.ndarray, np.ndarray]:
        """A [r, I] and B [O, r] of a piece."""
        piece = self.pieces[number]
        a, b = (np.asarray(params[piece.path + end]) for end in (LORA_A, LORA_B))
        if piece.layer is not None:
            a, b = a[piece.layer], b[piece.layer]
        return a.T, b.T

    def together(self, params: Params) -> tuple[np.ndarray, np.ndarray]:
        """A and B of the whole weight."""
        pairs = [self.of(params, number) for number in self.adapted]
        rank, rows = pairs[0][0].shape[0], pairs[0][1].shape[0]
        b = np.zeros((rows * len(self.pieces), rank * len(pairs)), np.float32)
        for place, (number, (_, part)) in enumerate(zip(self.adapted, pairs, strict=True)):
            b[number * rows : (number + 1) * rows, place * rank : (place + 1) * rank] = part
        return np.concatenate([a for a, _ in pairs]), b


def write(
    place: str | Path,
    model: ModelParams,
    adapters: AdapterParams,
    params: Params,
    checksum: str,
    base: str = "",
) -> list[Path]:
    """Writes the adapters of a run as a folder that PEFT loads.

    Args:
      place: the folder.
      model: the model.
      adapters: what has factors.
      params: path -> array: the factors, and the parameters of the model with what trained.
      checksum: of the matrices below the factors.
      base: name or place of the weights that they belong to, for whoever loads them.

    Returns:
      The files.

    Raises:
      UserError: the model has no layout of transformers, or that has no layer for something that
        trained.
    """
    table = _table(model)
    layers = list(_layers(table, adapters))
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for layer in layers:
        a, b = layer.together(params)
        tensors[f"{_BEFORE}{layer.name}.lora_A.weight"] = of(a)
        tensors[f"{_BEFORE}{layer.name}.lora_B.weight"] = of(b)
        ranks[layer.name] = len(layer.adapted)
    whole, modules = _whole(table, adapters, params, set(ranks))
    tensors |= whole
    several = {name: times for name, times in ranks.items() if times > 1}
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "r": adapters.rank,
        "lora_alpha": _number(adapters.alpha),
        "rank_pattern": {name: times * adapters.rank for name, times in several.items()},
        "alpha_pattern": {name: _number(times * adapters.alpha) for name, times in several.items()},
        "target_modules": sorted(ranks),
        "modules_to_save": sorted(modules) or None,
        "bias": "all" if any(name.endswith(_BIAS) for name in whole) else "none",
        "lora_dropout": 0.0,
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    folder = Path(place)
    weights = folder / ADAPTER_WEIGHTS[0]
    with files.whole(weights) as file:
        safe_tensors.write(file, tensors, {"format": "pt", BASE: checksum})
    files.put(folder / ADAPTER, (json.dumps(config, indent=2) + "\n").encode())
    return [weights, folder / ADAPTER]


def read(
    place: str | Path, model: ModelParams, adapters: AdapterParams, base: Params, checksum: str
) -> Params:
    """The factors of a folder of PEFT, and what trained beside them, by our paths.

    Args:
      place: the folder.
      model: the model.
      adapters: what has factors; the folder must have the same, with the same rank and scale.
      base: the parameters of the model, on the host.
      checksum: of its matrices below the factors.

    Raises:
      UserError: the folder is damaged or has no adapter, or one of other layers, rank or alpha, of
        another kind or of another base.
    """
    source, config = open_adapter(place)
    table = _table(model)
    pretended = Source(Path(place), "safetensors", {"": _shapes(table, model)})
    _, pairs, others = lora.parts(pretended, source, config)
    if source.metadata.get(BASE, checksum) != checksum:
        raise UserError(
            f"lora.init_from={place} was trained on other weights than init_from gives here (their "
            f"checksums are {source.metadata[BASE]} and {checksum}); give the base that it was "
            "trained on"
        )
    layers = {layer.name: layer for layer in _layers(table, adapters)}
    _check_layers(place, set(pairs), set(layers))
    found = {path: np.zeros(x.shape, np.float32) for path, x in adapters.shapes.items()}
    for name, layer in layers.items():
        for number, (a, b) in _apart(place, layer, pairs[name], adapters).items():
            piece = layer.pieces[number]
            where: Any = ... if piece.layer is None else piece.layer
            found[piece.path + LORA_A][where] = a.T
            found[piece.path + LORA_B][where] = b.T
    for name, tensor in others.items():
        for piece in table[name]:
            if piece.path not in adapters.whole:
                raise UserError(
                    f"lora.init_from={place} has trained {name}, which is {piece.path} here and "
                    "would not train; name it in lora.trained"
                )
            leaf = found.setdefault(piece.path, np.array(base[piece.path]))
            leaf[... if piece.layer is None else piece.layer] = piece.ours(float32(tensor.read()))
    return found


def _table(model: ModelParams) -> Table:
    """The tensors of the model in the names of transformers.

    Raises:
      UserError: it has no such names.
    """
    name, reason = model.config.name, ""
    for layout in identify.layouts(name):
        if layout.name in LAYOUTS:
            try:
                rules = layout.rules_of(model)
            except UserError as error:  # of towers of another family
                reason = reason or f" ({error})"
                continue
            return tables.expand(rules, tables.leaves(rules, model.abstract))
    raise UserError(
        f"model.name={name} model.tower={model.config.tower} has no layout of transformers, whose "
        f"names PEFT's adapters have{reason}; `cir-jax export` writes it with the adapters merged, "
        "--format safetensors"
    )


def _shapes(table: Table, model: ModelParams) -> dict[str, Tensor]:
    """Tensors without values, of these names."""

    def nothing() -> np.ndarray:
        raise AssertionError("names and shapes are all that is asked of them")

    shapes = tables.shapes(table, model.abstract)
    return {name: Tensor(shape, "float32", nothing) for name, shape in shapes.items()}


def _layers(table: Table, adapters: AdapterParams) -> Iterator[Layer]:
    """The layers of transformers that have our factors.

    Raises:
      UserError: a matrix with factors is no linear layer there.
    """
    matrices, placed = set(adapters.matrices), set()
    for name, pieces in table.items():
        adapted = [n for n, piece in enumerate(pieces) if piece.path in matrices]
        if adapted and name.endswith(_WEIGHT) and all(p.axes == LINEAR for p in pieces):
            placed |= {pieces[n].path for n in adapted}
            yield Layer(name.removesuffix(_WEIGHT), pieces, adapted)
    if lost := sorted(matrices - placed):
        raise UserError(
            f"{', '.join(lost[:_LISTED])} ({len(lost)} in all) have adapters, and transformers has "
            "no linear layer for them; leave them out of lora.modules, or export with the adapters "
            "merged (another --format)"
        )


def _whole(
    table: Table, adapters: AdapterParams, params: Params, layers: set[str]
) -> tuple[dict[str, Tensor], set[str]]:
    """(tensors of what trained as it is, modules that PEFT saves whole for it).

    Raises:
      UserError: transformers has no module for something that trained.
    """
    names = {
        name for name, pieces in table.items() if any(p.path in adapters.whole for p in pieces)
    }
    have = {piece.path for name in names for piece in table[name]}
    bare = sorted(name for name in names if not name.endswith((_WEIGHT, _BIAS)))
    if lost := [*sorted(adapters.whole - have), *bare]:
        raise UserError(
            f"{', '.join(lost[:_LISTED])} ({len(lost)} in all) trained beside the adapters, and "
            "PEFT has no place for them; leave them out of lora.trained, or export with the "
            "adapters merged (another --format)"
        )
    modules = {name.removesuffix(_WEIGHT) for name in names if name.endswith(_WEIGHT)}
    names |= {module + _BIAS for module in modules if module + _BIAS in table}
    tensors = tables.tensors_of({name: table[name] for name in sorted(names)}, params, {})
    found = {}
    for name, tensor in tensors.items():
        module = name.removesuffix(_BIAS)
        inside = ".base_layer" if name.endswith(_BIAS) and module in layers else ""
        found[f"{_BEFORE}{module}{inside}{_BIAS}" if name.endswith(_BIAS) else _BEFORE + name] = (
            tensor
        )
    return found, modules


def _apart(
    place: str | Path, layer: Layer, pair: lora.Pair, adapters: AdapterParams
) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Number of a piece -> its A [r, I] and B [O, r].

    Raises:
      UserError: rank or alpha are others, or what they give is no such adapter.
    """
    if not pair.plain:
        raise UserError(
            f"lora.init_from={place}: {layer.name} has more than A and B of a linear layer (DoRA, "
            "a bias of B, an embedding); merge it into the base, --init-from ADAPTER BASE"
        )
    a, b = float32(pair.a.read()), float32(pair.b.read())
    ours, times, rank = adapters.alpha / adapters.rank, len(layer.adapted), a.shape[0]
    rows = b.shape[0] // len(layer.pieces)
    block = rank == times * adapters.rank
    if not np.isclose(pair.scale, ours, rtol=1e-6) or (rank != adapters.rank and not block):
        raise UserError(
            f"lora.init_from={place}: {layer.name} has rank {rank} and alpha "
            f"{pair.scale * rank:g}, and the config says lora.rank={adapters.rank} "
            f"lora.alpha={adapters.alpha:g}; give --set lora.rank={rank} "
            f"--set lora.alpha={pair.scale * rank:g}"
        )
    found = {}
    rest = b.copy()
    for at, number in enumerate(layer.adapted):
        columns = slice(at * adapters.rank, (at + 1) * adapters.rank) if block else slice(None)
        part = slice(number * rows, (number + 1) * rows)
        found[number] = a[columns], b[part, columns]
        rest[part, columns] = 0
    if rest.any():
        raise UserError(
            f"lora.init_from={place}: {layer.name} is queries, keys and values in one, which are "
            f"three matrices here, and its B is not in blocks of rank {adapters.rank}. Give --set "
            f"lora.rank={rank} --set lora.alpha={pair.scale * rank:g}, and adapt all three; or "
            "merge it into the base, --init-from ADAPTER BASE"
        )
    return found


def _check_layers(place: str | Path, there: set[str], here: set[str]) -> None:
    if there == here:
        return
    said = []
    differ = {"only it adapts": there - here, "only lora.modules names": here - there}
    for what, names in differ.items():
        if names:
            said.append(f"{what} {', '.join(sorted(names)[:_LISTED])} ({len(names)} in all)")
    raise UserError(
        f"lora.init_from={place} is of other layers: {'; '.join(said)}. Name the same in "
        "lora.modules, or merge it into the base, --init-from ADAPTER BASE"
    )


def _number(value: float) -> Any:
    """As PEFT writes it: a whole number has no point."""
    return int(value) if float(value).is_integer() else value
