# SPDX-License-Identifier: Apache-2.0
"""Parameter trees of ours -> a file or folder of another project, by the rules that read it.

A file of PyTorch holds one model. What retrieves is the image side of the index and the text side
of the query, and that is what is written; the two trees can also be written apart.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cir_jax.convert import identify, tables, tied
from cir_jax.convert.containers.tensors import FLOATS, Tensor
from cir_jax.convert.layout import Layout, Written
from cir_jax.errors import UserError, nearest
from cir_jax.params import TEMPERATURE, ModelParams, Params

TREES = ("retrieval", "index", "query")
SOURCE = "source"  # --dtype: every tensor in the type it came in
DTYPES = (SOURCE, *(name for name in FLOATS if name != "float64"))


def formats(model: str) -> dict[str, Layout]:
    """Name -> layout that can be written, for a model."""
    return {layout.name: layout for layout in identify.layouts(model) if layout.write}


def write(
    place: str | Path,
    functions: ModelParams,
    index: Params,
    query: Params,
    *,
    layout: str,
    tree: str = "retrieval",
    dtype: str = "float32",
    record: Mapping[str, Any] | None = None,
    epoch: int = 0,
    temperature: float = 0.0,
    files: Sequence[Path] = (),
    data: Mapping[str, Any] | None = None,
    golden: bytes = b"",
) -> list[Path]:
    """Writes weights; what was at `place` is replaced only by a whole file.

    Args:
      place: a file, or a folder for layouts that are one.
      functions: the model.
      index, query: its two trees.
      layout: name of a layout of `formats`.
      tree: "retrieval" (what `reference` and `target` read from the index, all else from the
        query), "index" or "query".
      dtype: of every tensor, or "source": as the weights came in, where that is known.
      record: the record of the import that the weights descend from.
      epoch: for layouts that say it.
      temperature: the same, of a run that did not learn it; 0 if there was none.
      files: tokenizer and image processor files to take along.
      data: the `data` section of the config, for layouts that say how images are padded; None if
        that is not known.
      golden: see `Written`.

    Returns:
      The files written.

    Raises:
      UserError: an unknown layout, tree or type, or the place cannot be written.
    """
    chosen, record = check(functions, layout, tree, dtype), record or {}
    rules, apart = chosen.rules_of(functions), chosen.index_rules(functions.config)
    if tree == "retrieval" and chosen.two_trees:
        params = query
    else:
        single = set(tables.leaves(rules, functions.abstract))
        single -= tables.leaves(apart, functions.abstract).keys()
        params = _tree(functions, index, query, tree, single)
    differ = [p for p in functions.abstract if tree == "retrieval" and _differ(index[p], params[p])]
    beside = tables.leaves(apart, index if tree == "retrieval" else params)
    parts = ((rules, tables.leaves(rules, params)), (apart, beside))
    expanded = [(tables.expand(*part), part[1]) for part in parts]
    dtypes = _dtypes([name for table, _ in expanded for name in table], dtype, layout, record)
    tensors = _tensors(chosen, expanded, dtypes, record)
    tau = float(query.get(TEMPERATURE, temperature))
    written = Written(
        functions.config, index, tuple(differ), epoch, tau, tuple(files), dtypes, data or {}, golden
    )
    assert chosen.write is not None  # `formats` has no other
    return chosen.write(Path(place), tensors, written)


def check(functions: ModelParams, layout: str, tree: str, dtype: str) -> Layout:
    """The layout of that name, if this model can be written so; arguments as for `write`.

    Raises:
      UserError: an unknown layout, tree or type.
    """
    if getattr(functions, "embedder", None) is not None:
        raise UserError(
            f"{functions.config.name} {functions.config.tower} is an embedder of others and a head "
            "on it, which no file of weights says; its run folder is all there is of it"
        )
    _check_choice("--tree", tree, TREES)
    _check_choice("--dtype", dtype, DTYPES)
    known = formats(functions.config.name)
    _check_choice("--format", layout, known)
    return known[layout]


def _check_choice(flag: str, value: str, choices: Collection[str]) -> None:
    if value not in choices:
        raise UserError(
            f"{flag}={value} is unknown; there are: {', '.join(choices)}.{nearest(value, choices)}"
        )


def _dtypes(
    names: Sequence[str], dtype: str, layout: str, record: Mapping[str, Any]
) -> Mapping[str, str]:
    """Tensor name -> type to write; what has no entry is float32."""
    if dtype != SOURCE:
        return dict.fromkeys(names, dtype)
    if record.get("layout", layout) != layout:
        raise UserError(
            f"--dtype=source: these weights came as {record['layout']}, whose tensors are not "
            f"those of {layout}; give --dtype float32, or --format {record['layout']}"
        )
    return record.get("dtypes", {})


def _tensors(
    chosen: Layout,
    expanded: Sequence[tuple[tables.Table, Params]],
    dtypes: Mapping[str, str],
    record: Mapping[str, Any],
) -> dict[str, Tensor]:
    """Everything that goes into the file: of each table, copies, and what PyTorch wants beside."""
    tensors: dict[str, Tensor] = {}
    for table, values in expanded:
        tensors |= tables.tensors_of(table, values, dtypes)
    tensors |= {copy: tensors[of] for copy, of in tied.names(chosen.copied, tensors).items()}
    return tensors | chosen.extra(tensors, record.get("kept", {}))


def _tree(
    functions: ModelParams, index: Params, query: Params, tree: str, single: set[str]
) -> Params:
    """The parameters of the one model that is written; `single` are the leaves it has once."""
    if tree != "retrieval":
        return index if tree == "index" else query
    shared = single.intersection(functions.index_paths)
    clash = [p for p in shared.intersection(functions.query_paths) if _differ(index[p], query[p])]
    if clash:
        raise UserError(
            f"index and query both read {', '.join(sorted(clash)[:3])} ({len(clash)} in all), and "
            "differ there: no single model is both. Write --tree index and --tree query, or "
            "--format safetensors, which holds both"
        )
    return {p: index[p] if p in shared else query[p] for p in functions.abstract}


def _differ(a: Any, b: Any) -> bool:
    return a is not b and not np.array_equal(np.asarray(a), np.asarray(b))
