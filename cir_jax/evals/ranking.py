# SPDX-License-Identifier: Apache-2.0
"""Ranks by counting: a rank is the number of candidates ahead of the target, never a sorted list.

Score = max over K of <query, target row>. Equal scores are ordered by gallery row, so the result
does not depend on a sort. A score that is not a number is ahead of everything: a model that
diverged gets the worst ranks, not the best ones.

The queries are worked off in blocks, so that no [Q, G] array exists; the gallery's rows are sharded
over all devices. Within a block the comparison and the count join the matrix product in one
program: a sixth more than the bare product of 6,000 x 15,000 x 640 (measured on a CPU).
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from cir_jax.negatives.scores import scores
from cir_jax.runtime import mesh as meshes

_BLOCK_SCORES = 2**25  # scores held at once, 128 MiB over all devices
_BLOCK_QUERIES = 2048


def count_ranks(
    query: np.ndarray,
    gallery: np.ndarray,
    target: np.ndarray,
    removed: np.ndarray | None = None,
    *,
    mesh: Mesh,
) -> np.ndarray:
    """[Q] int32: candidates ahead of each query's target; 0 is best.

    Args:
      query: [Q, D] float32.
      gallery: [G, K, D] float32.
      target: [Q] gallery row of the target.
      removed: [Q] gallery row that is no candidate, -1 for none; None for none at all.
      mesh: devices to use.

    Raises:
      ValueError: a target is no row of the gallery, or is the removed one.
    """
    target, removed = _rows(target), _removed(removed, len(query))
    if target.min() < 0 or target.max() >= len(gallery) or (target == removed).any():
        raise ValueError("every target must be a row of the gallery, and not the removed one")
    count = _programs(mesh)[0]
    return _blocks(lambda *b: count(*b, len(gallery)), query, gallery, (target, removed), mesh)


def top_rows(
    query: np.ndarray,
    gallery: np.ndarray,
    k: int,
    removed: np.ndarray | None = None,
    *,
    mesh: Mesh,
) -> tuple[np.ndarray, np.ndarray]:
    """The best `k` gallery rows of each query: rows [Q, k] int32 and scores [Q, k], best first.

    Arguments as for `count_ranks`.

    Raises:
      ValueError: there are fewer than `k` candidates.
    """
    removed = _removed(removed, len(query))
    candidates = len(gallery) - bool((removed >= 0).any())
    if not 1 <= k <= candidates:
        raise ValueError(f"top {k} of {candidates} candidates; ask for 1 to {candidates}")
    top = _programs(mesh)[1]
    return _blocks(lambda *b: top(*b, len(gallery), k), query, gallery, (removed,), mesh)


def member_order(
    query: np.ndarray,
    gallery: np.ndarray,
    members: np.ndarray,
    removed: np.ndarray | None = None,
) -> np.ndarray:
    """[Q, M] int32: each query's member rows, best first; -1 fills up at the end.

    Reads only the rows of the members, in float32 on the host: there are six per query in CIRR.

    Args:
      query: [Q, D].
      gallery: [G, K, D].
      members: [Q, M] gallery rows, -1 for none.
      removed: as for `count_ranks`.
    """
    members = _rows(members)
    removed = _removed(removed, len(query))
    gone = (members < 0) | (members == removed[:, None])
    score = np.empty(members.shape, np.float32)
    for start in range(0, len(query), 256):  # [256, M, K, D] at a time
        part = slice(start, start + 256)
        products = np.einsum("bd,bmkd->bmk", query[part], gallery[members[part]])
        score[part] = products.max(axis=-1)
    score[np.isnan(score)] = np.inf  # ahead of everything, as in `count_ranks`
    # Three keys, the last one first: members before gaps, higher scores first, lower rows first.
    order = np.lexsort((members, -score, gone), axis=-1)
    return np.where(
        np.take_along_axis(gone, order, 1), -1, np.take_along_axis(members, order, 1)
    ).astype(np.int32)


def subset_ranks(
    query: np.ndarray,
    gallery: np.ndarray,
    target: np.ndarray,
    members: np.ndarray,
    removed: np.ndarray | None = None,
) -> np.ndarray:
    """[Q] int32: members ahead of each query's target. Arguments as above.

    Raises:
      ValueError: not exactly one member of a query is its target.
    """
    hits = member_order(query, gallery, members, removed) == _rows(target)[:, None]
    if (hits.sum(axis=1) != 1).any():
        raise ValueError("exactly one member of every query must be its target")
    return hits.argmax(axis=1).astype(np.int32)


def _blocks(
    program: Callable,
    query: np.ndarray,
    gallery: np.ndarray,
    columns: tuple[np.ndarray, ...],
    mesh: Mesh,
) -> Any:
    """Runs `program(query [b, D], *columns [b], gallery)` over all queries, b at a time."""
    candidates = _place_rows(gallery, mesh)
    most = max(8, min(_BLOCK_QUERIES, _BLOCK_SCORES // (gallery.shape[0] * gallery.shape[1])))
    size = -(-len(query) // -(-len(query) // most))  # equal blocks: the last one pads little
    replicated = meshes.replicated(mesh)
    pieces = []
    for start in range(0, len(query), size):
        rows = np.minimum(np.arange(start, start + size), len(query) - 1)
        placed = [_place(x[rows], replicated) for x in (query.astype(np.float32), *columns)]
        pieces.append(program(*placed, candidates))
        if len(pieces) > 2:  # bounds what is in flight on the device
            jax.block_until_ready(pieces[-3])
    joined = jax.tree.map(lambda *parts: np.concatenate([np.asarray(p) for p in parts]), *pieces)
    return jax.tree.map(lambda x: x[: len(query)], joined)


@lru_cache(maxsize=8)
def _programs(mesh: Mesh) -> tuple[Callable, Callable]:
    """(count, top), compiled for a mesh; the results are on every device of every process."""

    def count(query, target, removed, gallery, rows):
        score = scores(query, gallery)
        row, target = jnp.arange(gallery.shape[0])[None], target[:, None]
        own = jnp.take_along_axis(score, target, axis=1)
        # Negated comparisons are true for NaN. Lower rows win ties, so `<=` is asked behind it.
        ahead = jnp.where(row < target, ~(score < own), ~(score <= own))
        candidate = (row < rows) & (row != removed[:, None]) & (row != target)
        return jnp.sum(ahead & candidate, axis=1, dtype=jnp.int32)

    def top(query, removed, gallery, rows, k):
        score = scores(query, gallery)
        row = jnp.arange(gallery.shape[0])[None]
        candidate = (row < rows) & (row != removed[:, None])
        # top_k gives equal scores in the order of their rows.
        best, index = jax.lax.top_k(jnp.where(candidate, score, -jnp.inf), k)
        return index, best

    replicated = meshes.replicated(mesh)
    return (
        jax.jit(count, out_shardings=replicated),
        jax.jit(top, static_argnums=4, out_shardings=replicated),
    )


def _place_rows(gallery: np.ndarray, mesh: Mesh) -> jax.Array:
    """[G, K, D] padded with zero rows to the number of devices, rows over all of them."""
    short = -len(gallery) % mesh.size
    padded = np.pad(np.asarray(gallery, np.float32), ((0, short), (0, 0), (0, 0)))
    return _place(padded, meshes.row_sharding(mesh))


def _place(host: np.ndarray, sharding: jax.sharding.NamedSharding) -> jax.Array:
    if jax.process_count() == 1:
        return jax.device_put(host, sharding)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def _rows(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows, np.int32)


def _removed(removed: np.ndarray | None, queries: int) -> np.ndarray:
    return np.full(queries, -1, np.int32) if removed is None else _rows(removed)
