# SPDX-License-Identifier: Apache-2.0
"""The few images that can be among the best, found by fast products on the devices.

Each device sorts out the best of its part of a block, and the host takes all that may belong to the
best of them all. A product in float32 is off by a known bound; images whose scores are that near to
the last of the best are taken too, and a device that may hold more of them is asked again. So
nothing is lost, whatever the devices, blocks or batches, and `cir_jax.retrieval.scoring` orders the
found by their exact scores.

Axis letters: N images, K rows of an image, D embedding, Q questions, b images of a block, M
masks.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from numpy.typing import NDArray

from cir_jax.losses.scores import scores
from cir_jax.retrieval import packing, ranking
from cir_jax.retrieval.search.asking import Terms
from cir_jax.retrieval.tables import Block, Table, power_below
from cir_jax.runtime import mesh as meshes

_PRODUCTS, _PRODUCTS_CPU = 2**28, 2**24  # of vectors and rows, on a device at a time
_MOST_QUERIES = 256  # in one program
# Of small rows that are float32 at a time on a CPU, where a cache holds them. Elsewhere it is a
# block: a TPU widens as it multiplies, and would copy all rows in every turn of a loop.
_WIDENED_VALUES_CPU = 2**20
_SPARE = 6  # columns beyond a block's share of the best
_LOWEST = float(np.finfo(np.float32).min)  # the score of what is no number: behind all that are


class Masks(NamedTuple):
    """`rows` [M, N]: positions that are candidates; `which` [Q]: the mask of each question."""

    rows: NDArray[np.bool_]
    which: NDArray[np.int32]


def find(
    table: Table,
    queries: Sequence[Terms],
    wanted: Sequence[int],
    masks: Masks | None = None,
    recall: float | None = None,
) -> list[NDArray[np.int64]]:
    """For each question positions in the table among which its best images are, in no order.

    Args:
      table: of the rows.
      queries: Q questions, of which only vectors, groups and weights are read.
      wanted: [Q] how many of the best must be among them.
      masks: what is a candidate; None for everything.
      recall: None for all of the best; else the share of them that `jax.lax.approx_max_k` aims at,
        which is faster than all on a TPU or GPU.
    """
    if not queries or not table.blocks:
        return [np.zeros(0, np.int64) for _ in queries]
    # Vectors of a question and rows of a block that meet on a device.
    largest = max(b.rows.shape[0] for b in table.blocks) // table.mesh.size
    each = max(len(q.vectors) for q in queries) * largest
    size = min(_MOST_QUERIES, max(1, (_PRODUCTS_CPU if table.on_cpu else _PRODUCTS) // each))
    found = []
    for start in range(0, len(queries), size):
        part = slice(start, start + size)
        mine = masks and masks._replace(which=masks.which[part])
        found += _find(table, queries[part], np.asarray(wanted[part]), mine, recall)
    return found


def _find(
    table: Table,
    queries: Sequence[Terms],
    wanted: NDArray[np.int64],
    masks: Masks | None,
    recall: float | None,
) -> list[NDArray[np.int64]]:
    packed, lengths = packing.pack(queries)
    # Twice the bound of a sum of D products, for what scales, groups and accelerators add to it.
    off = 2 * (table.width + 16) * 2.0**-24 * lengths * table.longest()
    most = int(wanted.max())
    if recall is None:  # of a block that turns out to have more, more is asked
        share = max(b.images for b in table.blocks) / len(table)
        most = min(most, 2 * math.ceil(share * most))
    asked = [packing.power(most + _SPARE)] * len(table.blocks)
    best: dict[int, _Best] = {}
    again = list(range(len(table.blocks)))
    while again:
        best |= _run(table, packed, masks, {i: asked[i] for i in again}, recall, len(queries))
        limit = _limit(list(best.values()), wanted)
        if recall is None:  # two scores may be off, in opposite directions
            limit = limit - 2 * off
            again = [i for i, one in best.items() if one.hides(limit)]
            for i in again:
                asked[i] *= 4
        else:
            again = []
    positions = np.concatenate([one.positions for one in best.values()], axis=1)
    values = np.concatenate([one.values for one in best.values()], axis=1)
    # -inf is no candidate; in float64 a limit loses nothing.
    taken = (values >= limit[:, None]) & (values > -np.inf)
    return [row[mine] for row, mine in zip(positions, taken, strict=True)]


class _Best(NamedTuple):
    """The best of a block.

    Attributes:
      positions: [Q, m] int64, in the table.
      values: [Q, m] float32, their fast scores; -inf where there is no candidate.
      last: [Q, devices] the worst value that each device gave, -inf where it has given all.
    """

    positions: NDArray[np.int64]
    values: NDArray[np.float32]
    last: NDArray[np.float32]

    def hides(self, limit: NDArray[np.float64]) -> bool:
        """Whether a device may hold more images at least as good as `limit` [Q]."""
        return bool(((self.last >= limit[:, None]) & (self.last > -np.inf)).any())


def _limit(found: Sequence[_Best], wanted: NDArray[np.int64]) -> NDArray[np.float64]:
    """[Q]: the last of the wanted best values found; -inf where there are not as many."""
    values = np.concatenate([one.values for one in found], axis=1)
    last = wanted - 1
    there = np.unique(last[last < values.shape[1]])
    if not len(there):
        return np.full(len(values), -np.inf)
    ordered = np.partition(-values, there, axis=1)
    worst = -ordered[np.arange(len(values)), np.minimum(last, values.shape[1] - 1)]
    return np.where(last < values.shape[1], worst.astype(np.float64), -np.inf)


def _run(
    table: Table,
    packed: Any,
    masks: Masks | None,
    asked: dict[int, int],
    recall: float | None,
    count: int,
) -> dict[int, _Best]:
    """The best of some blocks, of each (on each device) as many as are asked for."""
    mesh = table.mesh
    one = meshes.replicated(mesh)
    packed = jax.device_put(packed, one)
    queries = packed[0][0].shape[0]
    which = None
    if masks is not None:
        which = jax.device_put(np.resize(masks.which, queries), one)
    found: dict[int, _Best] = {}
    running: list[tuple[int, Any, int]] = []

    def finish() -> None:
        number, out, most = running.pop(0)
        index, values = (np.asarray(x)[:count] for x in out)
        last = values.reshape(count, mesh.size, most)[..., -1]
        whole = most * mesh.size >= table.blocks[number].rows.shape[0] // table.rows_per_image
        start = table.blocks[number].start
        last = np.full_like(last, -np.inf) if whole else last
        found[number] = _Best(index.astype(np.int64) + start, values, last)

    for number, most in asked.items():
        block = table.blocks[number].placed(mesh)
        held = block.rows.shape[0] // table.rows_per_image
        most = min(most, held // mesh.size)
        mask = None if masks is None else _mask(masks.rows, block, held, mesh)
        program = _program(mesh, table.rows_per_image, most, recall)
        with meshes.LAUNCH:
            out = program(packed, block.rows, block.scales, mask, which, block.first, block.images)
        running.append((number, out, most))
        # Bounds what is in flight. Products of many queries side by side take a CPU's cores from
        # each other; those of few wait for memory, and for being started.
        while len(running) > (0 if table.on_cpu and count > 4 else 2):
            finish()
    while running:
        finish()
    return found


def _mask(masks: NDArray[np.bool_], block: Block, held: int, mesh: Mesh) -> jax.Array:
    """[M, b] of a block, M a power of two."""
    part = np.zeros((packing.power(len(masks)), held), np.bool_)
    part[: len(masks), : block.images] = masks[:, block.start : block.start + block.images]
    spec = PartitionSpec(None, meshes.AXES)
    return jax.device_put(part, jax.sharding.NamedSharding(mesh, spec))


@lru_cache(maxsize=256)
def _program(mesh: Mesh, each: int, most: int, recall: float | None) -> Callable:
    """(groups, rows, scales, mask, which, first, images) -> index and values [Q, devices most]."""

    widened = _WIDENED_VALUES_CPU if mesh.devices.flat[0].platform == "cpu" else 0

    def best(groups, rows, scales, mask, which, first, images):
        score = _scores(groups, rows, scales, each, widened)
        here = score.shape[1]
        start = jax.lax.axis_index(meshes.AXES) * here

        def guarded(score: jax.Array, column: jax.Array) -> jax.Array:
            index = start + column
            score = jnp.where(jnp.abs(score) <= -_LOWEST, score, _LOWEST)  # NaN and infinite
            return jnp.where((index >= first) & (index < images), score, -jnp.inf)

        read: Callable | None = guarded
        if mask is not None or recall is not None:
            score = guarded(score, jnp.arange(here)[None])
            read = None
        if mask is not None:
            score = jnp.where(mask[which], score, -jnp.inf)
        if recall is None:
            values, column = ranking.top_columns(score, most, read)
        else:
            values, column = jax.lax.approx_max_k(score, most, recall_target=recall)
        return start + column, values

    along, whole = PartitionSpec(meshes.AXES), PartitionSpec()
    columns = PartitionSpec(None, meshes.AXES)
    return jax.jit(
        jax.shard_map(
            best,
            mesh=mesh,
            in_specs=(whole, along, along, columns, whole, whole, whole),
            out_specs=(columns, columns),
            check_vma=False,
        )
    )


def _scores(
    groups: Any, rows: jax.Array, scales: jax.Array | None, each: int, widened: int
) -> jax.Array:
    """[Q, b] of rows [b K, D]; small rows are widened `widened` values at a time, 0 for all."""
    count, width = rows.shape
    pieces = min(count // each, power_below(count * width // widened)) if widened else 1
    if rows.dtype == jnp.float32 or pieces == 1:
        return _widened_scores(groups, rows.astype(jnp.float32), scales, each)
    size = count // pieces

    def piece(number):
        cut = partial(jax.lax.dynamic_slice_in_dim, start_index=number * size, slice_size=size)
        part = cut(rows).astype(jnp.float32)
        return _widened_scores(groups, part, None if scales is None else cut(scales), each)

    found = jax.lax.map(piece, jnp.arange(pieces))
    return found.transpose(1, 0, 2).reshape(found.shape[1], -1)


def _widened_scores(groups: Any, rows: jax.Array, scales: jax.Array | None, each: int) -> jax.Array:
    total: Any = 0
    for vectors, weights in groups:
        queries, number, size, width = vectors.shape
        products = scores(vectors.reshape(-1, width), rows[:, None])
        if scales is not None:
            products = products * scales[None]
        split = products.reshape(queries, number, size, -1, each)
        best = split.max(axis=(2, 4)) if size * each > 1 else split[:, :, 0, :, 0]
        for group in range(number):
            total = total + weights[:, group, None] * best[:, group]
    return total
