# SPDX-License-Identifier: Apache-2.0
"""What a model answered, query by query: the ranking and the value of every metric."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cir_jax.evals.benchmark import Task
from cir_jax.retrieval import ranking
from cir_jax.retrieval.retriever import Retriever

_QUERIES = 1024  # whose rankings are held at once


@dataclass(frozen=True)
class Answers:
    """The answers to the queries of one task.

    Attributes:
      part: names the task in its benchmark, e.g. FashionIQ's category; "" if it is the only one.
      task: the queries and their gallery.
      query: [Q, D] the queries as they were encoded.
      gallery: [G, K, D] the images.
      ranks: "rank" -> [Q] rank of the target (of the best right answer, where a benchmark counts
        that), 0 is best; and other ranks by their names, such as that within CIRR's subset.
      values: metric -> [Q] what each query adds to it, in per cent; the metric is their mean. NaN
        where a query does not count.
      removed: [Q] gallery row that is no candidate; None for none.
      members: [Q, M] gallery rows that are the candidates, -1 to fill up; None for all.
    """

    part: str
    task: Task
    query: np.ndarray
    gallery: np.ndarray
    ranks: Mapping[str, np.ndarray]
    values: Mapping[str, np.ndarray]
    removed: np.ndarray | None = None
    members: np.ndarray | None = None


def records(retriever: Retriever, one: Answers, count: int) -> Iterator[dict[str, Any]]:
    """A record per query, in order, as JSON holds it; ranks count from 1.

    Every process runs through all of it: rankings are made by all of them.

    Args:
      retriever: the model that gave the answers.
      one: the answers.
      count: images per ranking; all candidates, where there are fewer.
    """
    right, own = _right_ranks(retriever, one)
    names = one.task.names
    for start in range(0, len(one.query), _QUERIES):
        chosen = slice(start, start + _QUERIES)
        rows, scores = _best(retriever, one, chosen, count)
        for i, best, values in zip(range(start, start + len(rows)), rows, scores, strict=True):
            triplet = one.task.triplets[i]
            gone = -1 if one.removed is None else int(one.removed[i])
            kept = best >= 0
            yield {
                "part": one.part,
                "query_id": triplet.query_id,
                "reference": triplet.reference,
                "text": triplet.eval_text,
                "excluded": [names[gone]] if gone >= 0 else [],
                **{name: int(ranks[i]) + 1 for name, ranks in one.ranks.items()},
                "right": list(right[i]),
                "right_ranks": own[i],
                "ranked": [names[row] for row in best[kept]],
                "scores": [float(x) if np.isfinite(x) else None for x in values[kept]],
                "values": {n: float(v[i]) for n, v in one.values.items() if np.isfinite(v[i])},
            }


def _right_ranks(retriever: Retriever, one: Answers) -> tuple[list[tuple[str, ...]], list]:
    """Names of the right answers of each query, and their ranks from 1 on."""
    right = [t.truths or (t.target,) for t in one.task.triplets]
    if all(len(names) == 1 for names in right):
        return right, [[int(rank) + 1] for rank in one.ranks["rank"]]
    row_of = one.task.row_of
    owner = np.asarray([i for i, names in enumerate(right) for _ in names])
    target = np.asarray([row_of[name] for names in right for name in names])
    removed = None if one.removed is None else one.removed[owner]
    ranks = retriever.ranks(one.query[owner], one.gallery, target, removed).tolist()
    found: list[list[int]] = [[] for _ in right]
    for i, rank in zip(owner, ranks, strict=True):
        found[i].append(rank + 1)
    return right, found


def _best(
    retriever: Retriever, one: Answers, chosen: slice, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows [q, n] and scores [q, n] of some queries, best first; rows of -1 fill up."""
    query = one.query[chosen]
    gone = None if one.removed is None else one.removed[chosen]
    if one.members is None:
        fewer = gone is not None and bool((gone >= 0).any())
        return retriever.top(query, one.gallery, min(count, len(one.task.names) - fewer), gone)
    order = ranking.member_order(query, one.gallery, one.members[chosen], gone)[:, :count]
    scores = np.stack(
        [
            np.einsum("d,mkd->mk", x, one.gallery[rows]).max(axis=1)
            for x, rows in zip(query, order, strict=True)
        ]
    )
    return order, scores
