# SPDX-License-Identifier: Apache-2.0
"""What a TPU's compiler makes of the programs that read a table of rows: do they copy it?

A bank, references and a gallery are the largest arrays on a device, and a copy of one in every step
costs its bytes twice. Run in a process that has libtpu (tools/slices.py):
`python -m tools.planning.tables v5e:2x4 CASES`, cases as JSON; prints what was found as JSON.
"""

import json
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from cir_jax.losses import in_bank, rows, sampled
from cir_jax.retrieval import candidates, ranking
from cir_jax.runtime import mesh as meshes
from tools import slices
from tools.planning import hlo

# Of a table: what is smaller is no copy of it, nor of a half of it.
_SHARE = 8
_NEGATIVES, _TOP = 1024, 50


@dataclass(frozen=True)
class Case:
    """A program, and the table that it reads.

    Attributes:
      program: a key of PROGRAMS.
      entries: N of the table.
      per_row: rows of an entry, K of targets or R of references.
      width: of a row, D or C.
      dtype: of the table.
      batch: queries, over all devices; no other size of the case.
    """

    program: str
    entries: int
    per_row: int
    width: int
    dtype: str = "float32"
    batch: int = 256


def compiled(on: str, cases: list[Case]) -> list[dict[str, Any]]:
    """What each case takes on one device of a TPU slice.

    Returns:
      for each {its own fields; "table", "arguments" and "temporaries" in bytes; "copies": {kind of
      instruction: bytes} of those that write a large part of the table to the device's memory;
      "collectives": {kind: bytes}}
    """
    mesh = meshes.make(devices=slices.devices(on))
    found = []
    for case in cases:
        case = replace(case, entries=-(-case.entries // mesh.size) * mesh.size)
        program, arguments = PROGRAMS[case.program](mesh, case)
        done = program.lower(*arguments).compile()
        text, memory = done.as_text(), done.memory_analysis()
        table = (
            case.entries // mesh.size * case.per_row * case.width * jnp.dtype(case.dtype).itemsize
        )
        copies: dict[str, float] = defaultdict(float)
        for kind, result, size in hlo.large(text, table / _SHARE):
            if case.batch not in hlo.dimensions(result):  # scores, and rows of queries, have it
                copies[kind] += size
        listed, _ = hlo.collectives(text, mesh)
        collectives: dict[str, float] = defaultdict(float)
        for one in listed:
            collectives[one.kind] += one.bytes
        found.append(
            asdict(case)
            | {
                "table": table,
                "arguments": memory.argument_size_in_bytes,
                "temporaries": memory.temp_size_in_bytes,
                "copies": dict(copies),
                "collectives": dict(collectives),
            }
        )
    return found


def _bank_loss(mesh: Mesh, case: Case) -> tuple[Any, tuple]:
    def loss(query, bank, label):
        options: dict[str, Any] = {"mesh": mesh, "per_row": case.per_row, "rows": case.entries - 5}
        return in_bank.bank_loss(query, bank, label, 0.02, **options).mean()

    return jax.jit(jax.value_and_grad(loss)), _of_queries(mesh, case, ())


def _sampled_loss(mesh: Mesh, case: Case) -> tuple[Any, tuple]:
    def loss(query, bank, label, negatives):
        options: dict[str, Any] = {"mesh": mesh, "per_row": case.per_row}
        return sampled.sampled_bank_loss(query, bank, label, negatives, 0.02, **options).mean()

    return jax.jit(jax.value_and_grad(loss)), _of_queries(mesh, case, (), (_NEGATIVES,))


def _of_queries(mesh: Mesh, case: Case, *columns: tuple[int, ...]) -> tuple:
    """Queries and columns of numbers as a batch has them, and the bank behind the queries."""
    batch = meshes.batch_sharding(mesh)
    query = _array((case.batch, case.width), jnp.float32, batch)
    ids = (_array((case.batch, *column), jnp.int32, batch) for column in columns)
    return query, _table(mesh, case, case.entries * case.per_row, case.width), *ids


def _lookup(mesh: Mesh, case: Case) -> tuple[Any, tuple]:
    def look(table, ids):
        return rows.lookup(table, ids, mesh).reshape(-1, case.per_row, case.width)

    table = _table(mesh, case, case.entries, case.per_row * case.width)
    ids = _array((case.batch,), jnp.int32, meshes.batch_sharding(mesh))
    return jax.jit(look, out_shardings=meshes.batch_sharding(mesh)), (table, ids)


def _ranks(mesh: Mesh, case: Case) -> tuple[Any, tuple]:
    query, column, gallery = _of_ranking(mesh, case)
    return ranking._programs(mesh)[0], (query, column, column, gallery, case.entries - 5)


def _top(mesh: Mesh, case: Case) -> tuple[Any, tuple]:
    query, column, gallery = _of_ranking(mesh, case)
    return ranking._programs(mesh)[1], (query, column, gallery, case.entries - 5, _TOP)


def _of_ranking(mesh: Mesh, case: Case) -> tuple:
    one = meshes.replicated(mesh)
    query = _array((case.batch, case.width), jnp.float32, one)
    gallery = _table(mesh, case, case.entries, case.per_row, case.width)
    return query, _array((case.batch,), jnp.int32, one), gallery


def _search(mesh: Mesh, case: Case) -> tuple[Any, tuple]:
    one, everywhere = meshes.replicated(mesh), meshes.row_sharding(mesh)
    vectors = _array((case.batch, 1, 1, case.width), jnp.float32, one)
    groups = ((vectors, _array((case.batch, 1), jnp.float32, one)),)
    flat = _table(mesh, case, case.entries * case.per_row, case.width)
    small = case.dtype == "int8"
    scales = _array(flat.shape[:1], jnp.float32, everywhere) if small else None
    program = candidates._program(mesh, case.per_row, _TOP, None)
    return program, (groups, flat, scales, None, None, 0, case.entries)


# Name -> the program as a run makes it, and the shapes of its arguments.
PROGRAMS: dict[str, Callable[[Mesh, Case], tuple[Any, tuple]]] = {
    "bank loss": _bank_loss, "sampled loss": _sampled_loss, "lookup": _lookup, "ranks": _ranks,
    "top": _top, "search": _search,
}  # fmt: skip


def _table(mesh: Mesh, case: Case, *shape: int) -> Any:
    return _array(shape, jnp.dtype(case.dtype), meshes.row_sharding(mesh))


def _array(shape: tuple[int, ...], dtype: Any, place: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=place)


if __name__ == "__main__":
    print(json.dumps(compiled(sys.argv[1], [Case(**one) for one in json.loads(sys.argv[2])])))
