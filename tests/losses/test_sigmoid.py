# SPDX-License-Identifier: Apache-2.0
"""The sigmoid loss against its definition and transformers' own, on any mesh, without [B, B]."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cir_jax.losses.sigmoid import sigmoid_loss, sigmoid_loss_plain
from cir_jax.runtime import mesh as meshes
from cir_jax.towers.layers import unit

MESHES = ((1, 1), (2, 1), (4, 1), (8, 1), (2, 4))


def problem(batch=16, per_row=1, width=8):
    rng = np.random.default_rng(batch + per_row)
    draw = lambda *shape: np.asarray(unit(jnp.asarray(rng.normal(size=shape), jnp.float32)))
    return draw(batch, width), draw(batch, per_row, width), jnp.float32(0.1), jnp.float32(-2.0)


def of_mesh(shape, block):
    mesh = meshes.make(*shape, jax.devices()[: shape[0] * shape[1]])

    def total(query, targets, temperature, bias):
        losses = sigmoid_loss(query, targets, temperature, bias, mesh=mesh, block=block)
        return (losses * jnp.arange(1, 1 + len(losses))).sum(), losses

    return mesh, jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2, 3), has_aux=True))


def plainly(*arguments):
    losses = sigmoid_loss_plain(*arguments)
    return (losses * jnp.arange(1, 1 + len(losses))).sum(), losses


@pytest.mark.parametrize("per_row, block", [(1, 2), (3, 3)])
@pytest.mark.parametrize("shape", MESHES)
def test_losses_and_gradients_are_those_of_the_definition_on_any_mesh(shape, per_row, block):
    given = problem(per_row=per_row)
    (_, want), gradients = jax.value_and_grad(plainly, argnums=(0, 1, 2, 3), has_aux=True)(*given)
    mesh, program = of_mesh(shape, block)
    rows = jax.device_put(given[:2], meshes.batch_sharding(mesh))
    (_, got), found = program(*rows, *given[2:])
    np.testing.assert_allclose(got, want, rtol=1e-5)
    for one, other in zip(found, gradients, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5)


def test_it_is_the_loss_of_the_paper_by_hand():
    query, targets, tau, bias = problem(4)
    logits = query @ targets[:, 0].T / tau + bias
    by_hand = [
        sum(np.log1p(np.exp(-x if i == j else x)) for j, x in enumerate(row))
        for i, row in enumerate(np.asarray(logits))
    ]
    np.testing.assert_allclose(sigmoid_loss_plain(query, targets, tau, bias), by_hand, rtol=1e-5)


def values(text):
    """Numbers of values of the arrays of a compiled program."""
    shapes = re.findall(r"\bf32\[([\d,]+)\]", text)
    return {int(np.prod([int(n) for n in shape.split(",")])) for shape in shapes}


@pytest.mark.parametrize("shape", [(1, 1), (4, 1)])
def test_no_device_has_the_scores_of_all_pairs(shape):
    """Of the batch, nor of its own queries with all targets, forwards or backwards."""
    batch, each = 2048, 2048 // shape[0]
    mesh, program = of_mesh(shape, 256)
    rows = [
        jax.ShapeDtypeStruct(s, jnp.float32, sharding=meshes.batch_sharding(mesh))
        for s in ((batch, 8), (batch, 1, 8))
    ]
    compiled = program.lower(*rows, jnp.float32(0.1), jnp.float32(-10)).compile().as_text()
    assert each * 256 in values(compiled)  # scores are looked for where they are
    assert max(values(compiled)) < each * batch // 2
