# SPDX-License-Identifier: Apache-2.0
"""Entries of a table that lies over all devices, looked up by number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cir_jax.losses import rows
from cir_jax.runtime import mesh as meshes
from cir_jax.runtime.mesh import AXES
from tests.losses.problems import devices

IDS = np.asarray([0, 15, -1, 7, 8, 1, 1, 3])


@pytest.mark.parametrize("together", [1, 2**24])  # bytes: one row for each device, or all
@pytest.mark.parametrize("width", [1, 6])
@pytest.mark.parametrize("shape", [(1, 1), (8, 1), (2, 4)])
def test_lookup(shape, width, together, monkeypatch):
    monkeypatch.setattr(rows, "_TOGETHER", together)
    mesh = devices(*shape)
    table = np.arange(16.0 * width, dtype=np.float32).reshape(16, width) + 1
    look = jax.jit(lambda t, i: rows.lookup(t, i, mesh))
    got = look(jax.device_put(table, meshes.row_sharding(mesh)), IDS)
    np.testing.assert_array_equal(got, np.where(IDS[:, None] >= 0, table[IDS], 0))
    assert got.sharding.is_equivalent_to(meshes.batch_sharding(mesh), got.ndim)


@pytest.mark.parametrize("ids", [IDS, IDS.reshape(2, 4)])
@pytest.mark.parametrize("per_row", [1, 3])
def test_a_device_has_its_own_rows_and_zeros_for_those_of_others(per_row, ids):
    mesh = devices(2, 2)
    table = np.arange(16.0 * per_row * 2, dtype=np.float32).reshape(16, per_row, 2) + 1
    flat = jax.device_put(table.reshape(-1, 2), meshes.row_sharding(mesh))
    every = jax.shard_map(
        lambda local: rows.own_rows(local, jnp.asarray(ids), per_row)[None],
        mesh=mesh, in_specs=jax.P(AXES), out_specs=jax.P(AXES),
    )(flat)  # fmt: skip
    for device, got in enumerate(np.asarray(every)):
        mine = ids // 4 == device
        np.testing.assert_array_equal(got, np.where(mine[..., None, None], table[ids], 0))
