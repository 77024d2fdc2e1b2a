# SPDX-License-Identifier: Apache-2.0
"""FashionIQ: recall per category under an explicit protocol.

Published numbers follow three protocols that must not be compared with one another: gallery "full"
with the reference "removed" (CLIP rows of arXiv 2404.11317), "full" with the reference "kept" (its
BLIP-2 rows, and SPRC), and "val", which ranks references and targets of the queries only.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from cir_jax import progress
from cir_jax.data.screening import Screen
from cir_jax.datasets.readers import fashioniq
from cir_jax.errors import UserError, nearest
from cir_jax.evals import benchmark, metrics, screens
from cir_jax.evals.answers import Answers
from cir_jax.retrieval.retriever import Retriever

KEYS = {
    "gallery": ("full", "the images of the split, or of its triplets (the VAL protocol)",
                ("full", "val")),
    "reference": ("removed", "whether the reference is removed from the ranking, or kept",
                  ("removed", "kept")),
}  # fmt: skip

REFERENCES = ("removed", "kept")
NO_SERVER = (
    "the answers of its validation split are public and published numbers are of that split, which "
    "`cir-jax evaluate` scores"
)


class Benchmark:
    """FashionIQ, or any data set in its layout.

    Args:
      root: the data set.
      categories: () for those the data set has.
      split: with targets, e.g. "val".
      gallery: "full" (all images of the category's split) or "val" (references and targets).
      reference: "removed" from the ranking, or "kept" as a candidate.
      on_missing: see `benchmark.task`.
      examples: queries for the report, over all categories.

    Raises:
      UserError: an unknown value, or what the reader and `benchmark.task` find wrong.
    """

    def __init__(
        self,
        root: str | Path,
        categories: Sequence[str] = (),
        split: str = "val",
        gallery: str = "full",
        reference: str = "removed",
        on_missing: str | Screen = "error",
        examples: int = 24,
    ):
        if reference not in REFERENCES:
            raise UserError(
                f"eval.reference={reference!r} is unknown; use {' or '.join(REFERENCES)}."
                f"{nearest(reference, REFERENCES)}"
            )
        self._removed = reference == "removed"
        self._protocol = {
            "benchmark": "FashionIQ",
            "split": split,
            "gallery": gallery,
            "reference": reference,
        }
        self._examples = examples
        self.tasks = self._tasks(root, categories, split, gallery, on_missing)

    def run(self, retriever: Retriever, kept: list[Answers] | None = None) -> benchmark.Result:
        """Ranks every category's queries against its gallery."""
        ranks: dict[str, np.ndarray] = {}
        shown: list[benchmark.Example] = []
        best: list[benchmark.Example] = []
        worst: list[benchmark.Example] = []
        for number, (category, one) in enumerate(self.tasks.items()):
            removed = one.reference if self._removed else None
            query, gallery = benchmark.encode(retriever, one)
            ranks[category] = retriever.ranks(query, gallery, one.target, removed)
            if kept is not None:
                found = {"rank": ranks[category]}
                values = metrics.hits_at(
                    ranks[category], metrics.FASHIONIQ_AT, f"{category}_recall_at"
                )
                kept.append(Answers(category, one, query, gallery, found, values, removed))
            count = (self._examples - len(shown)) // (len(self.tasks) - number)
            more = benchmark.shown(retriever, one, query, gallery, ranks[category], removed, count)
            shown, best, worst = (a + b for a, b in zip((shown, best, worst), more, strict=True))
        galleries = {category: one.protocol() for category, one in self.tasks.items()}
        return benchmark.Result(
            scores=metrics.fashioniq(ranks),
            selection="average_recall",
            protocol={**self._protocol, "galleries": galleries},
            examples=shown,
            best=best,
            worst=worst,
            means=metrics.fashioniq_means(ranks),
        )

    def _tasks(
        self,
        root: str | Path,
        wanted: Sequence[str],
        split: str,
        gallery: str,
        on_missing: str | Screen,
    ) -> dict[str, benchmark.Task]:
        names = fashioniq.find_categories(root, split, wanted)
        queries = fashioniq.read(root, split, names)[0]
        if not all(t.target for t in queries.triplets):
            raise UserError(
                f"FashionIQ split {split!r} has no targets, so there is no recall; set "
                "eval.split=val"
            )
        asked = {c: [t for t in queries.triplets if t.category == c] for c in names}
        for category in (c for c in names if not asked[c]):
            progress.say(f"warning: category {category!r} has no {split} query, left out")
        galleries = {
            c: fashioniq.gallery(root, c, split, gallery) for c, found in asked.items() if found
        }
        screen = screens.given(on_missing)
        screens.check_images(
            f"FashionIQ {split}",
            {t.reference: queries.paths[t.reference] for t in queries.triplets},
            *(files for _, files in galleries.values()),
            screen=screen,
        )
        return {
            category: benchmark.task(
                f"FashionIQ {category}",
                asked[category],
                queries.paths,
                files,
                on_missing=screen,
                removed=self._removed,
                by_name=True,
            )
            for category, files in galleries.items()
        }


def build(config: ConfigDict) -> Benchmark:
    """From the sections `data` and `eval` of a config."""
    return in_layout(config, benchmark.root(config), config.data.categories)


def in_layout(config: ConfigDict, root: str | Path, categories: Sequence[str]) -> Benchmark:
    """The config's protocol over a data set that lies in FashionIQ's layout at `root`."""
    e = config.eval
    return Benchmark(
        root, categories, e.split, e.gallery, e.reference, screens.of(config), e.examples
    )
