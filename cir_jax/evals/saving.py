# SPDX-License-Identifier: Apache-2.0
"""Writes what a model answered to files that other programs read: rankings, and features.

    rankings.jsonl, rankings.parquet      a record per query, see `answers.records`
    features.npz, features.safetensors    the encoded queries [Q, D] and images [G, K, D], by name

Where a benchmark has several parts (FashionIQ's categories), a record says its part, and the names
of arrays begin with it: "dress/queries".
"""

import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import jax
import numpy as np

from cir_jax import files
from cir_jax.convert.containers import safe_tensors, tensors
from cir_jax.errors import UserError, nearest
from cir_jax.evals.answers import Answers, records
from cir_jax.evals.benchmark import Benchmark, Result
from cir_jax.retrieval.retriever import Retriever

FORMATS = {"rankings": ("jsonl", "parquet"), "features": ("npz", "safetensors")}
_FILES = tuple(f"{what}.{suffix}" for what, suffixes in FORMATS.items() for suffix in suffixes)
_GROUP = 1024  # records that are written at once


def parse(text: str) -> tuple[str, ...]:
    """The files that `--save` asks for: "rankings,features.npz" is both of rankings and one more.

    Raises:
      UserError: there is no such thing to save.
    """
    chosen = []
    for word in filter(None, (word.strip() for word in text.split(","))):
        if word in FORMATS:
            chosen += [f"{word}.{suffix}" for suffix in FORMATS[word]]
        elif word in _FILES:
            chosen.append(word)
        else:
            there = (*FORMATS, *_FILES)
            raise UserError(
                f"--save={text}: there is no {word!r} to save; there are: {', '.join(there)}."
                f"{nearest(word, there)}"
            )
    return tuple(dict.fromkeys(chosen))


def run(benchmark: Benchmark, retriever: Retriever, name: str) -> tuple[Result, list[Answers]]:
    """What a benchmark finds, with the answers to all its queries.

    Args:
      benchmark: see `benchmark.build`.
      retriever: the model.
      name: of the benchmark, for messages.

    Raises:
      UserError: a benchmark of a file that keeps no answers.
    """
    kept: list[Answers] = []
    takes = inspect.signature(benchmark.run).parameters
    result = benchmark.run(retriever, kept) if "kept" in takes else None  # type: ignore[call-arg]
    if result is None or not kept:
        raise UserError(
            f"eval.benchmark={name} keeps no answers of single queries, so there is nothing for "
            "--save; give its run(retriever, kept=None) and append "
            "cir_jax.evals.answers.Answers to the list, or leave --save out"
        )
    return result, kept


def write(
    folder: str | Path,
    wanted: Sequence[str],
    retriever: Retriever,
    answers: Sequence[Answers],
    count: int,
) -> list[Path]:
    """Writes files of `_FILES` to `folder`, each whole or not at all.

    Args:
      folder: of the results.
      wanted: names of files.
      retriever: the model.
      answers: of all parts of the benchmark.
      count: images per ranking.

    Returns:
      The files; [] in every process but the first, which writes. Every process calls this.

    Raises:
      UserError: a name cannot be written, or the disk is full.
    """
    first, folder = jax.process_index() == 0, Path(folder)
    written = []
    rankings = [name for name in wanted if name.startswith("rankings")]
    if rankings:
        every = (record for one in answers for record in records(retriever, one, count))
        with ExitStack() as stack:
            add = [_RANKINGS[Path(n).suffix](stack, folder / n) for n in rankings if first]
            while part := list(islice(every, _GROUP)):
                for writer in add:
                    writer(part)
        written += [folder / name for name in rankings]
    for name in wanted:
        if name.startswith("features") and first:
            with files.whole(folder / name) as file:
                _FEATURES[Path(name).suffix](file, answers)
            written.append(folder / name)
    return written if first else []


_Add = Callable[[list[dict[str, Any]]], None]


def _json_lines(stack: ExitStack, path: Path) -> _Add:
    file = stack.enter_context(files.whole(path))

    def add(part: list[dict[str, Any]]) -> None:
        file.write("".join(json.dumps(record) + "\n" for record in part).encode())

    return add


def _parquet(stack: ExitStack, path: Path) -> _Add:
    import pyarrow as pa  # takes a second to import
    from pyarrow import parquet

    types = {
        "excluded": pa.list_(pa.string()),
        "right": pa.list_(pa.string()),
        "right_ranks": pa.list_(pa.int32()),
        "ranked": pa.list_(pa.string()),
        "scores": pa.list_(pa.float32()),
        "values": pa.map_(pa.string(), pa.float64()),
    }
    file = stack.enter_context(files.whole(path))
    writers: list[Any] = []

    def add(part: list[dict[str, Any]]) -> None:
        ranks = {key: pa.int32() for key in part[0] if key.endswith("rank")}
        fields = {key: (types | ranks).get(key, pa.string()) for key in part[0]}
        rows = [record | {"values": list(record["values"].items())} for record in part]
        try:
            table = pa.Table.from_pylist(rows, schema=pa.schema(list(fields.items())))
        except UnicodeEncodeError as error:
            raise UserError(
                f"{path}: {error.object!r} is no UTF-8, which Parquet needs; rename that image, or "
                "save rankings.jsonl"
            ) from None
        if not writers:
            writers.append(stack.enter_context(parquet.ParquetWriter(file, table.schema)))
        writers[0].write_table(table)

    return add


def _arrays(answers: Sequence[Answers]) -> Iterator[tuple[str, np.ndarray, list[str], str]]:
    """(name of an array, the array, names of its rows, what these are called)."""
    for one in answers:
        before = f"{one.part}/" if one.part else ""
        ids = [triplet.query_id for triplet in one.task.triplets]
        yield f"{before}queries", np.asarray(one.query, np.float32), ids, f"{before}query_ids"
        images = np.asarray(one.gallery, np.float32)
        yield f"{before}images", images, list(one.task.names), f"{before}names"


def _npz(file: BinaryIO, answers: Sequence[Answers]) -> None:
    arrays: dict[str, np.ndarray] = {}
    for name, values, rows, called in _arrays(answers):
        arrays |= {name: values, called: np.asarray(rows, np.str_)}
    np.savez(file, **arrays)  # type: ignore[arg-type]


def _safetensors(file: BinaryIO, answers: Sequence[Answers]) -> None:
    held, names = {}, {}
    for name, values, rows, called in _arrays(answers):
        held[name], names[called] = tensors.of(values), json.dumps(rows)
    safe_tensors.write(file, held, names)


_RANKINGS: Mapping[str, Callable[[ExitStack, Path], _Add]] = {
    ".jsonl": _json_lines, ".parquet": _parquet,
}  # fmt: skip
_FEATURES: Mapping[str, Callable[[BinaryIO, Sequence[Answers]], None]] = {
    ".npz": _npz, ".safetensors": _safetensors,
}  # fmt: skip
