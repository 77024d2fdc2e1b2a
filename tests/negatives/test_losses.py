# SPDX-License-Identifier: Apache-2.0
"""Golden values of the released losses, and the laws that tie the losses together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cir_jax.errors import UserError
from cir_jax.models.clip_sum import unit
from cir_jax.negatives import in_bank, in_batch, sampled
from cir_jax.negatives.scores import scores
from cir_jax.runtime import mesh as meshes


def wave(shape, shift):
    """sin(k + shift), k = 0, 1, 2, ... row-major: the inputs of the golden values."""
    return jnp.asarray(np.sin(np.arange(np.prod(shape)) + shift).reshape(shape), jnp.float32)


def devices(data, model=1):
    return meshes.make(data, model, jax.devices()[: data * model])


def place(bank, mesh):
    return jax.device_put(bank, meshes.row_sharding(mesh))


def test_negative_types_golden():
    image, text, target = wave((4, 8), 0), wave((4, 8), 0.5), unit(wave((4, 8), 1))
    losses = in_batch.negative_type_losses(lambda v, u: unit(v + u), image, text, target, 0.1)
    golden = {"target": 0.6974714, "query": 0.8017642, "text": 2.7467442, "reference": 2.8159993}
    assert {k: float(v.mean()) for k, v in losses.items()} == pytest.approx(golden, rel=1e-5)


def test_target_type_is_the_stage_one_loss():
    image, text, target = wave((4, 8), 0), wave((4, 8), 0.5), unit(wave((4, 8), 1))
    losses = in_batch.negative_type_losses(lambda v, u: unit(v + u), image, text, target, 0.1)
    direct = in_batch.in_batch_loss(unit(image + text), target[:, None], 0.1)
    np.testing.assert_allclose(losses["target"], direct, rtol=1e-6)


def test_sampled_negatives_golden():
    references, bank, text = wave((6, 8), 0.2), unit(wave((6, 8), 2)), wave((3, 8), 0.7)
    query = unit(references[jnp.asarray([1, 2, 4])] + text)
    negatives = jnp.asarray([[3, 4], [1, 3], [5, 4]])
    label = jnp.asarray([5, 0, 3])
    mesh = devices(2)
    loss = sampled.sampled_bank_loss(
        query, place(bank[:, None], mesh), label, negatives, 0.1, mesh=mesh
    )
    assert float(loss.mean()) == pytest.approx(8.8132925, rel=1e-5)


def test_best_of_rows_golden():
    query, bank = unit(wave((2, 8), 0)), unit(wave((5, 3, 8), 1))
    golden = [
        [0.5593778, 0.9888316, 0.8900352, 0.7109125, 0.9940278],
        [0.8090803, 0.9928029, 0.9046941, 0.8268119, 0.4619962],
    ]
    np.testing.assert_allclose(scores(query, bank), golden, rtol=1e-5)
    mesh = devices(5)
    label = jnp.asarray([3, 1])
    loss = in_bank.bank_loss(query, place(bank, mesh), label, 0.05, mesh=mesh, block=2)
    assert float(loss.mean()) == pytest.approx(3.2899561, rel=1e-5)


def problem(rows=45, padding=3, per_row=1, batch=8, width=16, excluded=2, seed=0):
    rng = np.random.default_rng(seed)
    bank = unit(jnp.asarray(rng.normal(size=(rows + padding, per_row, width)), jnp.float32))
    query = unit(jnp.asarray(rng.normal(size=(batch, width)), jnp.float32))
    label = jnp.asarray(rng.integers(0, rows, batch), jnp.int32)
    exclude = rng.integers(-1, rows, (batch, excluded)).astype(np.int32)
    exclude[0, 0] = label[0]  # the positive named as excluded must stay
    exclude[1] = exclude[1, 0]  # a row named twice
    return query, bank, label, jnp.asarray(exclude), rows


MESHES = [(1, 1), (2, 1), (4, 1), (8, 1), (2, 4), (1, 8)]


@pytest.mark.parametrize("per_row", [1, 32])
@pytest.mark.parametrize("shape", MESHES)
def test_blockwise_equals_plain(shape, per_row):
    query, bank, label, exclude, rows = problem(per_row=per_row)
    mesh = devices(*shape)

    def plain(query, tau):
        return in_bank.bank_loss_plain(query, bank, label, tau, exclude, rows).mean()

    placed = place(bank, mesh)

    def blockwise(query, tau):
        return in_bank.bank_loss(
            query, placed, label, tau, mesh=mesh, rows=rows, exclude=exclude, block=4 * per_row
        ).mean()

    want = jax.jit(jax.value_and_grad(plain, argnums=(0, 1)))(query, 0.05)
    got = jax.jit(jax.value_and_grad(blockwise, argnums=(0, 1)))(query, 0.05)
    for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("block", [1, 7, 16, 1000])
def test_any_block_size(block):
    query, bank, label, exclude, rows = problem()
    mesh = devices(2)
    want = in_bank.bank_loss_plain(query, bank, label, 0.02, exclude, rows)
    got = in_bank.bank_loss(
        query, place(bank, mesh), label, 0.02, mesh=mesh, rows=rows, exclude=exclude, block=block
    )
    np.testing.assert_allclose(want, got, rtol=2e-5, atol=1e-5)


def test_bfloat16_bank_is_close():
    query, bank, label, _, rows = problem()
    mesh = devices(4)
    want = in_bank.bank_loss_plain(query, bank, label, 0.1, None, rows)
    small = place(bank.astype(jnp.bfloat16), mesh)
    got = in_bank.bank_loss(query, small, label, 0.1, mesh=mesh, rows=rows)
    np.testing.assert_allclose(want, got, atol=0.1)


def test_bank_of_the_batch_equals_in_batch():
    query, bank, _, _, _ = problem(rows=8, padding=0, per_row=3)
    mesh = devices(8)
    want = in_batch.in_batch_loss(query, bank, 0.07)
    got = in_bank.bank_loss(query, place(bank, mesh), jnp.arange(8), 0.07, mesh=mesh)
    np.testing.assert_allclose(want, got, rtol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (8, 1), (2, 4)])
def test_all_negatives_sampled_equals_whole_bank(shape):
    query, bank, label, _, rows = problem(per_row=2)
    mesh = devices(*shape)
    placed = place(bank, mesh)
    ids = sampled.sample_negatives(jax.random.key(0), label, rows - 1, rows)

    def some(query, tau):
        return sampled.sampled_bank_loss(query, placed, label, ids, tau, mesh=mesh).mean()

    def whole(query, tau):
        return in_bank.bank_loss_plain(query, bank, label, tau, None, rows).mean()

    want = jax.value_and_grad(whole, argnums=(0, 1))(query, 0.1)
    got = jax.jit(jax.value_and_grad(some, argnums=(0, 1)))(query, 0.1)
    for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)


def test_samples_are_distinct_allowed_and_uniform():
    rows, count, batch = 12, 4, 20_000
    label = jnp.full((batch,), 3, jnp.int32)
    exclude = jnp.tile(jnp.asarray([[7, -1, 7]], jnp.int32), (batch, 1))
    ids = np.asarray(sampled.sample_negatives(jax.random.key(1), label, count, rows, exclude))
    assert all(len(set(row)) == count for row in ids[:500])
    share = np.bincount(ids.ravel(), minlength=rows) / ids.size
    assert share[3] == share[7] == 0 and ids.max() < rows
    np.testing.assert_allclose(np.delete(share, [3, 7]), 0.1, atol=0.005)
    # Pairs are uniform too: each of the 45 pairs of allowed rows is in 4*3/2 of 45 draws.
    both = ((ids == 0).any(1) & (ids == 11).any(1)).mean()
    assert both == pytest.approx(4 * 3 / (10 * 9), abs=0.01)


def test_too_many_negatives():
    with pytest.raises(UserError, match=r"bank_negatives=12, but a bank of 12 images leaves 11"):
        sampled.sample_negatives(jax.random.key(0), jnp.zeros(2, jnp.int32), 12, 12)


@pytest.mark.parametrize("shape", [(8, 1), (2, 4)])
def test_lookup(shape):
    mesh = devices(*shape)
    table = jnp.arange(16 * 2 * 3, dtype=jnp.float32).reshape(16, 2, 3)
    ids = jnp.asarray([0, 15, -1, 7, 8, 1, 1, 3])
    got = jax.jit(lambda t, i: in_bank.lookup(t, i, mesh))(place(table, mesh), ids)
    want = np.where((np.asarray(ids) >= 0)[:, None, None], np.asarray(table)[ids], 0)
    np.testing.assert_array_equal(got, want)
