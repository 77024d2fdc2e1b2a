# SPDX-License-Identifier: Apache-2.0
"""Golden values of the released in-batch losses, and CLIP's loss by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cir_jax.losses import in_batch, negative_types
from cir_jax.losses.scores import scores
from cir_jax.towers.layers import unit
from tests.losses.problems import wave


def triplets():
    image, text, target = wave((4, 8), 0), wave((4, 8), 0.5), unit(wave((4, 8), 1))
    losses = negative_types.losses(
        negative_types.TYPES,
        unit(image + text),
        target[:, None],
        0.1,
        lambda shift: unit(image + jnp.roll(text, -shift, axis=0)),
    )
    return image, text, target, losses


def test_negative_types_golden():
    losses = triplets()[-1]
    golden = {"target": 0.6974714, "query": 0.8017642, "text": 2.7467442, "reference": 2.8159993}
    assert {k: float(v.mean()) for k, v in losses.items()} == pytest.approx(golden, rel=1e-5)
    assert tuple(losses) == negative_types.TYPES


def test_target_type_is_the_stage_one_loss():
    image, text, target, losses = triplets()
    direct = in_batch.in_batch_loss(unit(image + text), target[:, None], 0.1)
    np.testing.assert_allclose(losses["target"], direct, rtol=1e-6)


def test_best_of_rows_golden():
    query, bank = unit(wave((2, 8), 0)), unit(wave((5, 3, 8), 1))
    golden = [
        [0.5593778, 0.9888316, 0.8900352, 0.7109125, 0.9940278],
        [0.8090803, 0.9928029, 0.9046941, 0.8268119, 0.4619962],
    ]
    np.testing.assert_allclose(scores(query, bank), golden, rtol=1e-5)
    np.testing.assert_allclose(scores(query, bank[:, :1]), query @ bank[:, 0].T, rtol=1e-5)


def test_symmetric_loss_is_the_mean_of_both_directions():
    image, text = unit(wave((5, 8), 0)), unit(wave((5, 8), 2))
    logits = 10.0 * np.asarray(image, np.float64) @ np.asarray(text, np.float64).T

    def cross_entropy(x):
        return np.log(np.exp(x).sum(axis=1)) - np.diag(x)

    want = (cross_entropy(logits) + cross_entropy(logits.T)) / 2
    got = in_batch.symmetric_loss(image, text, jnp.log(10.0))
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_logit_scale_is_clipped_at_one_hundred():
    image, text = unit(wave((5, 8), 0)), unit(wave((5, 8), 2))

    def loss(scale):
        return in_batch.symmetric_loss(image, text, scale).mean()

    assert loss(jnp.log(1000.0)) == pytest.approx(float(loss(jnp.log(100.0))), rel=1e-5)
    assert jax.grad(loss)(jnp.float32(6.0)) == 0 and jax.grad(loss)(jnp.float32(4.0)) != 0
