# SPDX-License-Identifier: Apache-2.0
"""Recall and its means, as pure functions of ranks. A rank counts the candidates ahead: 0 is best.

Every value is in per cent. Sources: section 4.1 of arXiv 2404.11317, whose tables use these means;
FashionIQ (arXiv 1905.12794) and CIRR (arXiv 2108.04024) for the recalls.
"""

from collections.abc import Mapping, Sequence

import numpy as np

FASHIONIQ_AT = (10, 50)
CIRR_AT = (1, 5, 10, 50)
CIRR_SUBSET_AT = (1, 2, 3)


def recall_at(ranks: np.ndarray, k: int) -> float:
    """Share of queries whose target is among the first `k`, in per cent.

    Args:
      ranks: [Q] candidates ahead of the target.
      k: at least 1.

    Raises:
      ValueError: there is no query, or k < 1.
    """
    ranks = np.asarray(ranks)
    if ranks.size == 0 or k < 1:
        raise ValueError(f"recall@{k} of {ranks.size} queries is undefined; it needs both >= 1")
    return float(100.0 * np.mean(ranks < k))


def recalls(ranks: np.ndarray, at: Sequence[int], prefix: str = "recall_at") -> dict[str, float]:
    """{"recall_at1": ..., ...} for every k of `at`."""
    return {f"{prefix}{k}": recall_at(ranks, k) for k in at}


def fashioniq(ranks: Mapping[str, np.ndarray]) -> dict[str, float]:
    """FashionIQ: recall@10 and @50 per category, their plain means, and the mean of the two means.

    Categories weigh the same however many queries they have. `average_recall` selects models.

    Args:
      ranks: category -> [Q] ranks within that category's gallery.
    """
    scores: dict[str, float] = {}
    for category, values in ranks.items():
        scores |= recalls(values, FASHIONIQ_AT, f"{category}_recall_at")
    means = {
        f"average_recall_at{k}": arithmetic_mean([scores[f"{c}_recall_at{k}"] for c in ranks])
        for k in FASHIONIQ_AT
    }
    return {**scores, **means, "average_recall": arithmetic_mean(list(means.values()))}


def cirr(ranks: np.ndarray, subset_ranks: np.ndarray) -> dict[str, float]:
    """CIRR: recall@1, 5, 10, 50, subset recall@1, 2, 3, and four means.

    `recall_mean` = (recall@5 + subset recall@1) / 2 selects models; the arithmetic, harmonic and
    geometric means are over all seven.

    Args:
      ranks: [Q] ranks in the whole gallery, the reference removed.
      subset_ranks: [Q] ranks among the members of the query's subset, the reference removed.
    """
    scores = recalls(ranks, CIRR_AT)
    scores |= recalls(subset_ranks, CIRR_SUBSET_AT, "recall_subset_at")
    seven = list(scores.values())
    return {
        **scores,
        "recall_mean": (scores["recall_at5"] + scores["recall_subset_at1"]) / 2,
        "arithmetic_mean": arithmetic_mean(seven),
        "harmonic_mean": harmonic_mean(seven),
        "geometric_mean": geometric_mean(seven),
    }


def arithmetic_mean(values: Sequence[float]) -> float:
    """The plain mean."""
    return float(np.mean(np.asarray(values, np.float64)))


def harmonic_mean(values: Sequence[float]) -> float:
    """1 / mean(1 / x); 0 as soon as one value is 0, which is its limit."""
    x = np.asarray(values, np.float64)
    return 0.0 if (x == 0).any() else float(x.size / np.sum(1.0 / x))


def geometric_mean(values: Sequence[float]) -> float:
    """exp(mean(log x)); 0 as soon as one value is 0 (a plain logarithm would fail there)."""
    x = np.asarray(values, np.float64)
    return 0.0 if (x == 0).any() else float(np.exp(np.mean(np.log(x))))
