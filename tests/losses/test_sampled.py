# SPDX-License-Identifier: Apache-2.0
"""Sampled negatives: the golden value, exactness of the draw, and the limit of all negatives."""

from collections import Counter
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cir_jax.errors import UserError
from cir_jax.losses import in_bank, sampled
from cir_jax.towers.layers import unit
from tests.losses.problems import assert_close, devices, place, problem, wave


def test_golden():
    references, bank, text = wave((6, 8), 0.2), unit(wave((6, 8), 2)), wave((3, 8), 0.7)
    query = unit(references[jnp.asarray([1, 2, 4])] + text)
    negatives, label = jnp.asarray([[3, 4], [1, 3], [5, 4]]), jnp.asarray([5, 0, 3])
    mesh = devices(2)
    loss = jax.jit(lambda q, b: sampled.sampled_bank_loss(q, b, label, negatives, 0.1, mesh=mesh))(
        query, place(bank[:, None], mesh)
    )
    assert float(loss.mean()) == pytest.approx(8.8132925, rel=1e-5)


@pytest.mark.parametrize(("shape", "per_row"), [((1, 1), 2), ((8, 1), 1), ((2, 4), 40)])
def test_all_negatives_equal_the_whole_bank(shape, per_row):
    query, bank, label, _, rows = problem(per_row=per_row)
    mesh = devices(*shape)
    placed = place(bank, mesh)
    ids = sampled.sample_negatives(jax.random.key(0), label, rows - 1, rows)

    def some(query, tau):
        return sampled.sampled_bank_loss(
            query, placed, label, ids, tau, mesh=mesh, per_row=per_row
        ).mean()

    def whole(query, tau):
        return in_bank.bank_loss_plain(query, bank, label, tau, None, rows).mean()

    want = jax.jit(jax.value_and_grad(whole, argnums=(0, 1)))(query, 0.1)
    assert_close(want, jax.jit(jax.value_and_grad(some, argnums=(0, 1)))(query, 0.1))


@pytest.mark.parametrize("count", [2, 5])  # drawn, and drawn by what is left out
def test_every_set_of_rows_is_equally_likely(count):
    rows, batch = 9, 42_000
    label = jnp.full((batch,), 3, jnp.int32)
    exclude = jnp.tile(jnp.asarray([[7, -1, 7]], jnp.int32), (batch, 1))
    draw = jax.jit(sampled.sample_negatives, static_argnums=(2, 3))
    ids = np.asarray(draw(jax.random.key(1), label, count, rows, exclude))
    sets = Counter(map(tuple, ids))
    expected = list(combinations([0, 1, 2, 4, 5, 6, 8], count))  # 21 for both counts
    assert set(sets) == set(expected)
    # Chi-square with 20 degrees of freedom: 45.3 is passed once in a thousand draws.
    mean = batch / len(expected)
    assert sum((sets[s] - mean) ** 2 / mean for s in expected) < 45.3


@pytest.mark.parametrize("count", [1, 20, 70, 140, 196])
def test_samples_are_distinct_and_allowed_for_every_query(count):
    rows, batch = 200, 64
    rng = np.random.default_rng(count)
    label = rng.integers(0, rows, batch).astype(np.int32)
    exclude = rng.integers(-1, rows, (batch, 3)).astype(np.int32)
    draw = jax.jit(sampled.sample_negatives, static_argnums=(2, 3))
    ids = np.asarray(draw(jax.random.key(count), label, count, rows, exclude))
    assert ids.shape == (batch, count) and ids.min() >= 0 and ids.max() < rows
    for row, positive, gone in zip(ids, label, exclude, strict=True):
        assert len(set(row)) == count and not set(row) & {positive, *gone}
    assert count in (1, 196) or len({tuple(row) for row in ids}) == batch  # queries draw apart


def test_too_many_negatives():
    label = jnp.zeros(2, jnp.int32)
    with pytest.raises(UserError, match=r"bank_negatives=12, but a bank of 12 images leaves 11"):
        sampled.sample_negatives(jax.random.key(0), label, 12, 12)
    with pytest.raises(UserError, match=r"leaves 8 negatives beside up to 3 excluded ones; use 1"):
        sampled.sample_negatives(jax.random.key(0), label, 9, 12, jnp.full((2, 3), -1))
