# SPDX-License-Identifier: Apache-2.0
"""Rule tables: which tensor of a PyTorch model is which leaf of ours, strictly, in both directions.

A rule names a kind of tensor and the leaf it belongs to; `{layer}` and the like stand for numbers:

    Rule("transformer.resblocks.{layer}.mlp.c_fc.weight", "text/blocks/mlp/fc1/kernel", LINEAR)

A number that is in the tensor's name alone is the first axis of the leaf: our layers are stacked.
From the rules and the shapes of a model follows the complete list of tensors, each with its shape;
what a file lacks, has too much, or has in another shape or type is raised in one message.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cir_jax import moved
from cir_jax import rules as path_rules
from cir_jax.convert.arrays import FLOAT32, copy, finite, float32
from cir_jax.convert.containers.spans import empty
from cir_jax.convert.containers.tensors import DTYPES, FLOATS, Tensor
from cir_jax.errors import UserError
from cir_jax.weight_rules import SAME, Ignored, Rule

__getattr__ = moved.names_of(__name__)  # names that were here until version 0.1.0
_FIELD = re.compile(r"\{(\w+)\}")
_LISTED = 6  # names of one kind of trouble that a message shows


@dataclass(frozen=True)
class Piece:
    """Where a tensor, or a part of it, lies in our tree."""

    path: str
    layer: int | None  # index into the first axis of the leaf
    axes: tuple[int, ...]
    part: tuple[int, int]
    ones: tuple[int, ...] = ()

    def ours(self, values: Any) -> Any:
        """The tensor's values -> the values of the leaf (of one layer); numpy or jax arrays."""
        n, parts = self.part
        size = values.shape[0] // parts if parts > 1 else 0
        values = values[n * size : (n + 1) * size] if parts > 1 else values
        values = values.squeeze(self.ones) if self.ones else values
        return values.transpose(self.axes) if self.axes else values

    def theirs(self, leaf: Any) -> Any:
        """The inverse: our leaf -> this piece of the tensor."""
        values = leaf if self.layer is None else leaf[self.layer]
        values = values.transpose(np.argsort(self.axes)) if self.axes else values
        return np.expand_dims(values, self.ones) if self.ones else values

    def their_shape(self, leaf: Sequence[int]) -> tuple[int, ...]:
        """Shape of the whole tensor, from the shape of our leaf."""
        shape = tuple(leaf if self.layer is None else leaf[1:])
        if self.axes:
            shape = tuple(shape[i] for i in np.argsort(self.axes))
        for axis in sorted(self.ones):
            shape = (*shape[:axis], 1, *shape[axis:])
        return (shape[0] * self.part[1], *shape[1:]) if self.part[1] > 1 else shape


Table = dict[str, list[Piece]]  # tensor name -> its pieces, in order of their parts


def expand(rules: Iterable[Rule], abstract: Mapping[str, Any]) -> Table:
    """The tensors that belong to a model, complete.

    Args:
      rules: of the layout; each must match a leaf.
      abstract: path -> something with a shape, for every leaf.

    Raises:
      UserError: a leaf without a rule or an idle rule, or two rules claim one part.
    """
    rules = list(rules)
    chosen: dict[str, list[tuple[Rule, dict[str, str]]]] = {}
    compiled = [(_regex(rule.path), rule) for rule in rules]
    # The strict matcher of all path rules: no leaf is left out, no rule is a typo.
    path_rules.match([(regex, None) for regex, _ in compiled], abstract, "conversion rules")
    for path in abstract:
        for regex, rule in compiled:
            if found := re.fullmatch(regex, path):
                chosen.setdefault(path, []).append((rule, found.groupdict()))
    table: Table = {}
    for path, matched in chosen.items():
        if len(matched) > 1:
            raise UserError(f"conversion rules: {path} has {len(matched)} rules; keep one")
        rule, fields = matched[0]
        free = set(_FIELD.findall(rule.source)) - fields.keys()
        first, step = rule.numbers
        layers: Iterable[int | None] = range(abstract[path].shape[0]) if free else (None,)
        for layer in layers:
            numbers = {} if layer is None else dict.fromkeys(free, first + step * layer)
            name = rule.source.format(**fields, **numbers)
            table.setdefault(name, []).append(Piece(path, layer, rule.axes, rule.part, rule.ones))
    for name, pieces in table.items():
        pieces.sort(key=lambda piece: piece.part)
        if [p.part for p in pieces] != [(n, len(pieces)) for n in range(len(pieces))]:
            raise UserError(f"conversion rules: the parts of {name} do not make it whole")
    return table


def leaves(rules: Iterable[Rule], params: Mapping[str, Any]) -> dict[str, Any]:
    """The part of `params` that the rules are about: a file may hold a part of a model."""
    compiled = [re.compile(_regex(rule.path)) for rule in rules]
    return {p: x for p, x in params.items() if any(regex.fullmatch(p) for regex in compiled)}


def shapes(table: Table, abstract: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape, of everything in `table`."""
    return {n: pieces[0].their_shape(abstract[pieces[0].path].shape) for n, pieces in table.items()}


def check(
    table: Table,
    abstract: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    ignored: Iterable[Ignored],
    where: str,
) -> None:
    """Compares what a file holds with what a model needs; nothing is read.

    Raises:
      UserError: names that are missing or too many, shapes and types that differ: all at once.
    """
    need = shapes(table, abstract)
    extra = [n for n in tensors if n not in need and not any(_is(i, n) for i in ignored)]
    trouble = {
        "missing": [f"{n} {list(s)}" for n, s in need.items() if n not in tensors],
        "not part of the model": [f"{n} {list(tensors[n].shape)}" for n in extra],
        "of another shape": [
            _differ(n, tensors[n].shape, s)
            for n, s in need.items()
            if n in tensors and tensors[n].shape != s
        ],
        "no floating point": [
            f"{n} is {tensors[n].dtype}"
            for n in need
            if n in tensors and tensors[n].dtype not in FLOATS
        ],
    }
    _raise(trouble, len(need), where)


def fill(
    table: Table, abstract: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str
) -> dict[str, np.ndarray]:
    """Reads tensor by tensor into float32 leaves, path -> array; `check` comes first.

    Raises:
      UserError: values that are infinite or no number, all names at once.
    """
    leaves = {path: empty(leaf.shape, FLOAT32) for path, leaf in abstract.items()}
    broken = []
    for name, pieces in table.items():
        values = float32(tensors[name].read())
        if not finite(values):
            broken.append(name)
        for piece in pieces:
            if piece == Piece(piece.path, None, SAME, (0, 1)):
                leaves[piece.path] = values  # the leaf itself: a large one is not held twice
                continue
            place = (...,) if piece.layer is None else (piece.layer, ...)
            copy(leaves[piece.path][place], piece.ours(values))
    _raise({"not finite": broken}, len(table), where)
    return leaves


def tensors_of(
    table: Table, params: Mapping[str, Any], dtypes: Mapping[str, str]
) -> dict[str, Tensor]:
    """The inverse of `fill`: tensor name -> Tensor that is put together when it is read.

    Args:
      table: see `expand`.
      params: path -> float32 array.
      dtypes: tensor name -> type; float32 where it has no entry.
    """
    need = shapes(table, params)
    return {
        name: _lazy(name, pieces, params, need[name], dtypes.get(name, "float32"))
        for name, pieces in table.items()
    }


def ignored_reason(ignored: Iterable[Ignored], name: str) -> str:
    """Why the tensor `name` is not read, or ""."""
    return next((one.reason for one in ignored if _is(one, name)), "")


def _lazy(
    name: str, pieces: list[Piece], params: Mapping[str, Any], shape: tuple[int, ...], dtype: str
) -> Tensor:
    def read() -> np.ndarray:
        parts = [piece.theirs(np.asarray(params[piece.path])) for piece in pieces]
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
        with np.errstate(over="ignore"):
            written = np.empty(shape, DTYPES[dtype])
            copy(written, whole)
        if dtype == "float16" and not finite(written):
            raise UserError(
                f"{name} has values up to {np.abs(whole).max():.3g}, over the 65504 of float16; "
                "write bfloat16 or float32"
            )
        return written

    return Tensor(shape, dtype, read)


def _regex(template: str) -> str:
    """ "a.{i}.b" -> a regex with the group i."""
    parts = _FIELD.split(template)
    return "".join(rf"(?P<{p}>\d+)" if i % 2 else re.escape(p) for i, p in enumerate(parts))


def _is(ignored: Ignored, name: str) -> bool:
    return re.fullmatch(ignored.regex, name) is not None


def _differ(name: str, have: tuple[int, ...], need: tuple[int, ...]) -> str:
    turned = " (transposed?)" if have == need[::-1] else ""
    return f"{name} is {list(have)}, the model has {list(need)}{turned}"


def _raise(trouble: Mapping[str, list[str]], tensors: int, where: str) -> None:
    said = []
    for kind, names in trouble.items():
        if names:
            more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
            said.append(f"{len(names)} {kind}: {', '.join(names[:_LISTED])}{more}")
    if said:
        raise UserError(
            f"{where} does not hold this model, which has {tensors} tensors. {'; '.join(said)}. "
            "Nothing was taken from it; `cir-jax inspect` lists what it holds"
        )
