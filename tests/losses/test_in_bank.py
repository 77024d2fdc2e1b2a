# SPDX-License-Identifier: Apache-2.0
"""The blockwise bank loss is the plain one, on every mesh; lookups; the laws between the losses."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cir_jax.losses import in_bank, in_batch
from cir_jax.runtime import mesh as meshes
from cir_jax.towers.layers import unit
from tests.losses.problems import MESHES, assert_close, devices, place, problem, wave

WEIGHTS = jnp.linspace(0.2, 2.0, 8)  # an uneven cotangent: every query scales its own gradient


def value_and_grad(loss):
    """((weighted mean, [B] losses), (d / d query, d / d temperature)) under jit."""

    def weighted(query, tau, *rest):
        losses = loss(query, tau, *rest)
        return (losses * WEIGHTS).mean(), losses

    return jax.jit(jax.value_and_grad(weighted, argnums=(0, 1), has_aux=True))


@pytest.mark.parametrize("per_row", [1, 32])
@pytest.mark.parametrize("shape", MESHES)
def test_blockwise_equals_plain(shape, per_row):
    query, bank, label, exclude, rows = problem(per_row=per_row)
    mesh = devices(*shape)

    def plain(query, tau):
        return in_bank.bank_loss_plain(query, bank, label, tau, exclude, rows)

    options = {"mesh": mesh, "per_row": per_row, "rows": rows, "block": 4 * per_row}

    def blockwise(query, tau, bank):
        return in_bank.bank_loss(query, bank, label, tau, exclude=exclude, **options)

    want = value_and_grad(plain)(query, 0.05)
    data = mesh.shape[meshes.DATA]
    sharding = meshes.batch_sharding(mesh) if 8 % data == 0 else None
    got = value_and_grad(blockwise)(jax.device_put(query, sharding), 0.05, place(bank, mesh))
    assert_close(want, got)


@pytest.mark.parametrize("rows", [None, 41])
@pytest.mark.parametrize("block", [1, 7, 20, 1000])
def test_any_block_size(block, rows):
    query, bank, label, exclude, _ = problem(rows=46, padding=0, per_row=2)
    label = label % 41
    exclude = exclude if rows else None
    mesh = devices(2)
    want = value_and_grad(lambda q, t: in_bank.bank_loss_plain(q, bank, label, t, exclude, rows))(
        query, 0.02
    )
    options = {"mesh": mesh, "per_row": 2, "rows": rows, "exclude": exclude, "block": block}
    got = value_and_grad(lambda q, t: in_bank.bank_loss(q, place(bank, mesh), label, t, **options))(
        query, 0.02
    )
    assert_close(want, got, atol=1e-5)


def test_best_of_rows_golden():
    query, bank, label = unit(wave((2, 8), 0)), unit(wave((5, 3, 8), 1)), jnp.asarray([3, 1])
    mesh = devices(5)
    options = {"mesh": mesh, "per_row": 3, "block": 2}
    loss = jax.jit(lambda q, b: in_bank.bank_loss(q, b, label, 0.05, **options))
    assert float(loss(query, place(bank, mesh)).mean()) == pytest.approx(3.2899561, rel=1e-5)


def test_excluded_and_padding_rows_have_no_influence():
    query, bank, label, exclude, rows = problem()
    mesh = devices(4)
    gone = {int(i) for i in exclude[2] if i >= 0} - {int(label[2])}
    assert gone
    other = bank.at[jnp.asarray(sorted(gone))].set(-bank[jnp.asarray(sorted(gone))])
    other = other.at[rows:].set(100.0)
    loss = jax.jit(
        lambda bank, exclude: in_bank.bank_loss(
            query, bank, label, 0.1, mesh=mesh, rows=rows, exclude=exclude, block=5
        )
    )
    want, got = loss(place(bank, mesh), exclude), loss(place(other, mesh), exclude)
    assert want[2] == got[2]
    # The positive is in the sum although query 0 names it as excluded, so no loss is below zero.
    only = loss(place(bank, mesh), jnp.tile(label[:, None], (1, 2)))
    np.testing.assert_allclose(only, loss(place(bank, mesh), jnp.full((8, 2), -1)), rtol=1e-6)
    assert (want > 0).all()


@pytest.mark.parametrize("shape", [(1, 1), (2, 4)])
def test_bfloat16_bank_loses_only_the_rounding_of_its_rows(shape):
    query, bank, label, _, rows = problem()
    mesh, small = devices(*shape), bank.astype(jnp.bfloat16)
    want = value_and_grad(
        lambda q, t: in_bank.bank_loss_plain(q, small.astype(jnp.float32), label, t, None, rows)
    )(query, 0.02)
    got = value_and_grad(
        lambda q, t: in_bank.bank_loss(
            q, place(small, mesh), label, t, mesh=mesh, rows=rows, block=7
        )
    )(query, 0.02)
    assert_close(want, got, atol=1e-5)


def test_no_gradient_reaches_the_bank():
    query, bank, label, _, _ = problem()
    mesh = devices(2)

    def loss(bank):
        return in_bank.bank_loss(query, bank, label, 0.1, mesh=mesh).mean()

    assert not jax.jit(jax.grad(loss))(place(bank, mesh)).any()
    plain = jax.grad(lambda b: in_bank.bank_loss_plain(query, b, label, 0.1).mean())(bank)
    assert not plain.any()


def test_a_diverged_query_is_seen():
    query, bank, label, _, _ = problem()
    mesh = devices(2)
    loss = jax.jit(lambda q, b: in_bank.bank_loss(q, b, label, 0.1, mesh=mesh, block=5))
    got = loss(query.at[3].set(jnp.nan), place(bank, mesh))
    assert np.isnan(got[3]) and np.isfinite(np.delete(got, 3)).all()


@pytest.mark.parametrize("per_row", [1, 3])
def test_bank_of_the_batch_equals_in_batch(per_row):
    query, bank, _, _, _ = problem(rows=8, padding=0, per_row=per_row)
    mesh, label = devices(8), jnp.arange(8)
    want = value_and_grad(lambda q, t: in_batch.in_batch_loss(q, bank, t))(query, 0.07)
    options = {"mesh": mesh, "per_row": per_row}
    got = value_and_grad(lambda q, t: in_bank.bank_loss(q, place(bank, mesh), label, t, **options))(
        query, 0.07
    )
    assert_close(want, got)


@pytest.mark.parametrize(("batch", "width"), [(1, 1), (8, 64), (32, 256), (256, 640), (4096, 256)])
@pytest.mark.parametrize(("kind", "most"), [("tpu", 2**25), ("gpu", 2**27), ("other", 2**25)])
def test_a_block_that_is_chosen_takes_bounded_memory(kind, most, batch, width):
    mesh = SimpleNamespace(devices=np.asarray([SimpleNamespace(platform=kind)]))
    block = in_bank.block_size(batch, width, mesh)
    assert most // 2 < 4 * block * max(batch, width) <= most
    assert in_bank.block_size(batch, width, devices(2)) == 4096  # a CPU: as it always was


def test_the_chosen_block_is_what_a_loss_runs_with():
    query, bank, label, _, _ = problem(rows=6000, padding=0)
    mesh = devices(1)

    def text(block):
        loss = lambda q, b: in_bank.bank_loss(q, b, label, 0.1, mesh=mesh, block=block).mean()
        return str(jax.make_jaxpr(loss)(query, bank[:, 0]))

    assert text(0) == text(4096) != text(1000)
