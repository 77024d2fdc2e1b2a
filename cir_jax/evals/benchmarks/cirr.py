# SPDX-License-Identifier: Apache-2.0
"""CIRR: recall in the whole gallery and in the query's subset, and predictions for the test server.

The reference is removed from every ranking, by name; a copy of it under another name stays.
Source: arXiv 2108.04024, and the evaluation server of its authors.
"""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from cir_jax.data.screening import Screen
from cir_jax.datasets.readers import cirr
from cir_jax.errors import UserError
from cir_jax.evals import benchmark, metrics, screens
from cir_jax.evals.answers import Answers
from cir_jax.evals.submissions import cirr as submission
from cir_jax.evals.submissions.cirr import COUNTS, Predictions
from cir_jax.evals.submissions.delivery import deliver
from cir_jax.retrieval import ranking
from cir_jax.retrieval.retriever import Retriever

TEST_SPLIT = "test1"


class Benchmark:
    """CIRR, or any data set in its layout.

    Args:
      root: the data set.
      split: "val", or "test1" to predict only.
      on_missing: see `benchmark.task`.
      examples: queries for the report.

    Raises:
      UserError: what the reader and `benchmark.task` find wrong, or a query whose subset does not
        hold its target exactly once.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "val",
        on_missing: str | Screen = "error",
        examples: int = 24,
    ):
        queries = cirr.read(root, split)[0]
        gallery = cirr.gallery(root, split)
        self._split, self._examples = split, examples
        self.task = benchmark.task(
            f"CIRR {split}",
            queries.triplets,
            queries.paths,
            gallery,
            on_missing=on_missing,
            by_name=True,
        )
        self.members = self._member_rows(self.task.screen.drops)

    def run(self, retriever: Retriever, kept: list[Answers] | None = None) -> benchmark.Result:
        """Ranks every query in the gallery and in its subset.

        Raises:
          UserError: the split has no targets.
        """
        one = self.task
        if (one.target < 0).any():
            raise UserError(
                f"CIRR split {self._split!r} has no targets; `cir-jax submit` writes the files "
                "that the test server scores. For recall, set eval.split=val"
            )
        query, gallery = benchmark.encode(retriever, one)
        ranks = retriever.ranks(query, gallery, one.target, one.reference)
        subset = ranking.subset_ranks(query, gallery, one.target, self.members, one.reference)
        shown = benchmark.shown(
            retriever, one, query, gallery, ranks, one.reference, self._examples
        )
        if kept is not None:
            values = metrics.hits_at(ranks, metrics.CIRR_AT)
            values |= metrics.hits_at(subset, metrics.CIRR_SUBSET_AT, "recall_subset_at")
            both = {"rank": ranks, "subset_rank": subset}
            kept.append(Answers("", one, query, gallery, both, values, one.reference))
        return benchmark.Result(
            scores=metrics.cirr(ranks, subset),
            selection="recall_mean",
            protocol={
                "benchmark": "CIRR",
                "split": self._split,
                "reference": "removed",
                **one.protocol(),
            },
            examples=shown.examples,
            best=shown.best,
            worst=shown.worst,
            means=metrics.CIRR_MEANS,
        )

    def predict(self, retriever: Retriever) -> Predictions:
        """The best 50 images and the best 3 subset members of every query.

        A gallery of fewer than 51 images gives all its candidates.
        """
        one = self.task
        query, gallery = benchmark.encode(retriever, one)
        k = min(COUNTS["recall"], len(one.names) - 1)
        if k < 1:
            raise UserError(
                f"{one.title}: a gallery of {len(one.names)} image has no candidate once the "
                "reference is removed; 2 is the least. Add images to the split"
            )
        rows, _ = retriever.top(query, gallery, k, one.reference)
        members = ranking.member_order(query, gallery, self.members, one.reference)
        names = np.asarray(one.names, object)
        pairs = [t.query_id for t in one.triplets]
        best = members[:, : COUNTS["recall_subset"]]
        return Predictions(
            recall=dict(zip(pairs, names[rows].tolist(), strict=True)),
            recall_subset={
                pair: names[row[row >= 0]].tolist() for pair, row in zip(pairs, best, strict=True)
            },
            references={t.query_id: t.reference for t in one.triplets},
            members={t.query_id: t.members for t in one.triplets},
            gallery=one.names,
        )

    def submit(self, retriever: Retriever, folder: str | Path, name: str) -> list[Path]:
        """Writes the two files that the test server takes, see `cir_jax.evals.submissions.cirr`."""
        made = self.predict(retriever)

        def write() -> list[Path]:
            return submission.write(folder, name, made)

        return deliver("CIRR", made.recall, COUNTS["recall"], len(made.gallery), write)

    def _member_rows(self, dropped: bool) -> np.ndarray:
        """[Q, M] gallery rows of the subsets, -1 to fill up."""
        one = self.task
        row_of = one.row_of
        rows = np.full((len(one.triplets), max(len(t.members) for t in one.triplets)), -1, np.int32)
        for i, triplet in enumerate(one.triplets):
            where = f"{one.title} pair {triplet.query_id}"
            if triplet.target and triplet.members.count(triplet.target) != 1:
                raise UserError(
                    f"{where}: its subset of {len(triplet.members)} members holds the target "
                    f"{triplet.target!r} {triplet.members.count(triplet.target)} times, expected "
                    "once; correct img_set.members"
                )
            known = [row_of[name] for name in triplet.members if name in row_of]
            if len(known) < len(triplet.members) and not dropped:
                lost = next(name for name in triplet.members if name not in row_of)
                raise UserError(
                    f"{where}: member {lost!r} is not among the {len(one.names)} images of the "
                    "split; correct img_set.members"
                )
            rows[i, : len(known)] = known
        return rows


def build(config: ConfigDict) -> Benchmark:
    """From the sections `data` and `eval` of a config."""
    e = config.eval
    return Benchmark(benchmark.root(config), e.split, screens.of(config), e.examples)
