# SPDX-License-Identifier: Apache-2.0
"""The store of one machine: the segments of an index, or arrays, ranked where they lie.

float32 is exact. float16 and int8 rows are a half and a quarter as large; what that loses is lost
when they are written, and nothing more is: candidates are found among the rows as they are stored,
by products in float32, and scored exactly.
"""

import math
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from numpy.typing import NDArray

from cir_jax.errors import UserError
from cir_jax.retrieval import candidates, scoring
from cir_jax.retrieval.search.asking import Terms
from cir_jax.retrieval.search.where import Clause
from cir_jax.retrieval.store import RECALL
from cir_jax.retrieval.tables import Rows, Table
from cir_jax.runtime import mesh as meshes

if TYPE_CHECKING:
    import pyarrow

_FEW_VALUES = 2**14  # of rows that are scored at once rather than searched
_TAKEN_VALUES = 2**22  # of rows that are in memory at a time
_KEPT_MASKS = 16  # of the conditions asked for last


def opened(index: Any) -> "Store":
    """The store of an index that is there; its `recall` is that of `Store`."""
    catalogue = index.catalogue
    return Store(
        {s.number: Rows(s.rows, s.scales) for s in index.segments},
        catalogue.ids,
        catalogue.segment,
        catalogue.row,
        catalogue.table,
        shape=(index.rows_per_image, index.embedding),
        recall=index.recall,
    )


class _Mask(NamedTuple):
    """`rows` [positions]: which are candidates; `images` of them."""

    rows: NDArray[np.bool_]
    images: int


class Store:
    """See `cir_jax.retrieval.store.Store`.

    Args:
      segments: number -> its rows; those that are no image's are no candidates.
      ids: [N] ascending.
      segment: [N] number of the segment of each image.
      row: [N] its row there.
      fields: N lines of what a `where` may ask for; None for nothing.
      shape: (K, D).
      mesh: devices to rank on; None for all of this process.
      recall: above 0, at most 1: what `top(exact=False)` aims at on a TPU or GPU, as
        `jax.lax.approx_max_k` defines it. On a CPU every ranking is exact.

    Raises:
      UserError: a recall that is none.
    """

    def __init__(
        self,
        segments: Mapping[int, Rows],
        ids: NDArray[np.int64],
        segment: NDArray[np.integer],
        row: NDArray[np.int64],
        fields: "pyarrow.Table | None" = None,
        *,
        shape: tuple[int, int],
        mesh: Mesh | None = None,
        recall: float = RECALL,
    ):
        if not 0 < recall <= 1:
            raise UserError(f"recall={recall}; give a share above 0, at most 1, such as {RECALL}")
        self._ids, segment = np.asarray(ids, np.int64), np.asarray(segment)
        self._fields, self._shape, self._recall = fields, shape, recall
        self._segments = [rows for rows in segments.values() if len(rows.rows)]
        self._positions, start = np.asarray(row, np.int64).copy(), 0
        for number, rows in segments.items():
            self._positions[segment == number] += start
            start += len(rows.rows)
        self._at = np.full(start, -1, np.int64)  # the id at each position, -1 for none
        self._at[self._positions] = self._ids
        self._masks: OrderedDict[Any, _Mask] = OrderedDict()
        self._mesh, self._lock = mesh, threading.Lock()
        self._table: Table | None = None

    def __len__(self) -> int:
        return len(self._ids)

    def top(
        self, queries: Sequence[Terms], k: int, exact: bool = True
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """See `cir_jax.retrieval.store.Store`."""
        scoring.check(queries, k, self._shape[1])
        if queries and len(self):
            return self._best(queries, self._candidates(queries, k, exact), k)
        return scoring.nothing(len(queries), k)

    def rows(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """See `cir_jax.retrieval.store.Store`."""
        wanted = np.asarray(ids, np.int64)
        if not len(wanted):
            return np.zeros((0, *self._shape), np.float32)
        place = np.searchsorted(self._ids, wanted)
        there = np.take(self._ids, place, mode="clip") == wanted if len(self) else wanted < 0
        if not there.all():
            raise UserError(f"no image of this index has the id {wanted[~there][0]}")
        return self._on_devices().taken(self._positions[place])

    def count(self, where: Clause | None) -> int:
        """See `cir_jax.retrieval.store.Store`."""
        return len(self) if where is None else self._mask(where).images

    def _best(
        self, queries: Sequence[Terms], found: Sequence[NDArray[np.int64]], k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The best k of the candidates that each question does not leave out, by exact scores."""
        kept = [
            positions[~np.isin(self._at[positions], list(terms.leave_out))]
            if terms.leave_out
            else positions
            for terms, positions in zip(queries, found, strict=True)
        ]
        which = np.repeat(np.arange(len(kept)), [len(positions) for positions in kept])
        positions = np.concatenate(kept)
        order = np.lexsort((positions, which))  # rows are read in the order in which they lie
        positions = positions[order]
        scores, table = np.empty(len(positions), np.float32), self._on_devices()
        size = max(1, _TAKEN_VALUES // math.prod(self._shape))
        for start in range(0, len(positions), size):  # so that few rows are in memory at a time
            part = slice(start, start + size)
            rows = table.taken(positions[part])
            scores[part] = scoring.scores_of_pairs(queries, which[part], rows)
        return scoring.best_of_each(which, self._at[positions], scores, len(queries), k)

    def _candidates(self, queries: Sequence[Terms], k: int, exact: bool) -> list[NDArray[np.int64]]:
        """For each question positions among which its best k are."""
        found: dict[int, NDArray[np.int64]] = {}
        searched: list[int] = []
        which: list[int] = []
        masks: dict[int, _Mask] = {}  # by their identity, each once
        for number, terms in enumerate(queries):
            mask = self._mask(terms.where)
            if self._few(mask.images, len(queries)):
                found[number] = np.flatnonzero(mask.rows)
                continue
            masks.setdefault(id(mask), mask)
            searched.append(number)
            which.append(list(masks).index(id(mask)))
        chosen = None
        if any(mask.images < len(self._at) for mask in masks.values()):
            rows = np.stack([mask.rows for mask in masks.values()])
            chosen = candidates.Masks(rows, np.asarray(which, np.int32))
        table = self._on_devices()
        positions = candidates.find(
            table,
            [queries[number] for number in searched],
            [k + len(queries[number].leave_out) for number in searched],
            chosen,
            None if exact or table.on_cpu else self._recall,
        )
        found |= dict(zip(searched, positions, strict=True))
        return [found[number] for number in range(len(queries))]

    def _few(self, images: int, queries: int) -> bool:
        """Whether all of a question's candidates are scored quicker than the best are found.

        A batch looks at all rows, once for all questions; scoring a row takes about as long as
        looking at eight.
        """
        values = images * math.prod(self._shape)
        return values <= _FEW_VALUES or (
            values <= _TAKEN_VALUES and images * queries * 8 <= len(self._at)
        )

    def _mask(self, where: Clause | None) -> "_Mask":
        """The candidates; those of the last few conditions are kept."""
        tree = None if where is None else where.tree
        with self._lock:
            if tree in self._masks:
                self._masks.move_to_end(tree)
                return self._masks[tree]
        if where is None:
            rows = self._at >= 0
        elif self._fields is None:
            raise UserError(f"where {where.text!r}, but these images have no fields")
        else:
            rows = np.zeros(len(self._at), np.bool_)
            rows[self._positions[where.mask(self._fields)]] = True
        mask = _Mask(rows, int(rows.sum()))
        with self._lock:
            self._masks[tree] = mask
            while len(self._masks) > _KEPT_MASKS:
                self._masks.popitem(last=False)
            return mask

    def _on_devices(self) -> Table:
        with self._lock:
            if self._table is None:
                if self._mesh is None:
                    self._mesh = meshes.make(devices=jax.local_devices())
                self._table = Table(self._segments, self._mesh)
            return self._table
