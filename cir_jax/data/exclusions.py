# SPDX-License-Identifier: Apache-2.0
"""Images that are no negatives of a text: its reference, and the targets of equal queries.

Queries are equal if they have the same reference and the same text. Few are: for the others the
only such target is their own, which is known without a table.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from cir_jax.data.stacked import among, repeated
from cir_jax.data.triplet_columns import Columns, key_of

_FACTOR = 0x9E3779B97F4A7C15  # odd: what it multiplies can be told again
_STEP = 1 << 18  # triplets at a time


class Exclusions:
    """[M, E] rows of the image table that are no negatives of each text, -1 for none.

    Args:
      data: `cir_jax.data.pipeline.TrainingData`.
      reference: the reference is one of them.
      positives: the targets of equal queries are.
    """

    def __init__(self, data: Any, reference: bool, positives: bool):
        self._data, self._reference, self._positives = data, reference, positives
        self._several = np.zeros(0, np.int64)  # texts whose query comes again, ascending
        self._group = np.zeros(0, np.int64)  # the query of each of those
        self._starts = np.zeros(1, np.int64)  # where the targets of each query begin in ...
        self._targets = np.zeros(0, np.int32)
        if positives:
            self._find()
        self._most = max(int(np.diff(self._starts).max(initial=1)), 1)

    def __getitem__(self, texts: np.ndarray) -> np.ndarray:
        """int32 [b, E] of some texts."""
        data = self._data
        owner = np.searchsorted(data.text_start, texts, side="right") - 1
        columns = [np.zeros((len(texts), 0), np.int32)]
        if self._reference:
            columns.append(data.reference_id[owner][:, None])
        if self._positives:
            columns.append(self._others(texts, data.target_id[owner]))
        return np.concatenate(columns, axis=1).astype(np.int32)

    def _others(self, texts: np.ndarray, own: np.ndarray) -> np.ndarray:
        found = np.full((len(texts), self._most), -1, np.int32)
        found[:, 0] = own
        if not len(self._several):
            return found
        place = np.minimum(np.searchsorted(self._several, texts), len(self._several) - 1)
        for row in np.flatnonzero(self._several[place] == texts).tolist():
            query = self._group[place[row]]
            targets = self._targets[self._starts[query] : self._starts[query + 1]]
            found[row, : len(targets)] = targets
        return found

    def _find(self) -> None:
        """Finds the queries that come more than once, and their distinct targets in their order."""
        data = self._data
        keys = _keys(data.triplets, int(data.text_start[-1]))
        self._mix(keys)  # one number of the reference and the text, to find what may be equal
        again = repeated(keys)
        if not len(again):
            return
        self._several = np.flatnonzero(among(keys, again))
        owner = np.searchsorted(data.text_start, self._several, side="right") - 1
        reference, target = data.reference_id[owner], data.target_id[owner].astype(np.int64)
        text = keys[self._several] ^ (reference.astype(np.uint64) * np.uint64(_FACTOR))
        order = np.lexsort((text, reference))
        new = (np.diff(text[order]) != 0) | (np.diff(reference[order]) != 0)
        self._group = np.empty(len(order), np.int64)
        self._group[order] = np.concatenate([[0], np.cumsum(new)])
        _, first = np.unique(self._group * len(data.images) + target, return_index=True)
        first.sort()
        group = self._group[first]
        order = np.argsort(group, kind="stable")
        self._targets = target[first][order].astype(np.int32)
        self._starts = np.searchsorted(group[order], np.arange(group.max() + 2))

    def _mix(self, keys: np.ndarray) -> None:
        """Joins a number of the reference to that of each text; once more takes it off."""
        start, references = self._data.text_start, self._data.reference_id
        for first in range(0, len(references), _STEP):
            end = min(first + _STEP, len(references))
            some = references[first:end].astype(np.uint64) * np.uint64(_FACTOR)
            keys[start[first] : start[end]] ^= np.repeat(some, np.diff(start[first : end + 1]))


def _keys(triplets: Sequence[Any], count: int) -> np.ndarray:
    """uint64: a number of each text of triplets, of which there are `count`."""
    keys, place = np.empty(count, np.uint64), 0
    for part in getattr(triplets, "parts", [triplets]):
        if isinstance(part, Columns):
            blocks = part.text_keys()
        else:
            blocks = iter([np.asarray([key_of(x) for t in part for x in t.texts], np.uint64)])
        for some in blocks:
            keys[place : place + len(some)] = some
            place += len(some)
    return keys
