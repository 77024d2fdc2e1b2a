# SPDX-License-Identifier: Apache-2.0
"""The best images of questions, from lists that Milvus gives of the nearest rows of a vector.

A list holds the rows with the largest products, at most MOST of them, and bounds the products of
all other rows. From the lists of the vectors of a question follows the best score that an image in
none of them can have (the threshold algorithm of Fagin, Lotem and Naor, PODS 2001, here for a
weighted sum of maxima). The images in the lists are scored from the folder; if the k-th best of
them is better than the bound, no other image is among the best. Else longer lists are asked for.

A group that takes away counts by the rows least like its vector: their list is that of the negated
vector, whose products bound what the group can leave.

Axis letters: N images, n candidates, K rows of an image, D embedding, P vectors of a question, Q
questions.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cir_jax.retrieval import scoring
from cir_jax.retrieval.milvus import expressions
from cir_jax.retrieval.milvus.collection import MOST
from cir_jax.retrieval.search.asking import Terms

# vectors [P, D], rows to find, expression -> as `Collection.nearest`
Nearest = Callable[[NDArray[np.float32], int, str], list[tuple[NDArray[np.int64], float]]]
Best = tuple[NDArray[np.int64], NDArray[np.float32]]  # ids [k], scores [k]

_EXTRA = 22  # rows beyond those that are needed at least
_GROWTH = 4  # how much longer the next lists are
_SCORED = 512  # images whose rows are in memory at a time
_ERROR = 1e-5  # of a product in float32 of unit vectors


def top(queries: Sequence[Terms], k: int, index: Any, nearest: Nearest) -> list[Best | None]:
    """The best k of each question, see `cir_jax.retrieval.store.Store.top`.

    Args:
      queries, k: as there.
      index: its catalogue, which is not empty, and its rows.
      nearest: asks Milvus.

    Returns:
      Of each question its best, or None where MOST rows of a list do not make it certain.
    """
    found: list[Best | None] = [None] * len(queries)
    alike = defaultdict(list)  # of one condition
    for number, terms in enumerate(queries):
        alike["" if terms.where is None else expressions.of(terms.where.tree)].append(number)
    for condition, pending in alike.items():
        left_out = max(len(queries[number].leave_out) for number in pending)
        most = (k + left_out) * min(index.rows_per_image, _GROWTH) + _EXTRA
        while pending and k <= MOST:
            most = min(most, MOST)
            vectors = np.concatenate([_asked(queries[number]) for number in pending])
            lists = iter(nearest(vectors, most, condition))
            for number in pending:
                own = [next(lists) for _ in queries[number].vectors]
                found[number] = _best(queries[number], k, own, index)
            pending = [number for number in pending if found[number] is None and most < MOST]
            most *= _GROWTH
    return found


def _asked(terms: Terms) -> NDArray[np.float32]:
    """[P, D]: the vectors whose lists are needed."""
    sign = np.where(terms.weights[terms.groups] < 0, np.float32(-1), np.float32(1))
    return terms.vectors * sign[:, None]


def _best(terms: Terms, k: int, lists: Any, index: Any) -> Best | None:
    """The best of one question from the lists of its vectors; None if another could be better."""
    ids = _candidates(terms, np.unique(np.concatenate([ids for ids, _ in lists])), index.catalogue)
    scores, longest = [np.zeros(0, np.float32)], 1.0
    for start in range(0, len(ids), _SCORED):
        part = index.rows(ids[start : start + _SCORED].tolist())
        scores.append(scoring.scores(terms, part))
        longest = max(longest, float(np.sqrt(np.square(part).sum(-1).max())))
    best = scoring.best(ids, np.concatenate(scores), k)
    bounds = np.array([bound for _, bound in lists], np.float64)
    if np.isneginf(bounds).any():
        return best  # a list has all rows, so that no image is in none
    bounds += _ERROR * longest * np.linalg.norm(terms.vectors.astype(np.float64), axis=1)
    limit = 0.0
    for group, weight in enumerate(terms.weights.astype(np.float64)):
        of_group = bounds[terms.groups == group]
        limit += abs(weight) * (of_group.max() if weight >= 0 else of_group.min())
    return best if best[1][-1] > limit else None


def _candidates(terms: Terms, ids: NDArray[np.int64], catalogue: Any) -> NDArray[np.int64]:
    """Those of `ids` that the question may find."""
    places = np.minimum(np.searchsorted(catalogue.ids, ids), len(catalogue.ids) - 1)
    keep = (catalogue.ids[places] == ids) & ~np.isin(ids, list(terms.leave_out))
    ids, places = ids[keep], places[keep]
    if terms.where is not None and len(ids):
        keep = terms.where.mask(catalogue.table.take(places))
        ids = ids[keep]
    return ids
