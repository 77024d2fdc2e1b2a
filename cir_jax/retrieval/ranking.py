# SPDX-License-Identifier: Apache-2.0
"""Ranks by counting: a rank is the number of candidates ahead of the target, never a sorted list.

Score = max over K of <query, target row>. Equal scores are ordered by gallery row, so the result
does not depend on a sort. A score that is not a number is ahead of everything: a model that
diverged gets the worst ranks, not the best ones.

The queries are worked off in blocks, so that no [Q, G] array exists; the gallery's rows are sharded
over all devices. Within a block the comparison and the count join the matrix product in one
program: a sixth more than the bare product of 6,000 x 15,000 x 640 (measured on a CPU).
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from cir_jax.losses.scores import scores
from cir_jax.runtime import mesh as meshes

_BLOCK_SCORES = 2**25  # scores held at once, 128 MiB over all devices
_BLOCK_QUERIES = 2048
_PIECE = 64  # columns of scores of which the maximum is taken first
_BLOCK_VALUES = 2**28  # of a gallery that is worked off in blocks: 1 GiB over all devices


class Placed(NamedTuple):
    """A gallery on the devices, for several rankings: `rows` of [G, K, D] are no padding."""

    gallery: jax.Array
    rows: int

    def __len__(self) -> int:
        return self.rows


def place(gallery: np.ndarray, mesh: Mesh, least: int = 0) -> Placed:
    """[G, K, D] over all devices of the mesh, in float32; filled with zero rows to their number.

    The host's array is not copied: each device takes its rows, and only the last ones are filled.

    Args:
      gallery: of the images.
      mesh: devices to use.
      least: rows to fill up to, so that the last of several blocks has the shape of the others.
    """
    each = -(-max(len(gallery), least) // mesh.size)

    def rows(index: Any) -> np.ndarray:
        start = index[0].start or 0
        return _shard(gallery, start, start + each)

    shape = (each * mesh.size, *gallery.shape[1:])
    whole = jax.make_array_from_callback(shape, meshes.row_sharding(mesh), rows)
    return Placed(whole, len(gallery))


def count_ranks(
    query: np.ndarray,
    gallery: np.ndarray | Placed,
    target: np.ndarray,
    removed: np.ndarray | None = None,
    *,
    mesh: Mesh,
) -> np.ndarray:
    """[Q] int32: candidates ahead of each query's target; 0 is best.

    Args:
      query: [Q, D] float32.
      gallery: [G, K, D] float32, or what `place` made of it on this mesh.
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
    gallery: np.ndarray | Placed,
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
    return _top(query, gallery, k, removed, mesh)


def top_in_blocks(
    query: np.ndarray,
    gallery: np.ndarray,
    k: int,
    left_out: Sequence[Sequence[int]] = (),
    *,
    block: int = 0,
    mesh: Mesh,
) -> tuple[np.ndarray, np.ndarray]:
    """As `top_rows`, of a gallery that need not fit the devices, without several rows per query.

    Args:
      query: [Q, D] float32.
      gallery: [G, K, D].
      k: of the rows to find.
      left_out: rows that are no candidates, for each query; () for none at all.
      block: rows on the devices at a time; 0 is 1 GiB of them.
      mesh: devices to use.

    Returns:
      (rows [Q, k] int64, scores [Q, k] float32), best first.

    Raises:
      ValueError: a query has fewer than `k` candidates.
    """
    images, each, width = gallery.shape
    fewest = images - max((len(set(rows)) for rows in left_out), default=0)
    if not 1 <= k <= fewest:
        raise ValueError(f"top {k} of {fewest} candidates; ask for 1 to {fewest}")
    # Whatever is left out of the best so many, k of them remain. A power of two: few programs.
    wanted = k if fewest == images else min(images, 1 << (k + images - fewest - 1).bit_length())
    size = min(images, block or max(1, _BLOCK_VALUES // (each * width)))
    best = np.empty((len(query), 0), np.int64), np.empty((len(query), 0), np.float32)
    for start in range(0, images, size):
        part = place(gallery[start : start + size], mesh, size)
        rows, scores = _top(query, part, min(wanted, size), _removed(None, len(query)), mesh)
        best = _better(best, (rows.astype(np.int64) + start, scores), wanted)
    if fewest == images:
        return best
    gone = [np.isin(row, out) for row, out in zip(best[0], left_out, strict=True)]
    kept = np.argsort(gone, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(best[0], kept, 1), np.take_along_axis(best[1], kept, 1)


def _better(
    first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray], count: int
) -> tuple[np.ndarray, np.ndarray]:
    """The best `count` of two (rows, scores), each best first and the second of higher rows."""
    rows, scores = (np.concatenate(both, axis=1) for both in zip(first, second, strict=True))
    # What is no number first, then by score; stable, so equal scores stay in the order of rows.
    broken = np.isnan(scores)
    order = np.lexsort((np.where(broken, 0, -scores), ~broken), axis=1)[:, :count]
    return np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1)


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


def _top(
    query: np.ndarray, gallery: np.ndarray | Placed, k: int, removed: np.ndarray, mesh: Mesh
) -> tuple[np.ndarray, np.ndarray]:
    top, images = _programs(mesh)[1], len(gallery)
    return _blocks(lambda *b: top(*b, images, k), query, gallery, (removed,), mesh)


def _blocks(
    program: Callable,
    query: np.ndarray,
    gallery: np.ndarray | Placed,
    columns: tuple[np.ndarray, ...],
    mesh: Mesh,
) -> Any:
    """Runs `program(query [b, D], *columns [b], gallery)` over all queries, b at a time."""
    placed = gallery if isinstance(gallery, Placed) else place(gallery, mesh)
    candidates, each = placed.gallery, placed.rows * placed.gallery.shape[1]
    most = max(8, min(_BLOCK_QUERIES, _BLOCK_SCORES // each))
    size = -(-len(query) // -(-len(query) // most))  # equal blocks: the last one pads little
    replicated = meshes.replicated(mesh)
    pieces = []
    for start in range(0, len(query), size):
        rows = np.minimum(np.arange(start, start + size), len(query) - 1)
        block = [_place(x[rows], replicated) for x in (query.astype(np.float32), *columns)]
        with meshes.LAUNCH:
            pieces.append(program(*block, candidates))
        if len(pieces) > 2:  # bounds what is in flight on the device
            jax.block_until_ready(pieces[-3])
    joined = jax.tree.map(lambda *parts: np.concatenate([np.asarray(p) for p in parts]), *pieces)
    return jax.tree.map(lambda x: x[: len(query)], joined)


@lru_cache(maxsize=8)
def _programs(mesh: Mesh) -> tuple[Callable, Callable]:
    """(count, top), compiled for a mesh; the results are on every device of every process."""

    def count(query, target, removed, gallery, rows):
        score = _best(query, gallery)
        row, target = jnp.arange(gallery.shape[0])[None], target[:, None]
        own = jnp.take_along_axis(score, target, axis=1)
        # Negated comparisons are true for NaN. Lower rows win ties, so `<=` is asked behind it.
        ahead = jnp.where(row < target, ~(score < own), ~(score <= own))
        candidate = (row < rows) & (row != removed[:, None]) & (row != target)
        return jnp.sum(ahead & candidate, axis=1, dtype=jnp.int32)

    def top(query, removed, gallery, rows, k):
        # The best of each device first, so that no device gets the scores of another.
        def of_device(query, removed, gallery, rows):
            score, first = _best(query, gallery), jax.lax.axis_index(meshes.AXES) * len(gallery)
            row = first + jnp.arange(len(gallery))[None]
            candidate = (row < rows) & (row != removed[:, None])
            most = min(k, len(gallery))
            best, column = top_columns(jnp.where(candidate, score, -jnp.inf), most)
            return first + column, best

        index, best = jax.shard_map(
            of_device,
            mesh=mesh,
            in_specs=(whole, whole, along, whole),
            out_specs=PartitionSpec(None, meshes.AXES),
            check_vma=False,
        )(query, removed, gallery, rows)
        # Equal ones are in the order of rows: on a device, and one device behind the other.
        best, place = jax.lax.top_k(best, k)
        return jnp.take_along_axis(index, place, axis=1), best

    along, whole = PartitionSpec(meshes.AXES), PartitionSpec()
    replicated = meshes.replicated(mesh)
    return (
        jax.jit(count, out_shardings=replicated),
        jax.jit(top, static_argnums=4, out_shardings=replicated),
    )


def top_columns(
    score: jax.Array, k: int, read: Callable[[jax.Array, jax.Array], jax.Array] | None = None
) -> tuple[jax.Array, jax.Array]:
    """As `jax.lax.top_k` of [B, N]: values and columns [B, k], equal ones in the order of columns.

    A CPU sorts wide rows slowly (32 x 1,000,000: a third of the time of their product). So these
    are cut into pieces, and only the k pieces with the highest maxima are sorted: whatever is among
    the best k lies in one of them, because each of the others has k values ahead of it.

    Args:
      score: [B, N].
      k: at most N.
      read: (scores, their columns) -> the values that are ranked, element by element. What it gives
        is never written down for all N, which would take a tenth of the time of a product.
    """
    rows, width = score.shape
    read = read or (lambda score, column: score)
    pieces = width // _PIECE
    if pieces <= 2 * k:  # most of them would be sorted
        return jax.lax.top_k(read(score, jnp.arange(width)[None]), k)
    inside = jnp.arange(_PIECE)[None, None]
    cut = score[:, : pieces * _PIECE].reshape(rows, pieces, _PIECE)
    highest = read(cut, jnp.arange(pieces)[None, :, None] * _PIECE + inside).max(axis=-1)
    chosen = jnp.sort(jax.lax.top_k(highest, k)[1], axis=-1)
    values = jnp.take_along_axis(cut, chosen[..., None], axis=1).reshape(rows, k * _PIECE)
    columns = (chosen[..., None] * _PIECE + inside).reshape(rows, k * _PIECE)
    if width > pieces * _PIECE:  # what no whole piece holds
        rest = jnp.arange(pieces * _PIECE, width)
        values = jnp.concatenate([values, score[:, pieces * _PIECE :]], axis=1)
        columns = jnp.concatenate([columns, jnp.broadcast_to(rest, (rows, len(rest)))], axis=1)
    best, place = jax.lax.top_k(read(values, columns), k)
    return best, jnp.take_along_axis(columns, place, axis=1)


def _best(query: jax.Array, gallery: jax.Array) -> jax.Array:
    """[B, D] and [G, K, D] -> [B, G]: `scores` of the G K rows one by one, then the maximum.

    A product with three axes would hold a transposed copy of the gallery on a CPU.
    """
    images, each, width = gallery.shape
    products = scores(query, gallery.reshape(images * each, 1, width))
    return products.reshape(-1, images, each).max(axis=-1) if each > 1 else products


def _shard(gallery: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Rows `start` to `stop` in float32, not copied; zero rows stand for those past the end."""
    part = np.asarray(gallery[start:stop], np.float32)
    short = stop - start - len(part)
    return np.pad(part, ((0, short), (0, 0), (0, 0))) if short else part


def _place(host: np.ndarray, sharding: jax.sharding.NamedSharding) -> jax.Array:
    if jax.process_count() == 1:
        return jax.device_put(host, sharding)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def _rows(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows, np.int32)


def _removed(removed: np.ndarray | None, queries: int) -> np.ndarray:
    return np.full(queries, -1, np.int32) if removed is None else _rows(removed)
