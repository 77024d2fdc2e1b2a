# SPDX-License-Identifier: Apache-2.0
"""Rows of a table that lies over all devices, looked up by number.

A table of N entries is two-dimensional on the devices: [N, W] of entries that are read whole, and
[N K, D] of entries of K rows that are multiplied, those of an entry one after the other. With more
axes a TPU keeps a table in tiles that neither a product nor a lookup reads, and copies all of it in
every step; it still does where a width is no multiple of 128, as those of all published models are.
Entries are sharded over both axes of the mesh, N a multiple of the devices.
"""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from cir_jax.runtime.mesh import AXES, DATA, MODEL

_TOGETHER = 2**24  # bytes of entries that all devices exchange at a time


def lookup(table: jax.Array, ids: jax.Array, mesh: Mesh) -> jax.Array:
    """Entries of a table, [N, W] and [B] -> [B, W], each on the devices that have its row of ids.

    Each device sends the entries it holds to those that ask for them, zeros where it holds none:
    the table itself never moves, and no device gets entries of another's rows of the batch. Large
    entries go a few at a time. -1 gives zeros.

    Args:
      table: [N, W], N a multiple of the number of devices.
      ids: [B], B a multiple of the devices of axis "data".
      mesh: the device mesh.

    Returns:
      [B, W], sharded over "data".
    """
    shares, width = mesh.shape[DATA], table.shape[1]
    each = len(ids) // shares
    fitting = max(_TOGETHER // (shares * width * table.dtype.itemsize), 1)
    size = next(n for n in range(min(fitting, each), 0, -1) if each % n == 0)

    def pick(local: jax.Array, ids: jax.Array) -> jax.Array:
        def some(ids: jax.Array) -> jax.Array:
            """[devices of "data", size] -> [size, W], of this device's rows of the batch."""
            found = own_rows(local, ids)[:, :, 0]
            # Of the sum of all devices a TPU would give each device all rows, at twice the bytes.
            return jax.lax.all_to_all(found, DATA, 0, 0, tiled=True).sum(axis=0)

        turns = ids.reshape(shares, -1, size).swapaxes(0, 1)
        found = some(turns[0]) if len(turns) == 1 else jax.lax.map(some, turns)
        return jax.lax.psum(found.reshape(each, width), MODEL)

    return jax.shard_map(
        pick,
        mesh=mesh,
        in_specs=(PartitionSpec(AXES), PartitionSpec()),
        out_specs=PartitionSpec(DATA),
        check_vma=False,
    )(table, ids)


def own_rows(local: jax.Array, ids: jax.Array, per_row: int = 1) -> jax.Array:
    """Inside shard_map: the rows of entries where this device holds them, else zeros.

    Args:
      local: [n K, D], the part of the table on this device.
      ids: [...] entries of the whole table; those outside of it give zeros.
      per_row: K, rows of an entry.

    Returns:
      [..., K, D].
    """
    count = local.shape[0] // per_row
    at = ids - jax.lax.axis_index(AXES) * count
    mine = (at >= 0) & (at < count)
    start = jnp.clip(at, 0, count - 1) * per_row
    take = jax.vmap(lambda first: jax.lax.dynamic_slice_in_dim(local, first, per_row))
    rows = take(start.reshape(-1)).reshape(*ids.shape, per_row, local.shape[1])
    return jnp.where(mine[..., None, None], rows, 0)
