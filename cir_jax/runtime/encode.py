# SPDX-License-Identifier: Apache-2.0
"""Applies a function to every item of a list, in global batches over the mesh.

The bank, the galleries and the search index are all made here, so "every image is encoded exactly
once" is a property of one loop.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from cir_jax import progress
from cir_jax.runtime import mesh as meshes
from cir_jax.runtime import watchdog


def encode(
    apply: Callable[[Any, dict[str, jax.Array]], Any],
    params: Any,
    items: Sequence[Any],
    load: Callable[[Any], dict[str, np.ndarray]],
    *,
    batch: int,
    mesh: Mesh,
    threads: int = 8,
    least: int = 0,
    title: str = "",
    prepare: Callable[[Sequence[Any]], None] | None = None,
) -> Any:
    """`apply(params, batch)` over all items; the rows come back on every host.

    Each item is loaded by exactly one process and encoded exactly once; only the last batch is
    filled up, by repeating its last item, so that one program is compiled.

    Args:
      apply: (params, {field: [B, ...]}) -> pytree of [B, ...]. Pass a long-lived function: the
        compiled program is cached by it.
      params: parameters, as placed by the caller.
      items: what `load` takes, one per row.
      load: item -> {field: array without the batch axis}; run in threads.
      batch: rows per global batch; rounded up to a multiple of axis "data".
      mesh: the device mesh.
      threads: loading threads of this process.
      least: rows that a batch has even of fewer items, so that several calls share a program.
      title: text of the progress bar; "" shows none.
      prepare: called once, before any is loaded, with the items that this process loads.

    Returns:
      The pytree `apply` returns, as numpy arrays [len(items), ...].
    """
    options: dict[str, Any] = {"batch": batch, "mesh": mesh, "threads": threads, "least": least}
    pieces: Iterable[tuple[int, Any]] = stream(
        apply, params, items, load, prepare=prepare, **options
    )
    if title:
        each = _rows(batch, max(len(items), least), mesh)
        pieces = progress.bar(pieces, -(-len(items) // each), title)
    whole = None
    for start, rows in pieces:
        if whole is None:  # one array for all: joining parts at the end would hold them twice
            whole = jax.tree.map(lambda x: np.empty((len(items), *x.shape[1:]), x.dtype), rows)
        jax.tree.map(partial(_fill, start), whole, rows)
    if whole is None:
        raise ValueError("nothing to encode: the list of items is empty")
    return whole


def _fill(start: int, whole: np.ndarray, rows: np.ndarray) -> None:
    whole[start : start + len(rows)] = rows


def stream(
    apply: Callable[[Any, dict[str, jax.Array]], Any],
    params: Any,
    items: Sequence[Any],
    load: Callable[[Any], dict[str, np.ndarray]],
    *,
    batch: int,
    mesh: Mesh,
    threads: int = 8,
    least: int = 0,
    prepare: Callable[[Sequence[Any]], None] | None = None,
) -> Iterator[tuple[int, Any]]:
    """`encode` for rows that do not fit the host: one batch of them at a time, in order.

    Yields:
      (number of the batch's first item, the pytree as numpy arrays [rows of the batch, ...]), on
      every host.
    """
    program = _compiled(apply, mesh)
    before = None
    rows = _rows(batch, max(len(items), least), mesh)
    if prepare is not None:
        prepare([items[i] for i in _loaded_here(len(items), rows, mesh)])
    for start, fields, count in _batches(items, load, rows, mesh, threads):
        with meshes.LAUNCH:
            out = program(params, fields)
        if before:  # keep one batch in flight: copying waits for the one before it
            yield _to_host(*before)
            watchdog.progress()
        before = start, out, count
    if before:
        yield _to_host(*before)


def _loaded_here(items: int, batch: int, mesh: Mesh) -> list[int]:
    """The items that `_batches` loads in this process, ascending."""
    mine = local_rows(batch, mesh)
    starts = range(0, items, batch)
    return sorted({min(start + row, items - 1) for start in starts for row in mine.tolist()})


def _rows(batch: int, items: int, mesh: Mesh) -> int:
    """Rows per batch: no more than there are items, and a multiple of axis "data"."""
    step = mesh.shape[meshes.DATA]
    return -(-min(batch, max(items, 1)) // step) * step


def _to_host(start: int, rows: Any, count: int) -> tuple[int, Any]:
    return start, jax.tree.map(lambda x: np.asarray(x)[:count], rows)


@lru_cache(maxsize=64)
def _compiled(apply: Callable, mesh: Mesh) -> Callable:
    # Replicated output: every process then holds all rows without a second collective.
    return jax.jit(apply, out_shardings=meshes.replicated(mesh))


def _batches(
    items: Sequence[Any], load: Callable, batch: int, mesh: Mesh, threads: int
) -> Iterator[tuple[int, dict[str, jax.Array], int]]:
    sharding = meshes.batch_sharding(mesh)
    mine = local_rows(batch, mesh)

    def submit(start: int) -> dict[int, Any]:
        # Rows past the end reuse the last item's future: an item is never loaded twice.
        wanted = {min(start + row, len(items) - 1) for row in mine.tolist()}
        return {i: pool.submit(load, items[i]) for i in sorted(wanted)}

    with ThreadPoolExecutor(max(threads, 1)) as pool:
        starts = deque(range(0, len(items), batch))
        ahead: deque[tuple[int, dict[int, Any]]] = deque()
        while starts or ahead:
            while starts and len(ahead) < 2:  # one batch is decoded while another is encoded
                start = starts.popleft()
                ahead.append((start, submit(start)))
            start, futures = ahead.popleft()
            loaded = {i: f.result() for i, f in futures.items()}
            watchdog.progress()
            rows = [loaded[min(start + row, len(items) - 1)] for row in mine.tolist()]
            fields = {k: np.stack([r[k] for r in rows]) for k in rows[0]}
            yield (
                start,
                {k: place(v, sharding, batch) for k, v in fields.items()},
                min(batch, len(items) - start),
            )


@lru_cache(maxsize=64)
def local_rows(batch: int, mesh: Mesh, process: int | None = None) -> np.ndarray:
    """Rows of a global batch that a process loads: all that its devices hold, ascending.

    They need not be adjacent: a mesh follows the network between devices, not the hosts. Where
    "model" crosses processes, several of them load the same rows.

    Args:
      batch: rows of a global batch, a multiple of the devices along "data".
      mesh: the device mesh.
      process: which one; this one if None.

    Returns:
      [n] int, read-only.
    """
    process = jax.process_index() if process is None else process
    places: Any = meshes.batch_sharding(mesh).devices_indices_map((batch,))
    held = np.zeros(batch, bool)
    for device, index in places.items():
        if device.process_index == process:
            held[index] = True
    found = np.flatnonzero(held)
    found.flags.writeable = False
    return found


def place_batch(fields: dict[str, Any], sharding: jax.sharding.NamedSharding, batch: int) -> Any:
    """The fields of a global batch, of each of which this process holds its share.

    Args:
      fields: pytrees of arrays, split over the processes along their first axis as its rows are;
        those of a text that is packed have another length, see `cir_jax.data.packing`.
      sharding: of the rows.
      batch: rows of the global batch.
    """
    mine = len(local_rows(batch, sharding.mesh))
    return jax.tree.map(lambda x: place(x, sharding, len(x) * batch // mine), fields)


def place(rows: np.ndarray, sharding: jax.sharding.NamedSharding, batch: int) -> jax.Array:
    """The global array [batch, ...] of which this process holds `rows`, those of `local_rows`."""
    if jax.process_count() == 1:
        return jax.device_put(rows, sharding)
    # Not make_array_from_process_local_data: each device takes its rows by their numbers, so that
    # no order of devices can mistake them.
    numbers = local_rows(batch, sharding.mesh)

    def part(index: Any) -> np.ndarray:
        start, stop, _ = index[0].indices(batch)
        first = int(np.searchsorted(numbers, start))
        return rows[first : first + stop - start]

    return jax.make_array_from_callback((batch, *rows.shape[1:]), sharding, part)
