# SPDX-License-Identifier: Apache-2.0
"""Recall, average precision and their means, as pure functions.

A rank counts the candidates ahead of the target, so 0 is the best.

Every value is in per cent. Sources: section 4.1 of arXiv 2404.11317, whose tables use these means;
FashionIQ (arXiv 1905.12794), CIRR (arXiv 2108.04024), CIRCO (arXiv 2303.15247) and GeneCIS (arXiv
2306.07969).
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

FASHIONIQ_AT = (10, 50)
CIRR_AT = (1, 5, 10, 50)
CIRR_SUBSET_AT = (1, 2, 3)
CIRCO_AT = (5, 10, 25, 50)
CIRCO_ASPECT_AT = 10
# In the order in which the authors of CIRCO list them.
CIRCO_ASPECTS = (
    "cardinality", "addition", "negation", "direct_addressing", "compare_change",
    "comparative_statement", "statement_with_conjunction", "spatial_relations_background",
    "viewpoint",
)  # fmt: skip
GENECIS_AT = (1, 2, 3)
FOLDER_AT = (1, 5, 10, 50)
# Metrics that are means of others, metric -> (a kind of `MEANS`, what it is the mean of): with them
# every score follows from values of single queries, which `comparison` draws from.
Means = dict[str, tuple[str, tuple[str, ...]]]
_SEVEN = (
    *(f"recall_at{k}" for k in CIRR_AT),
    *(f"recall_subset_at{k}" for k in CIRR_SUBSET_AT),
)
CIRR_MEANS: Means = {
    "recall_mean": ("arithmetic", ("recall_at5", "recall_subset_at1")),
    **{f"{kind}_mean": (kind, _SEVEN) for kind in ("arithmetic", "harmonic", "geometric")},
}
FOLDER_MEANS: Means = {"average_recall": ("arithmetic", tuple(f"recall_at{k}" for k in FOLDER_AT))}


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


def hits_at(
    ranks: np.ndarray, at: Sequence[int], prefix: str = "recall_at"
) -> dict[str, np.ndarray]:
    """{"recall_at1": [Q], ...}: 100 for each query whose target is among the first k, else 0."""
    return {f"{prefix}{k}": 100.0 * (np.asarray(ranks) < k) for k in at}


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


def fashioniq_means(categories: Iterable[str]) -> Means:
    """Which metrics of `fashioniq` are means of which."""
    names = list(categories)
    means: Means = {
        f"average_recall_at{k}": ("arithmetic", tuple(f"{c}_recall_at{k}" for c in names))
        for k in FASHIONIQ_AT
    }
    return means | {"average_recall": ("arithmetic", tuple(means))}


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


def average_precisions(hits: np.ndarray, truths: np.ndarray, k: int) -> np.ndarray:
    """[Q] average precision of the first `k` results of each query, in per cent.

    The sum over the right results among the first `k` of the precision at their place, divided by
    the smaller of `k` and the number of right answers: 100 is then within reach for every `k`.

    Args:
      hits: [Q, R] whether the result at a place is right, best first. Places beyond R are wrong.
      truths: [Q] number of right answers in the whole gallery.
      k: at least 1.

    Raises:
      ValueError: there is no query, k < 1, or a query has no right answer, or fewer than hits.
    """
    hits, truths = np.asarray(hits, bool), np.asarray(truths)
    if hits.shape[0] == 0 or k < 1:
        raise ValueError(f"mAP@{k} of {hits.shape[0]} queries is undefined; it needs both >= 1")
    if (truths < np.maximum(hits.sum(axis=1), 1)).any():
        raise ValueError("a query has at least one right answer, and no more hits than answers")
    precision = np.cumsum(hits, axis=1) / np.arange(1, hits.shape[1] + 1)[None]
    return 100.0 * np.sum((precision * hits)[:, :k], axis=1) / np.minimum(truths, k)


def circo(
    hits: np.ndarray, truths: np.ndarray, ranks: np.ndarray, aspects: Sequence[Sequence[str]]
) -> dict[str, float]:
    """CIRCO: mAP over all right answers, recall of the one target, mAP@10 per aspect.

    A query counts in every aspect it has; an aspect that no query has is left out. `map_at5`
    selects models.

    Args:
      hits, truths: as for `average_precisions`; at least 50 results if there are as many.
      ranks: [Q] ranks of the targets.
      aspects: Q times the aspects of a query.
    """
    scores = {f"map_at{k}": arithmetic_mean(average_precisions(hits, truths, k)) for k in CIRCO_AT}
    scores |= recalls(ranks, CIRCO_AT)
    precision = average_precisions(hits, truths, CIRCO_ASPECT_AT)
    for aspect in in_order(aspects):
        chosen = [aspect in own for own in aspects]
        scores[f"{aspect}_map_at{CIRCO_ASPECT_AT}"] = arithmetic_mean(precision[chosen])
    return scores


def in_order(aspects: Sequence[Sequence[str]]) -> list[str]:
    """The aspects that queries have: CIRCO's in its order, then others."""
    found = dict.fromkeys(aspect for own in aspects for aspect in own)
    return [
        *(a for a in CIRCO_ASPECTS if a in found),
        *(a for a in found if a not in CIRCO_ASPECTS),
    ]


def circo_values(
    hits: np.ndarray, truths: np.ndarray, ranks: np.ndarray, aspects: Sequence[Sequence[str]]
) -> dict[str, np.ndarray]:
    """{metric: [Q]} whose means are what `circo` gives; NaN where a query lacks the aspect."""
    values = {f"map_at{k}": average_precisions(hits, truths, k) for k in CIRCO_AT}
    values |= hits_at(ranks, CIRCO_AT)
    for aspect in in_order(aspects):
        own = np.asarray([aspect in every for every in aspects])
        precision = average_precisions(hits, truths, CIRCO_ASPECT_AT)
        values[f"{aspect}_map_at{CIRCO_ASPECT_AT}"] = np.where(own, precision, np.nan)
    return values


def folder(values: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Triplets of one's own: the mean of each metric over the queries, and of the recalls.

    Args:
      values: recall_at1, 5, 10 and 50, and others -> [Q].
    """
    scores = {name: arithmetic_mean(of_queries) for name, of_queries in values.items()}
    ((_, recalled),) = FOLDER_MEANS.values()
    return scores | {"average_recall": arithmetic_mean([scores[name] for name in recalled])}


def genecis(ranks: Mapping[str, np.ndarray]) -> dict[str, float]:
    """GeneCIS: recall@1, 2, 3 per task, and their plain means. `average_recall_at1` selects models.

    Args:
      ranks: task -> [Q] ranks within each query's own gallery.
    """
    scores: dict[str, float] = {}
    for task, values in ranks.items():
        scores |= recalls(values, GENECIS_AT, f"{task}_recall_at")
    return scores | {
        f"average_recall_at{k}": arithmetic_mean([scores[f"{t}_recall_at{k}"] for t in ranks])
        for k in GENECIS_AT
    }


def genecis_means(tasks: Iterable[str]) -> Means:
    """Which metrics of `genecis` are means of which."""
    names = list(tasks)
    return {
        f"average_recall_at{k}": ("arithmetic", tuple(f"{t}_recall_at{k}" for t in names))
        for k in GENECIS_AT
    }


def arithmetic_mean(values: Sequence[float] | np.ndarray) -> float:
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
