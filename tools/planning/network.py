# SPDX-License-Identifier: Apache-2.0
"""The collectives of a step by shapes, for devices that no compiler here knows.

Counted are gradients, parameters that are split over "data", and what the loss exchanges. Not
counted is what layers exchange over "model": the compiler decides that.
"""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp

from cir_jax.runtime import mesh as meshes
from cir_jax.runtime import sharding
from tools.planning.hlo import Collective
from tools.planning.program import Program

# Tables of tokens, see `sharding.lookup`.
_TABLE = re.compile(r"(^|/)(token_embedding|embeddings/words)$")


def by_shapes(program: Program) -> list[Collective]:
    """The collectives of a step, largest first; gradients in float32."""
    setup = program.setup
    data = setup.mesh.shape[meshes.DATA]
    trained, _, fixed = program.arguments[:3]
    found: list[Collective] = []

    def add(kind: str, axes: str, devices: int, times: int, size: float) -> None:
        if devices > 1 and size:
            found.append(Collective(kind, axes, devices, times, size))

    ids = setup.config.batch * program.text
    tables = {
        path: x
        for path, x in trained.items()
        if _TABLE.search(path) and sharding.as_rows(len(x), ids, setup.mesh)
    }
    whole = [x for path, x in trained.items() if path not in tables]
    over_data = [x for x in trained.values() if _over_data(x)]
    copied = [x for x in whole if not _over_data(x)]
    held = [x for x in jax.tree.leaves(fixed) if _over_data(x)]
    add("all-reduce", meshes.DATA, data, len(copied), sum(map(_gathered, copied)))
    summed = [x for x in whole if _over_data(x)]
    add("reduce-scatter", meshes.DATA, data, len(summed), sum(map(_gathered, summed)))
    for table in tables.values():  # the gradients of the rows that a batch reads, and their ids
        add("all-gather", meshes.DATA, data, 2, 4.0 * ids * (table.shape[1] + 1))
    again = 2 * len(over_data) + len(held)  # for the forward and for the backward pass
    gathered = 2 * sum(map(_gathered, over_data)) + sum(map(_gathered, held))
    add("all-gather", meshes.DATA, data, again, gathered)
    batch = setup.config.batch
    rows, width = setup.functions.target_shape
    if not program.place:
        size = 4.0 * batch * rows * width
        add("all-gather", meshes.DATA, data, 1, size)
        add("reduce-scatter", meshes.DATA, data, 1, size)
    else:
        everywhere = "+".join(a for a in meshes.AXES if setup.mesh.shape[a] > 1)
        add("all-gather", meshes.DATA, data, 1, 4.0 * batch * width)
        add("all-reduce", everywhere, setup.mesh.size, 2, 2 * 4.0 * batch * width)
        if program.place == "device":
            size = 4.0 * batch * math.prod(setup.functions.reference_shape)
            add("reduce-scatter", meshes.DATA, data, 1, size)
    joined: dict[tuple[str, str, int], tuple[int, float]] = {}
    for one in found:
        key = one.kind, one.axes, one.devices
        times, size = joined.get(key, (0, 0.0))
        joined[key] = times + one.times, size + one.bytes
    listed = [Collective(*key, *value) for key, value in joined.items()]
    return sorted(listed, key=lambda c: -c.bytes)


def _over_data(x: Any) -> bool:
    return any(meshes.DATA in (a if isinstance(a, tuple) else (a,)) for a in x.sharding.spec if a)


def _gathered(x: Any) -> float:
    """Bytes that a device has of an array while it is used: whole along "data"."""
    split = x.sharding.mesh.shape[meshes.DATA] if _over_data(x) else 1
    return math.prod(x.sharding.shard_shape(x.shape)) * split * jnp.dtype(x.dtype).itemsize
