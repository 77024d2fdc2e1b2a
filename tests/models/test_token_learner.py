# SPDX-License-Identifier: Apache-2.0
"""The token learner: a published value, the mean over positions, its start, its compute type."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cir_jax.models.tgcir.token_learner import TokenLearner


def learner(kernel, bias):
    """A token learner of these values."""
    made = TokenLearner(*np.shape(kernel), rngs=nnx.Rngs(0))
    made.kernel[...], made.bias[...] = jnp.asarray(kernel), jnp.asarray(bias)
    return made


def test_the_value_that_the_released_code_gives():
    x = np.sin(np.arange(20.0)).reshape(1, 5, 4).astype(np.float32)
    weights = np.sin(np.arange(4.0) + 0.3).reshape(1, 4).astype(np.float32)
    got = learner(weights, [0.1])(jnp.asarray(x))
    assert got.shape == (1, 1, 4) and got.dtype == np.float32
    want = [0.0055387, 0.1780780, 0.1868932, 0.0238797]
    np.testing.assert_allclose(got[0, 0], want, atol=1e-6)


def test_positions_that_are_zero_count_in_the_mean():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 6, 8)).astype(np.float32)
    made = learner(rng.normal(size=(3, 8)).astype(np.float32), np.float32([0.5, 0, -0.5]))
    call = jax.jit(made.__call__)
    want = call(x)
    longer = np.concatenate([x, np.zeros_like(x)], axis=1)
    np.testing.assert_allclose(call(longer), want / 2, atol=1e-6)
    np.testing.assert_allclose(call(x[:, ::-1]), want, atol=1e-6)  # their order does not


def test_it_starts_as_in_torch():
    made = TokenLearner(64, 48, rngs=nnx.Rngs(0))
    assert np.asarray(made.kernel[...]).std() == pytest.approx((3 * 48) ** -0.5, rel=0.05)
    assert not made.bias[...].any()


def test_bfloat16_is_close_and_sums_in_float32():
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(2, 50, 16)).astype(np.float32))
    made = learner(rng.normal(size=(4, 16)).astype(np.float32), np.zeros(4, np.float32))
    want, got = made(x), made(x.astype(jnp.bfloat16))
    assert got.dtype == np.float32
    assert 0 < np.abs(want - got).max() < 0.01
