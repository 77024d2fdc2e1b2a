# SPDX-License-Identifier: Apache-2.0
"""Reads each ranking just as far as its answer goes: to the last image that is shown, and one more.

Folding takes images away, so a ranking is read further, by twice as much each time, until enough
different ones are certain, or it ends.
"""

import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cir_jax.retrieval.search import folding
from cir_jax.retrieval.search.asking import Terms
from cir_jax.retrieval.search.checking import Asked, Searched

_radii: "weakref.WeakKeyDictionary[Any, float]" = weakref.WeakKeyDictionary()


class Shown(NamedTuple):
    """An image that is shown, and the ids of those under it."""

    id: int
    score: float
    same: tuple[int, ...] = ()


def reach(index: Searched, asked: Sequence[Asked], terms: Sequence[Terms]) -> list[list[Shown]]:
    """For each question the images that are shown, best first: offset + k + 1, or all there are."""
    found: list[list[Shown]] = [[] for _ in asked]
    images = len(index.store)
    for exact in (True, False):
        open_ = [i for i, one in enumerate(asked) if bool(one.question.exact) is exact]
        wanted = max((_first(asked[i]) for i in open_), default=0)
        while open_ and images:
            count = min(wanted, images)
            top = index.store.top([terms[i] for i in open_], count, exact)
            still = []
            for i, ids, scores in zip(open_, *top, strict=True):
                found[i], ended = _shown(index, asked[i], ids, scores)
                if not ended and count < images and len(found[i]) < _needed(asked[i]):
                    still.append(i)
            open_, wanted = still, 2 * wanted
    return found


def _needed(one: Asked) -> int:
    return one.question.offset + one.question.k + 1


def _first(one: Asked) -> int:
    """A power of two, so that a store compiles few programs."""
    needed = _needed(one)
    return 1 << (needed + needed // 4 + 7).bit_length() if one.question.fold else needed


def _shown(
    index: Searched, one: Asked, ids: NDArray[np.int64], scores: NDArray[np.float32]
) -> tuple[list[Shown], bool]:
    """(the images that are shown, whether the ranking ends here)."""
    least = one.question.min_score
    kept = (ids >= 0) & (scores >= (-np.inf if least is None else least))
    count = int(kept.sum())  # they are the first ones
    places = [[i] for i in range(count)]
    if one.question.fold and count:
        ranked = ids[:count].tolist()
        rows, contents = index.store.rows(ranked), index.catalogue.contents(ranked)
        places = folding.fold(rows, contents, _radius(index))
    shown = [
        Shown(int(ids[first]), float(scores[first]), tuple(int(ids[i]) for i in others))
        for first, *others in places
    ]
    return shown, count < len(ids)


def _radius(index: Searched) -> float:
    """How near images are that are nearly the same; once for each index that is open."""
    found = _radii.get(index)
    if found is None:
        ids = index.catalogue.ids
        chosen = np.linspace(0, len(ids) - 1, min(len(ids), folding.SAMPLE)).round().astype(int)
        found = _radii[index] = folding.radius(index.store.rows(ids[chosen].tolist()))
    return found
