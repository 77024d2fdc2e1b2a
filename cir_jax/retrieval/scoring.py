# SPDX-License-Identifier: Apache-2.0
"""Scores of given images, the same to the last bit wherever and with whatever they are computed.

A product of matrices in float32 gives a row another last bit in another place of the matrix, in
another batch and on another device. So two images with equal rows would not tie, and a question
would be answered differently beside other questions. A store therefore finds the few images that
can be among the best by a fast product, and orders them by these scores: sums in float64 in one
fixed order, rounded to float32.

Axis letters: n images, K rows of an image, D embedding, P vectors of a question.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cir_jax.errors import UserError
from cir_jax.retrieval.search.asking import Terms

_LARGEST = float(np.finfo(np.float32).max)
_BLOCK_VALUES = 2**21  # of products in float64 held at once, 16 MiB


def check(queries: Sequence[Terms], k: int, width: int) -> None:
    """What every store asks of questions.

    Args:
      queries, k: see `cir_jax.retrieval.store.Store.top`.
      width: D of the index.

    Raises:
      UserError: k below 1, vectors of another width, or vectors or weights that are not finite.
    """
    if k < 1:
        raise UserError(f"k={k}; ask for at least 1 image")
    for terms in queries:
        if terms.vectors.shape[1:] != (width,):
            raise UserError(
                f"a query of {terms.vectors.shape[-1]} numbers, but rows of this index have "
                f"{width}; compose it with the model of the index"
            )
        if not (np.isfinite(terms.vectors).all() and np.isfinite(terms.weights).all()):
            raise UserError(
                "a query or a weight is not finite (NaN or infinite); give finite weights, and "
                "look at the model's parameters if its queries are not"
            )


def scores(terms: Terms, rows: NDArray[np.floating]) -> NDArray[np.float32]:
    """[n]: the score of each image, see `Terms`; -inf for one that is no number or infinite.

    Args:
      terms: one question; what it leaves out is not looked at.
      rows: [n, K, D] float32, or anything that float32 holds.
    """
    images, each, width = rows.shape
    vectors = terms.vectors.astype(np.float64)
    starts = np.flatnonzero(np.diff(terms.groups, prepend=-1))
    found = np.empty(images, np.float32)
    size = max(1, _BLOCK_VALUES // (each * width))
    for start in range(0, images, size):
        part = rows[start : start + size].astype(np.float64)
        best = np.stack([_nearest(part, np.broadcast_to(v, (len(part), width))) for v in vectors])
        total = np.zeros(len(part))
        for weight, group in zip(terms.weights, np.maximum.reduceat(best, starts), strict=True):
            total += float(weight) * group
        found[start : start + size] = _rounded(total)
    return found


def scores_of_pairs(
    queries: Sequence[Terms], which: NDArray[np.intp], rows: NDArray[np.floating]
) -> NDArray[np.float32]:
    """[n]: scores as of `scores`, of image i for the question `which[i]`; which ascends.

    Args:
      queries: of any number.
      which: [n] their places in `queries`.
      rows: [n, K, D].
    """
    found = np.empty(len(rows), np.float32)
    if not all(terms.folded for terms in queries):
        bounds = np.searchsorted(which, np.arange(len(queries) + 1))
        for terms, start, stop in zip(queries, bounds, bounds[1:], strict=False):
            found[start:stop] = scores(terms, rows[start:stop])
        return found
    vectors = np.concatenate([terms.vectors for terms in queries]).astype(np.float64)
    size = max(1, _BLOCK_VALUES // (rows.shape[1] * rows.shape[2]))
    for start in range(0, len(rows), size):
        part = slice(start, start + size)
        found[part] = _rounded(_nearest(rows[part].astype(np.float64), vectors[which[part]]))
    return found


def _nearest(rows: NDArray[np.float64], vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """[n]: of n images [n, K, D] and n vectors [n, D], the largest product over K."""
    # einsum adds up every row in one order; a product of matrices (`@`) would not.
    return np.einsum("nkd,nd->nk", rows, vectors).max(axis=1)


def _rounded(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """As float32 holds them, -inf for what is no number."""
    return np.where(np.isfinite(scores), np.clip(scores, -_LARGEST, _LARGEST), -np.inf)


def best(
    ids: NDArray[np.int64], scores: NDArray[np.float32], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The best k, best first, equal scores by id; -1 and -inf fill up.

    Args:
      ids, scores: [n] of candidates, in any order.
      k: how many are wanted.
    """
    found = best_of_each(np.zeros(len(ids), np.intp), ids, scores, 1, k)
    return found[0][0], found[1][0]


def best_of_each(
    which: NDArray[np.intp],
    ids: NDArray[np.int64],
    scores: NDArray[np.float32],
    questions: int,
    k: int,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """[questions, k]: the best k of each, best first, equal scores by id; -1 and -inf fill up.

    Args:
      which: [n] the question of each candidate, ascending.
      ids, scores: [n] of candidates, in any order.
      questions, k: how many there are, and how many images are wanted of each.
    """
    found = nothing(questions, k)
    order = np.lexsort((ids, -scores, which))
    place = np.arange(len(which)) - np.searchsorted(which, which)
    mine = place < k
    found[0][which[mine], place[mine]] = ids[order][mine]
    found[1][which[mine], place[mine]] = scores[order][mine]
    return found


def nothing(questions: int, k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """[questions, k]: ids -1 and scores -inf, of images that do not exist."""
    return np.full((questions, k), -1, np.int64), np.full((questions, k), -np.inf, np.float32)
