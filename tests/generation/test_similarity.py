# SPDX-License-Identifier: Apache-2.0
"""Ranks by counting against a full sort, and that nothing of N x N is ever held."""

import tracemalloc

import jax
import numpy as np
import pytest

from cir_jax.errors import UserError
from cir_jax.generation import similarity
from cir_jax.runtime import mesh as meshes


def mesh_of(devices, model=1):
    return meshes.make(model=model, devices=jax.devices()[:devices])


def sorted_out(features, rows):
    """Numbers by a full stable sort of each row, the image itself before all."""
    scores = (features[rows] @ features.T).astype(np.float64)
    scores[np.arange(len(rows)), rows] = np.inf
    return np.argsort(-scores, axis=1, kind="stable")


@pytest.fixture(params=["few equal ones", "many equal ones", "sorted"])
def way(request, monkeypatch):
    """Each way in which ranks are found."""
    limits = {"few equal ones": ("_EQUAL", 64), "many equal ones": ("_EQUAL", 1)}
    monkeypatch.setattr(similarity, *limits.get(request.param, ("_COUNTED", 0)))
    similarity._selection.cache_clear()
    yield
    similarity._selection.cache_clear()


@pytest.mark.parametrize("devices, model", [(1, 1), (2, 1), (4, 2), (8, 1)])
@pytest.mark.parametrize("block", [1, 3, 64])
def test_equals_a_full_stable_sort(devices, model, block):
    random = np.random.default_rng(devices)
    # Small whole numbers: products are exact on any mesh, and most similarities come many times.
    features = random.integers(-2, 3, (53, 4)).astype(np.float32)
    features[[7, 19, 40]] = features[3]  # twins, one of them before and some behind
    rows = random.permutation(53)[:29]
    ranks = [np.asarray([0, 52, *random.integers(0, 53, n % 4)]) for n in range(29)]
    found = similarity.at_ranks(
        features, ranks, rows=rows, mesh=mesh_of(devices, model), block=block
    )
    order = sorted_out(features, rows)
    for n, (numbers, similarities) in enumerate(found):
        np.testing.assert_array_equal(numbers, order[n, ranks[n]])
        np.testing.assert_array_equal(similarities, features[numbers] @ features[rows[n]])
        assert numbers[0] == rows[n]


def test_all_ranks_of_all_images():
    features = similarity.unit_rows(np.random.default_rng(0).standard_normal((40, 6)), "x")
    found = similarity.at_ranks(features, [np.arange(40)] * 40, mesh=mesh_of(8), block=2)
    numbers = np.stack([one for one, _ in found])
    np.testing.assert_array_equal(numbers, sorted_out(features, np.arange(40)))
    similarities = np.stack([scores for _, scores in found])
    assert (np.diff(similarities, axis=1) <= 1e-6).all()
    np.testing.assert_allclose(similarities[:, 0], 1, atol=1e-6)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("values", [[-1, 0, 1], [0], [-3e38, -1e-30, 0, 1e-30, 3e38]])
def test_equal_similarities_are_in_the_order_of_images(values):
    """Also where nearly all are equal, and of numbers of every size and sign."""
    random = np.random.default_rng(5)
    features = np.zeros((37, 2), np.float32)
    features[:, 0] = random.choice(values, 37)
    features[:, 1] = random.integers(0, 2, 37)
    features[0] = 1, 0  # whose similarities are the values
    rows, ranks = np.asarray([0, 0, 0]), [np.arange(12), np.arange(12, 37), np.arange(36, -1, -5)]
    found = similarity.at_ranks(features, ranks, rows=rows, mesh=mesh_of(1), block=2)
    order = sorted_out(features, rows[:1])[0]
    for wanted, (numbers, similarities) in zip(ranks, found, strict=True):
        np.testing.assert_array_equal(numbers, order[wanted])
        np.testing.assert_array_equal(similarities, features[numbers, 0])


def test_zeros_of_both_signs_are_equal():
    keys = similarity._keys(np.asarray([-np.inf, -1, -1e-30, -0.0, 0.0, 1e-30, 2, np.inf], "f4"))
    steps = np.diff(np.asarray(keys).astype(np.int64))
    assert steps[3] == 0 and (np.delete(steps, 3) > 0).all()
    assert np.asarray(keys)[0] > similarity._LOWEST


def test_an_image_ranks_first_for_itself_whatever_rounding_makes_of_a_twin():
    features = np.eye(4, dtype=np.float32)
    features[3] = [1.0001, 0, 0, 0]  # more similar to image 0 than that is to itself
    ((numbers, similarities),) = similarity.at_ranks(
        features, [np.arange(4)], rows=np.asarray([0]), mesh=mesh_of(1)
    )
    assert numbers.tolist() == [0, 3, 1, 2] and similarities[0] == 1


def test_no_array_of_all_pairs():
    count, width, block, devices = 3000, 8, 16, 4
    mesh = mesh_of(devices)
    features = similarity.unit_rows(np.random.default_rng(0).standard_normal((count, width)), "x")
    rows = jax.ShapeDtypeStruct((block * devices,), np.int32)
    program = similarity._product(mesh)
    sizes = [x.aval.size for x in every_array(jax.make_jaxpr(program)(features, rows).jaxpr)]
    assert max(sizes) == count * block * devices  # a block of rows, and not count x count
    of_device = program.lower(features, rows).compile().memory_analysis()
    assert of_device.temp_size_in_bytes <= 4 * count * (block + 2 * width)
    scores = jax.ShapeDtypeStruct((block * devices, count), np.float32)
    wanted = jax.ShapeDtypeStruct((block * devices, 1), np.int32)
    selection = similarity._selection(mesh, False)
    jaxpr = jax.make_jaxpr(selection)(scores, rows, wanted).jaxpr
    assert max(x.aval.size for x in every_array(jaxpr)) <= count * block * devices
    compiled = selection.lower(scores, rows, wanted).compile().memory_analysis()
    assert compiled.output_size_in_bytes <= 2 * 8 * block  # numbers and similarities
    assert compiled.temp_size_in_bytes <= 3 * 4 * count * block
    ranks = [np.asarray([1500])] * count
    tracemalloc.start()
    found = similarity.at_ranks(features, ranks, mesh=mesh, block=block)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found) == count
    assert peak < 4 * count * count / 4  # all similarities would be 36 MB, their sort 72 MB


def every_array(jaxpr):
    """The variables of a program, those of inner programs included."""
    for equation in jaxpr.eqns:
        yield from equation.outvars
        for parameter in equation.params.values():
            for inner in parameter if isinstance(parameter, tuple) else (parameter,):
                if hasattr(inner, "jaxpr"):
                    yield from every_array(inner.jaxpr)
                elif hasattr(inner, "eqns"):
                    yield from every_array(inner)


def test_blocks_cover_the_rows_once():
    features = similarity.unit_rows(np.random.default_rng(1).standard_normal((30, 3)), "x")
    rows = np.arange(30)[::-1]
    for block in (1, 7, 100):
        blocks = list(similarity.similarities(features, rows, mesh_of(4), block))
        starts = [start for start, _ in blocks]
        assert starts == list(range(0, 30, min(4 * block, 32)))
        scores = np.concatenate([np.asarray(part)[: 30 - start] for start, part in blocks])
        np.testing.assert_allclose(scores, features[rows] @ features.T, atol=1e-6)


def test_as_many_ranks_as_rows():
    with pytest.raises(ValueError, match="ranks of 2 images for 3 rows"):
        similarity.at_ranks(np.eye(3, dtype=np.float32), [np.zeros(1, int)] * 2, mesh=mesh_of(1))


def test_unit_rows():
    given = np.asarray([[3, 4], [1e-6, 0], [0, -7]], np.float64)
    before = given.copy()
    rows = similarity.unit_rows(given, "x")
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, [[0.6, 0.8], [1, 0], [0, -1]], atol=1e-7)
    np.testing.assert_array_equal(given, before)
    same = given.astype(np.float32)
    similarity.unit_rows(same, "x")
    np.testing.assert_array_equal(same, before.astype(np.float32))


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf, -np.inf, 1e300])
def test_rows_without_direction_are_refused(bad):
    features = np.ones((5, 3))
    features[[2, 4]] = 0
    features[[2, 4], 1] = bad
    with pytest.raises(UserError, match=r"my.npy: 2 of 5 rows are zero or not finite, row 2 the f"):
        similarity.unit_rows(features, "my.npy")
