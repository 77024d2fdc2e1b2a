# SPDX-License-Identifier: Apache-2.0
"""An index of drawn rows and fields, as a store sees it: without a model and without files."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa

from cir_jax.retrieval import scoring
from cir_jax.retrieval.search import where
from cir_jax.retrieval.search.asking import Terms

# What somebody may call a category, to see whether a store takes it for anything but a text.
HOSTILE = (
    "shoes", "", "'", '"', "\\", "\\'", '\\"', "a' or 1 == 1 or '", '" or 1 == 1 or "',
    '"] or h_6e == true or f_6e in ["',
    "%", "_", "50% off", "a_b", "new\nline", "\r\n", "tab\there",
    "\x00nul", "\x7f", "\u2028", "\u202eRTL", "ünï🙂", "日本語", "$meta", "true", "null", "1",
    "{x}", "--", "/* */", "a" * 900,
)  # fmt: skip


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


class Index:
    """n images whose ids have gaps; the rows of 20 of them are the same.

    Args:
      folder: where a store may keep what it knows.
      place: of the store.
      each, width, count: K, D, n.
      first: id of the first image.
    """

    def __init__(self, folder, place, each=1, width=16, count=300, first=3, seed=0):
        rng = np.random.default_rng(seed)
        rows = unit(rng.normal(size=(count, each, width))).astype(np.float32)
        rows[count // 2 : count // 2 + 20] = rows[count // 2]
        ids = np.arange(count) * 2 + first
        some = lambda share: rng.random(count) < share
        null = lambda values, share: [
            None if gone else v for v, gone in zip(values, some(share), strict=True)
        ]
        table = pa.table({
            "name": [f"a/{i}.jpg" for i in ids],
            "kind": pa.array(null([HOSTILE[i % len(HOSTILE)] for i in range(count)], 0.2)),
            'n "of\' x': pa.array(null((ids * 7 % 50).tolist(), 0.2), pa.int64()),
            "big": pa.array(null((2**62 + ids).tolist(), 0.2), pa.int64()),
            "price": pa.array(null((ids / 3).tolist(), 0.2), pa.float64()),
            "new": pa.array(null(some(0.5).tolist(), 0.2), pa.bool_()),
            "empty": pa.array([None] * count, pa.string()),
        })  # fmt: skip
        self.folder, self.store_place = folder, place
        self.rows_per_image, self.embedding, self.recall = each, width, 0.95
        self.segments = [SimpleNamespace(number=4, rows=rows, scales=None)]
        self.catalogue = SimpleNamespace(
            ids=ids, segment=np.full(count, 4), row=np.arange(count), table=table, fields=table,
            kinds=where.kinds(table.schema),
        )  # fmt: skip

    def rows(self, ids):
        at = np.searchsorted(self.catalogue.ids, ids)
        assert self.catalogue.ids[at].tolist() == list(ids)
        return self.segments[0].rows[at]

    def clause(self, text):
        return where.parse(text, self.catalogue.kinds)

    def without(self, gone):
        """The same without some images."""
        made, keep = object.__new__(Index), ~np.isin(self.catalogue.ids, gone)
        made.__dict__ |= self.__dict__
        made.catalogue = SimpleNamespace(**self.catalogue.__dict__)
        for key in ("ids", "segment", "row"):
            setattr(made.catalogue, key, getattr(self.catalogue, key)[keep])
        made.catalogue.table = made.catalogue.fields = self.catalogue.table.filter(pa.array(keep))
        made.segments = [SimpleNamespace(number=4, rows=self.segments[0].rows[keep], scales=None)]
        made.catalogue.row = np.arange(keep.sum())
        return made

    def terms(self, rng, *weights, where="", leave_out=(), vectors=1):
        """A question of a group of vectors for each weight."""
        count = max(1, len(weights)) * vectors
        drawn = unit(rng.normal(size=(count, self.embedding))).astype(np.float32)
        return Terms(
            drawn,
            np.repeat(np.arange(max(1, len(weights))), vectors).astype(np.int32),
            np.array(weights or [1.0], np.float32),
            self.clause(where) if where else None,
            frozenset(leave_out),
        )

    def best(self, terms, k):
        """(ids, scores) of a question, by the definition."""
        ids, table = self.catalogue.ids, self.catalogue.table
        keep = ~np.isin(ids, list(terms.leave_out))
        if terms.where is not None:
            keep &= terms.where.mask(table)
        return scoring.best(ids[keep], scoring.scores(terms, self.segments[0].rows[keep]), k)

    def like(self, id):
        """A question that a row of an image answers best."""
        row = self.rows([id])[0, :1]
        return Terms(row, np.zeros(1, np.int32), np.ones(1, np.float32))


def quoted(text):
    """A text as `where` wants it."""
    return "'" + text.replace("'", "''") + "'"
