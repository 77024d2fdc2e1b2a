# SPDX-License-Identifier: Apache-2.0
"""Weights of a file -> the parameter trees of a model, with a record of where they came from."""

import collections
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cir_jax import progress
from cir_jax.convert import identify, tables, tied
from cir_jax.convert.containers.tensors import Tensor
from cir_jax.convert.layout import Layout
from cir_jax.convert.sources import Source, fingerprint, open_source
from cir_jax.params import ModelParams, Params


@dataclass(frozen=True)
class Weights:
    """Parameters on the host.

    Attributes:
      index: path -> float32 array, what `reference` and `target` read.
      query: the same for `compose`; the very same object where they do not differ.
      record: where they came from, as JSON: files with sizes and hashes, layout, types that were
        not float32, scalars that a PyTorch model wants back.
      files: tokenizer and image processor files that belong to them.
    """

    index: Params
    query: Params
    record: dict[str, Any]
    files: tuple[Path, ...] = ()


def read(place: str | Path | Source, functions: ModelParams) -> Weights:
    """Reads the weights at `place`, or of a source, for a model, tensor by tensor.

    Raises:
      UserError: the file is damaged, holds another model or another size, or its tensors are not
        exactly those of the model; every difference is named.
    """
    source = place if isinstance(place, Source) else open_source(place)
    layout, found, _ = identify.match(source, functions.config)
    identify.check_inputs(source, found, functions.config)
    where = f"{source.place}{found.group and f' ({found.group})'}"
    held = source.groups[found.group]
    tensors = held if found.tensors is None else found.tensors
    unread = [f"{n} ({len(g)} tensors)" for n, g in source.groups.items() if g is not held]
    if unread := [*unread, *source.beside]:
        progress.say(f"{source.place} also holds {', '.join(unread)}: not read")
    if found.renamed:
        progress.say(f"{where}: {found.renamed}, and the other names likewise")
    tensors = layout.fitted(tensors, functions.config, where)
    rules, apart = layout.rules_of(functions), layout.index_rules(functions.config)
    (query, different), table = _filled(where, layout, (rules, apart), functions, tensors)
    index, files = query | different if different else query, fingerprint(source)
    if beside := layout.index(source):
        other, rules = beside
        (different,), _ = _filled(
            f"{other.place} (index)", layout, (rules,), functions, other.groups[""]
        )
        index = query | different
        files += [file for file in fingerprint(other) if file not in files]
    record = {
        "place": str(source.place.absolute()),
        "layout": layout.name,
        "container": source.container,
        "files": files,
        "values": source.values,
        "dtypes": {n: tensors[n].dtype for n in table if tensors[n].dtype != "float32"},
        "kept": _scalars(tensors, layout),
    }
    return Weights(index, query, record, tuple(layout.files(source, functions.config)))


def _filled(
    where: str,
    layout: Layout,
    trees: Sequence[list[tables.Rule]],
    functions: ModelParams,
    tensors: Mapping[str, Tensor],
) -> tuple[list[Params], tables.Table]:
    """The leaves that the rules of each tree are about, and the table of all of them."""
    parts = [tables.leaves(rules, functions.abstract) for rules in trees]
    expanded = [tables.expand(*both) for both in zip(trees, parts, strict=True)]
    table = {name: pieces for one in expanded for name, pieces in one.items()}
    copied = tied.names(layout.copied, table)
    own = {name: tensor for name, tensor in tensors.items() if name not in copied}
    tables.check(table, functions.abstract, own, layout.ignored, where)
    tied.check(copied, tensors, where)
    types = collections.Counter(tensors[n].dtype for n in table)
    narrow = ", ".join(f"{count} of {name}" for name, count in types.items() if name != "float32")
    megabytes = sum(tensors[n].nbytes for n in table) / 1e6
    progress.say(
        f"{where}: {layout.about}, {len(table)} tensors, {megabytes:,.1f} MB"
        + (f"; {narrow}, read as float32" if narrow else "")
    )
    filled = [tables.fill(*both, tensors, where) for both in zip(expanded, parts, strict=True)]
    return filled, table


def _scalars(tensors: Mapping[str, Tensor], layout: Layout) -> dict[str, int | float]:
    """Scalars that our model does not have, but whose values an export writes again."""
    return {
        name: tensor.read().item()
        for name, tensor in tensors.items()
        if tensor.shape in ((), (1,)) and tables.ignored_reason(layout.ignored, name)
    }
