# SPDX-License-Identifier: Apache-2.0
"""What a model module declares about itself is true: for the stand-ins and for a real model."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from cir_jax import contract
from cir_jax.runtime import mesh, sharding
from tests import runs
from tests.towers.weights import random_values

WIDTH = 96  # of the common space of tiny-vit
SHAPES = {  # (R, C), (K, D)
    "clip_sum": ((1, WIDTH), (1, WIDTH)),
    "clip_weighted": ((1, 16), (1, 16)),
    "clip_combiner": ((1, WIDTH), (1, WIDTH)),
    "cross_attention": ((16, 8), (1, 8)),
    "sprc_shaped": ((32, 8), (32, 8)),
}


@pytest.fixture(scope="module", params=SHAPES)
def model(request):
    """A model, its compiled functions, and three random triplets."""
    functions = contract.build(runs.tiny("unused", "unused", model=request.param).model)
    params = random_values({path: x.shape for path, x in functions.abstract.items()})
    rng = np.random.default_rng(0)
    side = functions.image_size
    pixels = rng.integers(0, 256, (3, side, side, 3)).astype(np.uint8)
    text = np.zeros((3, 16), np.int32)
    text[:, :5] = rng.integers(1, 49405, (3, 5))
    text[:, 0], text[:, 5] = 49406, 49407
    reference = jax.jit(functions.reference)
    return SimpleNamespace(
        name=request.param,
        functions=functions,
        params=jax.device_put(params),
        pixels=pixels,
        text=text,
        reference=reference,
        compose=jax.jit(functions.compose),
        rows=reference(params, pixels, text),
    )


def test_shapes_and_unit_rows(model):
    functions = model.functions
    assert (functions.reference_shape, functions.target_shape) == SHAPES[model.name]
    target = jax.jit(functions.target)(model.params, model.pixels)
    query = model.compose(model.params, model.rows, model.text)
    assert model.rows.shape == (3, *functions.reference_shape)
    assert target.shape == (3, *functions.target_shape)
    assert query.shape == (3, functions.target_shape[1])
    for unit_rows in (target, query):
        np.testing.assert_allclose(np.linalg.norm(unit_rows, axis=-1), 1, atol=1e-5)


def test_reference_rows_depend_on_the_text_where_declared(model):
    other = model.reference(model.params, model.pixels, model.text[::-1])
    assert np.array_equal(model.rows, other) != model.functions.per_triplet


def test_the_query_depends_on_image_and_text(model):
    query = model.compose(model.params, model.rows, model.text)
    other_image = model.compose(model.params, model.rows[::-1], model.text)
    other_text = model.compose(model.params, model.rows, model.text[::-1])
    assert not np.allclose(query, other_image, atol=1e-4)
    assert not np.allclose(query, other_text, atol=1e-4)


def test_padding_may_be_cut_where_declared(model):
    assert model.functions.inputs.cut_padding
    short = model.text[:, :7]
    rows = model.reference(model.params, model.pixels, short)
    np.testing.assert_allclose(model.rows, rows, atol=1e-5)
    query = model.compose(model.params, model.rows, model.text)
    cut = model.compose(model.params, model.rows, short)
    np.testing.assert_allclose(query, cut, atol=1e-5)


def test_dropout_acts_only_with_a_key(model):
    plain = model.compose(model.params, model.rows, model.text)
    again = model.compose(model.params, model.rows, model.text)
    dropped = model.compose(model.params, model.rows, model.text, jax.random.key(0))
    np.testing.assert_array_equal(plain, again)
    has_dropout = model.name in ("clip_combiner", "sprc_shaped")
    assert np.allclose(plain, dropped, atol=1e-5) != has_dropout


def test_compose_trains_exactly_the_query_parameters(model):
    def total(params):
        return model.functions.compose(params, model.rows, model.text).sum()

    moved = {path for path, g in jax.jit(jax.grad(total))(model.params).items() if np.any(g)}
    roles = model.functions.roles
    frozen = {path for path, role in roles.items() if role == "pretrain"}
    assert moved - frozen == {path for path, role in roles.items() if role == "query"}


def test_rules_fit_the_parameters(model):
    places = sharding.parameter_shardings(model.functions, mesh.make(model=4))
    assert places.keys() == model.functions.roles.keys() == model.params.keys()
    assert any(any(s.spec) for s in places.values())
