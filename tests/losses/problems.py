# SPDX-License-Identifier: Apache-2.0
"""Inputs of the loss tests."""

import jax
import jax.numpy as jnp
import numpy as np

from cir_jax.runtime import mesh as meshes
from cir_jax.towers.layers import unit

MESHES = [(1, 1), (2, 1), (4, 1), (8, 1), (2, 4), (1, 8)]


def wave(shape, shift):
    """sin(k + shift), k = 0, 1, 2, ... row-major: the inputs of the golden values."""
    return jnp.asarray(np.sin(np.arange(np.prod(shape)) + shift).reshape(shape), jnp.float32)


def devices(data, model=1):
    """A mesh of the first devices."""
    return meshes.make(data, model, jax.devices()[: data * model])


def place(bank, mesh):
    """[N, K, D] over all devices, as [N K, D]."""
    return jax.device_put(bank.reshape(-1, bank.shape[-1]), meshes.row_sharding(mesh))


def problem(rows=45, padding=3, per_row=1, batch=8, width=16, excluded=2, seed=0):
    """(query, bank, label, exclude, rows): a random problem with padding rows."""
    rng = np.random.default_rng(seed)
    bank = unit(jnp.asarray(rng.normal(size=(rows + padding, per_row, width)), jnp.float32))
    query = unit(jnp.asarray(rng.normal(size=(batch, width)), jnp.float32))
    label = jnp.asarray(rng.integers(0, rows, batch), jnp.int32)
    exclude = rng.integers(-1, rows, (batch, excluded)).astype(np.int32)
    exclude[0, 0] = label[0]  # the positive named as excluded must stay
    exclude[1] = exclude[1, 0]  # a row named twice
    return query, bank, label, jnp.asarray(exclude), rows


def assert_close(want, got, **tolerance):
    """Leaf by leaf."""
    for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
        np.testing.assert_allclose(a, b, **({"rtol": 2e-5, "atol": 2e-6} | tolerance))
