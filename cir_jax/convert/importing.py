# SPDX-License-Identifier: Apache-2.0
"""Weights of a file -> the parameter trees of a model, with a record of where they came from."""

import collections
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cir_jax.convert import identify, tables
from cir_jax.convert.containers.tensors import Tensor
from cir_jax.convert.contract import Layout
from cir_jax.convert.sources import fingerprint, open_source
from cir_jax.models.contract import Functions, Params
from cir_jax.runtime import progress


@dataclass(frozen=True)
class Weights:
    """Parameters on the host.

    Attributes:
      index: path -> float32 array, what `reference` and `target` read.
      query: the same for `compose`; the very same object where they do not differ.
      record: where they came from, as JSON: files with sizes and hashes, layout, types that were
        not float32, integers that a PyTorch model wants back.
      files: tokenizer and image processor files that belong to them.
    """

    index: Params
    query: Params
    record: dict[str, Any]
    files: tuple[Path, ...] = ()


def read(place: str | Path, functions: Functions) -> Weights:
    """Reads the weights at `place` for a model, tensor by tensor.

    Raises:
      UserError: the file is damaged, holds another model or another size, or its tensors are not
        exactly those of the model; every difference is named.
    """
    source = open_source(place)
    layout, found, _ = identify.agreed(source, functions.config)
    where = f"{source.place}{found.group and f' ({found.group})'}"
    tensors = source.groups[found.group]
    if unread := [f"{n} ({len(g)} tensors)" for n, g in source.groups.items() if g is not tensors]:
        progress.say(f"{source.place} also holds {', '.join(unread)}: not read")
    rules = layout.rules(functions.config)
    query, table = _filled(where, layout, rules, functions, tensors)
    index, files = query, fingerprint(source)
    if beside := layout.index(source):
        other, rules = beside
        different, _ = _filled(f"{other.place} (index)", layout, rules, functions, other.groups[""])
        index = query | different
        files += [file for file in fingerprint(other) if file not in files]
    record = {
        "place": str(source.place.absolute()),
        "layout": layout.name,
        "container": source.container,
        "files": files,
        "values": source.values,
        "dtypes": {n: tensors[n].dtype for n in table if tensors[n].dtype != "float32"},
        "kept": _integers(tensors, layout),
    }
    return Weights(index, query, record, tuple(layout.files(source, functions.config)))


def _filled(
    where: str,
    layout: Layout,
    rules: list[tables.Rule],
    functions: Functions,
    tensors: Mapping[str, Tensor],
) -> tuple[Params, tables.Table]:
    """The leaves that `rules` are about, and their table."""
    part = tables.leaves(rules, functions.abstract)
    table = tables.expand(rules, part)
    tables.check(table, part, tensors, layout.ignored, where)
    types = collections.Counter(tensors[n].dtype for n in table)
    narrow = ", ".join(f"{count} of {name}" for name, count in types.items() if name != "float32")
    megabytes = sum(tensors[n].nbytes for n in table) / 1e6
    progress.say(
        f"{where}: {layout.about}, {len(table)} tensors, {megabytes:,.1f} MB"
        + (f"; {narrow}, read as float32" if narrow else "")
    )
    return tables.fill(table, part, tensors, where), table


def _integers(tensors: Mapping[str, Tensor], layout: Layout) -> dict[str, int]:
    """Scalars that our model does not have, but whose values an export writes again."""
    return {
        name: int(tensor.read())
        for name, tensor in tensors.items()
        if tensor.shape == ()
        and tensor.dtype.startswith("int")
        and tables.ignored_reason(layout.ignored, name)
    }
