# SPDX-License-Identifier: Apache-2.0
"""Scores are the same to the last bit, wherever an image stands and whoever else asks."""

import numpy as np
import pytest

from cir_jax.retrieval import scoring
from cir_jax.retrieval.search.asking import Terms


def terms(rng, sizes, width):
    groups = np.repeat(np.arange(len(sizes)), sizes).astype(np.int32)
    weights = (
        rng.normal(size=len(sizes)).astype(np.float32) if len(groups) > 1 else np.ones(1, "f4")
    )
    return Terms(rng.normal(size=(len(groups), width)).astype(np.float32), groups, weights)


@pytest.mark.parametrize("each, width", [(1, 1), (1, 37), (3, 512)])
def test_a_score_is_the_formula_in_float64_rounded(each, width, monkeypatch):
    monkeypatch.setattr(scoring, "_BLOCK_VALUES", 5 * each * width)  # blocks of five images
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(23, each, width)).astype(np.float32)
    for sizes in ((1,), (1, 3), (2, 2, 1)):
        one = terms(rng, sizes, width)
        want = np.zeros(len(rows))
        for group, weight in enumerate(one.weights):
            mine = one.vectors[one.groups == group].astype(float)
            want += weight * np.einsum("pd,nkd->npk", mine, rows).max(axis=(1, 2))
        np.testing.assert_allclose(scoring.scores(one, rows), want, rtol=1.3e-7, atol=1e-12)


@pytest.mark.parametrize("sizes", [(1,), (2, 1)])
def test_equal_rows_have_equal_scores(sizes):
    rng = np.random.default_rng(1)
    for width in (3, 37, 512, 769):
        one, row = terms(rng, sizes, width), rng.normal(size=(1, 2, width)).astype(np.float32)
        many = np.concatenate([rng.normal(size=(5, 2, width)).astype("f4"), *[row] * 100])
        want = scoring.scores(one, row)
        np.testing.assert_array_equal(scoring.scores(one, many)[5:], np.repeat(want, 100))
        unaligned = np.empty(many.nbytes + 4, np.uint8)[4:].view(np.float32).reshape(many.shape)
        unaligned[:] = many
        np.testing.assert_array_equal(scoring.scores(one, unaligned)[5:], np.repeat(want, 100))


def test_pairs_of_a_batch_have_the_scores_of_each_question_alone(monkeypatch):
    monkeypatch.setattr(scoring, "_BLOCK_VALUES", 7 * 2 * 37)
    rng = np.random.default_rng(2)
    rows, which = rng.normal(size=(50, 2, 37)).astype(np.float32), np.sort(rng.integers(0, 4, 50))
    for sizes in ([(1,)] * 4, [(1,), (2, 1), (1,), (3,)]):
        queries = [terms(rng, size, 37) for size in sizes]
        found = scoring.scores_of_pairs(queries, which, rows)
        for number, one in enumerate(queries):
            mine = which == number
            np.testing.assert_array_equal(found[mine], scoring.scores(one, rows[mine]))


def test_what_is_no_number_and_what_float32_cannot_hold():
    rows = np.asarray(
        [[[np.nan, 0]], [[np.inf, 0]], [[-np.inf, 0]], [[3e38, 3e38]], [[1, 0]]], "f4"
    )
    one = Terms(np.full((1, 2), 2, np.float32), np.zeros(1, np.int32), np.ones(1, np.float32))
    largest = np.finfo(np.float32).max
    found = scoring.scores(one, rows)
    np.testing.assert_array_equal(found, [-np.inf, -np.inf, -np.inf, largest, 2])
    ids, scores = scoring.best(np.asarray([9, 8, 7, 6, 5]), found, 6)
    assert ids.tolist() == [6, 5, 7, 8, 9, -1]
    np.testing.assert_array_equal(scores, [largest, 2, -np.inf, -np.inf, -np.inf, -np.inf])
