# SPDX-License-Identifier: Apache-2.0
"""Questions as arrays of a few shapes, so that few programs serve all of them.

Axis letters: D embedding, Q questions, G groups, P vectors of a group, V vectors of all questions.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cir_jax.retrieval.search.asking import Terms

Groups = tuple[tuple[NDArray[np.float32], NDArray[np.float32]], ...]


def pack(queries: Sequence[Terms]) -> tuple[Groups, NDArray[np.float64]]:
    """The groups of questions by their size, and how far a score can be.

    Vectors and weights are scaled by powers of two to a length near 1, which changes no order.

    Returns:
      (groups, lengths): for each power of two P that is the size of a group, vectors
      [Q', G, P, D] and weights [Q', G], both float32, Q' >= Q. Smaller groups repeat a
      vector; missing ones have the weight 0. And [Q] the largest score for rows of length 1.
    """
    owner = np.repeat(np.arange(len(queries)), [len(q.weights) for q in queries])  # of each group
    vectors, starts, weights = _scaled(queries, owner)
    norms = np.sqrt(np.einsum("vd,vd->v", vectors, vectors, dtype=np.float64))
    reach = np.abs(weights) * np.maximum.reduceat(norms, starts[:-1])
    lengths = np.bincount(owner, reach, len(queries)).astype(np.float64)
    sizes = np.diff(starts)
    filled = np.array([power(size) for size in sizes.tolist()])
    groups = []
    for size in np.unique(filled).tolist():
        mine = np.flatnonzero(filled == size)
        number = owner[mine]
        slot = np.arange(len(mine)) - np.searchsorted(number, number)  # among those of a question
        shape = (_padded(len(queries)), int(slot.max()) + 1)
        of_size = np.zeros((*shape, size, vectors.shape[1]), np.float32)
        of_size[number, slot] = vectors[
            starts[mine, None] + np.arange(size)[None] % sizes[mine, None]
        ]
        weight = np.zeros(shape, np.float32)
        weight[number, slot] = weights[mine]
        groups.append((of_size, weight))
    return tuple(groups), lengths


def _scaled(
    queries: Sequence[Terms], owner: NDArray[np.intp]
) -> tuple[NDArray[np.float32], NDArray[np.intp], NDArray[np.float32]]:
    """(vectors [V, D] of all groups, V where each group starts and V, weights of the groups)."""
    vectors = np.concatenate([q.vectors for q in queries]).astype(np.float32)
    weights = np.concatenate([q.weights for q in queries]).astype(np.float32)
    sizes = np.concatenate([np.bincount(q.groups, minlength=len(q.weights)) for q in queries])
    starts = np.cumsum([0, *sizes])
    largest = np.maximum.reduceat(np.abs(vectors).max(axis=1), starts[:-1])
    for values, most, of in (
        (vectors, largest, np.repeat(owner, sizes)),
        (weights, np.abs(weights), owner),
    ):
        per_query = np.zeros(len(queries), np.float32)
        np.maximum.at(per_query, owner, most)
        exponents = -np.frexp(per_query)[1][of]
        np.ldexp(values, exponents.reshape(-1, *[1] * (values.ndim - 1)), out=values)
    return vectors, starts, weights


def _padded(queries: int) -> int:
    """1, 8 or a larger power of two: on a CPU 8 cost little more than 2, and each is a program."""
    return 1 if queries == 1 else max(8, power(queries))


def power(number: int) -> int:
    """The smallest power of two that is not smaller."""
    return 1 << (number - 1).bit_length()
