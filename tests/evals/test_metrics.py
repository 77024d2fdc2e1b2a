# SPDX-License-Identifier: Apache-2.0
"""Recalls and means against numbers worked out by hand."""

import numpy as np
import pytest

from cir_jax.evals import metrics


@pytest.mark.parametrize(
    ("k", "expected"), [(1, 20.0), (2, 40.0), (9, 60.0), (10, 80.0), (50, 80.0), (51, 100.0)]
)
def test_recall_at(k, expected):
    # Rank 9 is the tenth place: inside recall@10, outside recall@9. Rank 50 is outside recall@50.
    assert metrics.recall_at(np.asarray([0, 1, 8, 9, 50]), k) == pytest.approx(expected)


def test_recall_of_nothing_is_an_error():
    with pytest.raises(ValueError, match=r"recall@5 of 0 queries is undefined"):
        metrics.recall_at(np.asarray([], np.int64), 5)
    with pytest.raises(ValueError, match=r"recall@0"):
        metrics.recall_at(np.asarray([1]), 0)


def test_fashioniq_means_weigh_categories_not_queries():
    ranks = {
        "dress": np.asarray([0, 20, 30, 99]),  # @10 25, @50 75
        "shirt": np.asarray([5, 49]),  # @10 50, @50 100
        "toptee": np.asarray([60, 9, 9, 70, 80]),  # @10 40, @50 40
    }
    scores = metrics.fashioniq(ranks)
    assert scores == pytest.approx(
        {
            "dress_recall_at10": 25.0,
            "dress_recall_at50": 75.0,
            "shirt_recall_at10": 50.0,
            "shirt_recall_at50": 100.0,
            "toptee_recall_at10": 40.0,
            "toptee_recall_at50": 40.0,
            "average_recall_at10": 115 / 3,
            "average_recall_at50": 215 / 3,
            "average_recall": 55.0,
        }
    )


def test_fashioniq_means_agree_with_a_published_row():
    # arXiv 2404.11317, table 2, CLIP4CIR with SPN: per category, then 44.48, 66.88 and 55.68.
    at10, at50 = (38.82, 45.83, 48.80), (62.92, 66.44, 71.29)
    means = metrics.arithmetic_mean(at10), metrics.arithmetic_mean(at50)
    assert means == pytest.approx((44.48, 66.88), abs=0.005)
    assert metrics.arithmetic_mean(means) == pytest.approx(55.68, abs=0.005)


def test_cirr_means():
    ranks = np.asarray([0, 3, 7, 20])  # @1 25, @5 50, @10 75, @50 100
    subset = np.asarray([0, 0, 1, 2])  # @1 50, @2 75, @3 100
    scores = metrics.cirr(ranks, subset)
    assert scores["recall_mean"] == pytest.approx(50.0)
    assert scores["arithmetic_mean"] == pytest.approx(475 / 7)
    # 7 / (1/25 + 1/50 + 1/75 + 1/100 + 1/50 + 1/75 + 1/100) = 7 / (38/300)
    assert scores["harmonic_mean"] == pytest.approx(7 * 300 / 38)
    assert scores["geometric_mean"] == pytest.approx(
        (25 * 50 * 75 * 100 * 50 * 75 * 100) ** (1 / 7)
    )
    assert list(scores)[:7] == [
        "recall_at1", "recall_at5", "recall_at10", "recall_at50",
        "recall_subset_at1", "recall_subset_at2", "recall_subset_at3",
    ]  # fmt: skip


def test_cirr_means_survive_a_zero():
    scores = metrics.cirr(np.asarray([70, 3]), np.asarray([1, 2]))
    assert scores["recall_at1"] == scores["recall_subset_at1"] == 0.0
    assert (scores["harmonic_mean"], scores["geometric_mean"]) == (0.0, 0.0)
    assert scores["recall_mean"] == pytest.approx(25.0)
