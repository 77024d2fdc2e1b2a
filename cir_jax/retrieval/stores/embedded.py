# SPDX-License-Identifier: Apache-2.0
"""The store of one machine: rows of files or arrays, ranked where they lie. Nothing to install."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cir_jax.errors import UserError
from cir_jax.retrieval import scoring
from cir_jax.retrieval.search.asking import Terms
from cir_jax.retrieval.search.where import Clause

_GATHERED = 4096  # rows taken from a file at a time


def opened(index: Any) -> "Store":
    """The store of an index that is there."""
    catalogue = index.catalogue
    return Store(
        [(s.number, s.rows, s.scales) for s in index.segments],
        catalogue.ids,
        catalogue.segment,
        catalogue.row,
        catalogue.fields,
    )


class Store:
    def __init__(self, segments, ids, segment, row, fields=None):
        self._segments = {number: (rows, scales) for number, rows, scales in segments}
        self._ids, self._segment, self._row = (np.asarray(x) for x in (ids, segment, row))
        self._fields = fields

    def __len__(self) -> int:
        return len(self._ids)

    def top(self, queries: Sequence[Terms], k: int, exact: bool = True):
        if k < 1:
            raise UserError(f"k={k}; ask for at least 1")
        found = []
        for terms in queries:
            keep = ~np.isin(self._ids, list(terms.leave_out))
            if terms.where is not None:
                keep &= terms.where.mask(self._fields)
            places = np.flatnonzero(keep)
            scores = [scoring.scores(terms, rows) for rows in self._taken(places)]
            scores = np.concatenate([np.zeros(0, np.float32), *scores])
            found.append(scoring.best(self._ids[places], scores, k))
        return tuple(np.stack(x) for x in zip(*found, strict=True))

    def rows(self, ids: Sequence[int]) -> NDArray[np.float32]:
        places = np.searchsorted(self._ids, ids)
        known = places < len(self._ids)
        known[known] = self._ids[places[known]] == np.asarray(ids)[known]
        if not known.all():
            raise UserError(f"no image {np.asarray(ids)[~known][0]} in this index")
        return np.concatenate(list(self._taken(places)))

    def count(self, where: Clause | None) -> int:
        return len(self) if where is None else int(where.mask(self._fields).sum())

    def _taken(self, places: NDArray[np.int64]) -> Iterator[NDArray[np.float32]]:
        for start in range(0, len(places), _GATHERED):
            yield self._gathered(places[start : start + _GATHERED])

    def _gathered(self, places: NDArray[np.int64]) -> NDArray[np.float32]:
        segment, row = self._segment[places], self._row[places]
        out = None
        for number in np.unique(segment):
            mine = segment == number
            rows, scales = self._segments[number]
            part = rows[row[mine]].astype(np.float32)
            if scales is not None:
                part *= scales[row[mine]][..., None]
            if out is None:
                out = np.empty((len(places), *part.shape[1:]), np.float32)
            out[mine] = part
        return out
