# SPDX-License-Identifier: Apache-2.0
"""GeneCIS: recall@1, 2 and 3 within each query's own gallery, for four tasks, and their means.

A gallery is the target and some ten images that are like it in all but what the text asks for;
nothing is removed from it. The mean over the tasks of recall@1, the number that tables give,
selects models; its authors measured a deviation of 0.2 between seeds. Their images are resized and
cropped as plain CLIP's are (data.pad=none; it changes nothing for the squares of the tasks about
attributes). Source: arXiv 2306.07969.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from cir_jax.data.screening import Screen
from cir_jax.datasets.readers import genecis
from cir_jax.evals import benchmark, metrics, screens
from cir_jax.evals.answers import Answers
from cir_jax.retrieval import ranking
from cir_jax.retrieval.retriever import Retriever

NO_SERVER = "all its answers are public, and `cir-jax evaluate` scores them"
KEYS = {"tasks": ((), "tasks to rank; () = all four", None)}


class Benchmark:
    """GeneCIS, or any data set in its layout.

    Args:
      root: the data set.
      tasks: () for all four.
      on_missing: see `benchmark.task`; a missing image is left out of the galleries it is in.
      examples: queries for the report, over all tasks.

    Raises:
      UserError: what the reader and `benchmark.task` find wrong.
    """

    def __init__(
        self,
        root: str | Path,
        tasks: Sequence[str] = (),
        on_missing: str | Screen = "error",
        examples: int = 24,
    ):
        self._examples = examples
        self.tasks: dict[str, benchmark.Task] = {}
        self.members: dict[str, np.ndarray] = {}
        sets = {name: genecis.read_task(root, name) for name in genecis.find_tasks(tasks)}
        screen = screens.given(on_missing)
        screens.check_images("GeneCIS", *(read.paths for read in sets.values()), screen=screen)
        for name, read in sets.items():
            # Equal scores are ordered by row. Sorted names give the target no better row than any
            # other candidate; the order of the file would give it the first.
            names = sorted({member for t in read.triplets for member in t.members})
            self.tasks[name] = benchmark.task(
                f"GeneCIS {name}",
                read.triplets,
                read.paths,
                (names, {n: read.paths[n] for n in names}),
                on_missing=screen,
                removed=False,
                by_name=True,
            )
            self.members[name] = _member_rows(self.tasks[name])

    def run(self, retriever: Retriever, kept: list[Answers] | None = None) -> benchmark.Result:
        """Ranks every query's candidates."""
        ranks: dict[str, np.ndarray] = {}
        shown: list[benchmark.Example] = []
        best: list[benchmark.Example] = []
        worst: list[benchmark.Example] = []
        for number, (name, one) in enumerate(self.tasks.items()):
            query, gallery = benchmark.encode(retriever, one)
            ranks[name] = ranking.subset_ranks(query, gallery, one.target, self.members[name])
            if kept is not None:
                values = metrics.hits_at(ranks[name], metrics.GENECIS_AT, f"{name}_recall_at")
                found, members = {"rank": ranks[name]}, self.members[name]
                kept.append(Answers(name, one, query, gallery, found, values, members=members))
            count = (self._examples - len(shown)) // (len(self.tasks) - number)
            spread = benchmark.spread(len(one.triplets), count)
            first, last = benchmark.ends(ranks[name], count)
            shown += self._shown(name, query, gallery, ranks[name], spread)
            best += self._shown(name, query, gallery, ranks[name], first)
            worst += self._shown(name, query, gallery, ranks[name], last)
        return benchmark.Result(
            scores=metrics.genecis(ranks),
            selection="average_recall_at1",
            protocol={
                "benchmark": "GeneCIS",
                "reference": "kept",
                "galleries": {name: self._sizes(name) for name in self.tasks},
            },
            examples=shown,
            best=best,
            worst=worst,
            means=metrics.genecis_means(ranks),
        )

    def _shown(
        self,
        name: str,
        query: np.ndarray,
        gallery: np.ndarray,
        ranks: np.ndarray,
        chosen: np.ndarray,
    ) -> list[benchmark.Example]:
        one = self.tasks[name]
        if not len(chosen):
            return []
        order = ranking.member_order(query[chosen], gallery, self.members[name][chosen])
        best = [row[row >= 0][: benchmark.SHOWN] for row in order]
        scores = [
            np.einsum("d,mkd->mk", query[i], gallery[rows]).max(axis=1)
            for i, rows in zip(chosen, best, strict=True)
        ]
        return benchmark.listed(one, chosen, best, scores, ranks)

    def _sizes(self, name: str) -> dict[str, Any]:
        """As `Task.protocol`, but a gallery's size is that of a query's."""
        sizes = (self.members[name] >= 0).sum(axis=1)
        least, most = int(sizes.min()), int(sizes.max())
        size = most if least == most else f"{least} to {most}"
        return self.tasks[name].protocol() | {"gallery": size}


def _member_rows(one: benchmark.Task) -> np.ndarray:
    """[Q, M] gallery rows of each query's candidates, -1 to fill up."""
    row_of = one.row_of
    rows = np.full((len(one.triplets), max(len(t.members) for t in one.triplets)), -1, np.int32)
    for i, triplet in enumerate(one.triplets):
        known = [row_of[name] for name in triplet.members if name in row_of]
        rows[i, : len(known)] = known
    return rows


def build(config: ConfigDict) -> Benchmark:
    """From the sections `data` and `eval` of a config."""
    e = config.eval
    return Benchmark(benchmark.root(config), e.tasks, screens.of(config), e.examples)
