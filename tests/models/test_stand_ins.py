# SPDX-License-Identifier: Apache-2.0
"""What a model module declares about itself is true: for the stand-ins and for a real model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cir_jax.models import contract
from cir_jax.runtime import mesh, sharding
from tests import runs

SHAPES = {  # (R, C), (K, D)
    "clip_sum": ((1, 96), (1, 96)),
    "cross_attention": ((16, 8), (1, 8)),
    "sprc_shaped": ((32, 8), (32, 8)),
}


@pytest.fixture(scope="module", params=SHAPES)
def model(request):
    """(name, functions, parameters, pixels, text) of three random triplets."""
    functions = contract.build(runs.tiny("unused", "unused", model=request.param).model)
    rng = np.random.default_rng(0)
    side = functions.image_size
    pixels = rng.integers(0, 256, (3, side, side, 3)).astype(np.uint8)
    text = np.zeros((3, 16), np.int32)
    text[:, :5] = rng.integers(1, 49405, (3, 5))
    text[:, 0], text[:, 5] = 49406, 49407
    return request.param, functions, functions.init(0), pixels, text


def test_shapes_and_unit_rows(model):
    name, functions, params, pixels, text = model
    assert (functions.reference_shape, functions.target_shape) == SHAPES[name]
    reference = jax.jit(functions.reference)(params, pixels, text)
    target = jax.jit(functions.target)(params, pixels)
    query = jax.jit(functions.compose)(params, reference, text)
    assert reference.shape[1:] == functions.reference_shape
    assert target.shape[1:] == functions.target_shape
    assert query.shape == (3, functions.target_shape[1])
    for rows in (target, query):
        np.testing.assert_allclose(np.linalg.norm(rows, axis=-1), 1, atol=1e-5)
    assert np.abs(np.asarray(query)[0] - np.asarray(query)[1]).max() > 1e-3


def test_reference_rows_depend_on_the_text_where_declared(model):
    _, functions, params, pixels, text = model
    run = jax.jit(functions.reference)
    same = np.array_equal(run(params, pixels, text), run(params, pixels, text[::-1]))
    assert same != functions.per_triplet


def test_the_query_depends_on_image_and_text(model):
    _, functions, params, pixels, text = model
    run = jax.jit(functions.compose)
    reference = jax.jit(functions.reference)(params, pixels, text)
    query = run(params, reference, text)
    assert not np.allclose(query, run(params, reference[::-1], text), atol=1e-4)
    assert not np.allclose(query, run(params, reference, text[::-1]), atol=1e-4)


def test_padding_may_be_cut_where_declared(model):
    _, functions, params, pixels, text = model
    assert functions.module.CUT_PADDING
    reference = jax.jit(functions.reference)(params, pixels, text)
    short = jax.jit(functions.reference)(params, pixels, text[:, :7])
    np.testing.assert_allclose(reference, short, atol=1e-5)
    run = jax.jit(functions.compose)
    np.testing.assert_allclose(
        run(params, reference, text), run(params, reference, text[:, :7]), atol=1e-5
    )


def test_dropout_acts_only_with_a_key(model):
    name, functions, params, _, text = model
    run = jax.jit(functions.compose)
    reference = jnp.ones((3, *functions.reference_shape))
    plain = run(params, reference, text)
    keys = [jax.random.key(i) for i in range(3)]
    differs = any(not np.allclose(plain, run(params, reference, text, k), atol=1e-5) for k in keys)
    assert differs == (name == "sprc_shaped")


def test_rules_fit_the_parameters(model):
    _, functions, params, _, _ = model
    places = sharding.parameter_shardings(functions, mesh.make(model=4))
    assert places.keys() == functions.roles.keys() == params.keys()
    assert any(any(s.spec) for s in places.values())
    assert {"index", "query"} <= set(functions.roles.values())
