# SPDX-License-Identifier: Apache-2.0
"""Your own triplets, {root}/val.jsonl of `cir_jax.datasets.readers.folder`: recall@1, 5, 10, 50.

The reference is removed from the ranking. Where queries have several right answers ("targets"),
recall counts the best ranked of them, and mean average precision over all of them, as CIRCO defines
it, stands beside it. `average_recall`, the mean of the four recalls, selects models.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from cir_jax.data.screening import Screen
from cir_jax.data.triplets import Triplet
from cir_jax.datasets.readers import folder
from cir_jax.errors import UserError, nearest
from cir_jax.evals import benchmark, metrics, screens
from cir_jax.evals.answers import Answers
from cir_jax.retrieval.retriever import Retriever

NO_SERVER = "the answers are your own, and `cir-jax evaluate` scores them"
KEYS = {
    "texts": ("first", "of a triplet with several texts, the first is its query, or each is a "
              "query of its own", ("first", "each")),
}  # fmt: skip
TEXTS = ("first", "each")


class Benchmark:
    """Triplets of a JSON-lines file against gallery.txt, or against the images they name.

    Args:
      root: folder of {split}.jsonl and images/.
      split: name of the file.
      on_missing: see `benchmark.task`.
      examples: queries for the report.
      texts: "first" text of a triplet, or "each" as a query.

    Raises:
      UserError: what the reader and `benchmark.task` find wrong.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "val",
        on_missing: str | Screen = "error",
        examples: int = 24,
        texts: str = "first",
    ):
        sets = folder.read(root, split)
        files = {name: path for one in sets for name, path in one.paths.items()}
        # An id that a record does not give is its file and line: the same wherever the data lies.
        triplets = [
            replace(t, query_id=t.query_id.removeprefix(f"{Path(root)}/"))
            for one in sets
            for t in one.triplets
        ]
        self._examples = examples
        self._protocol = {"benchmark": "folder", "split": split, "reference": "removed"}
        if any(len(t.texts) > 1 for t in triplets):
            self._protocol["texts"] = texts
        self.task = benchmark.task(
            f"{split}.jsonl",
            _queries(triplets, texts),
            files,
            folder.gallery(root, split),
            on_missing=on_missing,
        )
        self._several = any(t.truths for t in self.task.triplets)
        if self._several:
            self._protocol["recall"] = "of the best right answer"

    def run(self, retriever: Retriever, kept: list[Answers] | None = None) -> benchmark.Result:
        """Ranks every query against the gallery."""
        one = self.task
        query, gallery = benchmark.encode(retriever, one)
        ranks, precision = self._ranked(retriever, query, gallery)
        values = metrics.hits_at(ranks, metrics.FOLDER_AT) | precision
        shown = benchmark.shown(
            retriever, one, query, gallery, ranks, one.reference, self._examples
        )
        if kept is not None:
            kept.append(Answers("", one, query, gallery, {"rank": ranks}, values, one.reference))
        return benchmark.Result(
            scores=metrics.folder(values),
            selection="average_recall",
            protocol={**self._protocol, **one.protocol()},
            examples=shown.examples,
            best=shown.best,
            worst=shown.worst,
            means=metrics.FOLDER_MEANS,
        )

    def _ranked(
        self, retriever: Retriever, query: np.ndarray, gallery: np.ndarray
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """([Q] ranks of the best right answers, {map_at5: [Q], ...} where there are several)."""
        one = self.task
        if not self._several:
            return retriever.ranks(query, gallery, one.target, one.reference), {}
        # Two names may be one image, which answers once.
        right = [
            list(dict.fromkeys(one.row_of[name] for name in t.truths or (t.target,)))
            for t in one.triplets
        ]
        owner = np.repeat(np.arange(len(right)), [len(rows) for rows in right])
        target = np.concatenate([np.asarray(rows) for rows in right])
        every = retriever.ranks(query[owner], gallery, target, one.reference[owner])
        best = np.full(len(right), len(one.names), np.int32)
        np.minimum.at(best, owner, every)
        hits = np.zeros((len(right), max(metrics.CIRCO_AT)), bool)
        seen = every < hits.shape[1]
        hits[owner[seen], every[seen]] = True
        counts = np.asarray([len(rows) for rows in right])
        at = metrics.CIRCO_AT
        return best, {f"map_at{k}": metrics.average_precisions(hits, counts, k) for k in at}


def build(config: ConfigDict) -> Benchmark:
    """From the sections `data` and `eval` of a config."""
    e = config.eval
    return Benchmark(benchmark.root(config), e.split, screens.of(config), e.examples, e.texts)


def _queries(triplets: Sequence[Triplet], texts: str) -> list[Triplet]:
    """The triplets, or one for each of their texts."""
    if texts not in TEXTS:
        raise UserError(
            f"eval.texts={texts!r} is unknown; use {' or '.join(TEXTS)}.{nearest(texts, TEXTS)}"
        )
    if texts == "first":
        return list(triplets)
    return [
        replace(
            t, eval_text=text, query_id=f"{t.query_id} text {number}" if t.texts[1:] else t.query_id
        )
        for t in triplets
        for number, text in enumerate(t.texts, start=1)
    ]
