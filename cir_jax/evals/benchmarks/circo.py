# SPDX-License-Identifier: Apache-2.0
"""CIRCO: mean average precision over several right answers, and predictions for its test server.

The protocol is that of its authors: all 123,403 images are candidates, the reference too (it is
never a right answer). Published numbers differ in whether the text of a query holds the concept
that reference and target share; `shared_concept` says which. mAP@5, the number that tables lead
with, selects models. Source: arXiv 2303.15247; per aspect arXiv 2405.02951.
"""

from pathlib import Path
from string import Formatter

import numpy as np
from ml_collections import ConfigDict

from cir_jax.data.screening import Screen
from cir_jax.data.triplets import Triplet
from cir_jax.datasets.readers import circo
from cir_jax.errors import UserError, nearest
from cir_jax.evals import benchmark, metrics, screens
from cir_jax.evals.answers import Answers
from cir_jax.evals.submissions import circo as submission
from cir_jax.evals.submissions.circo import COUNT, Predictions
from cir_jax.evals.submissions.delivery import deliver
from cir_jax.retrieval.retriever import Retriever

KEYS = {
    "shared_concept": ("without", "whether the text of a query holds the concept that reference "
                       "and target share", ("without", "with")),
    "concept_template": ("Find a picture that also {concept}, but {caption}.",
                         "the text of a query with its concept", None),
}  # fmt: skip

CONCEPTS = ("without", "with")
# The wording of MegaPairs' evaluation (arXiv 2412.14475).
TEMPLATE = "Find a picture that also {concept}, but {caption}."
TEST_SPLIT = "test"


class Benchmark:
    """CIRCO, or any data set in its layout.

    Args:
      root: the data set.
      split: "val", or "test" to predict only.
      shared_concept: "without" it a query's text is its caption, "with" it `template`.
      template: text with {concept} and {caption} in it.
      on_missing: see `benchmark.task`; a query also goes if one of its answers is missing.
      examples: queries for the report.

    Raises:
      UserError: an unknown value, what the reader and `benchmark.task` find wrong, or an image that
        is not in the list of images.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "val",
        shared_concept: str = "without",
        template: str = TEMPLATE,
        on_missing: str | Screen = "error",
        examples: int = 24,
    ):
        _check_texts(shared_concept, template)
        queries, gallery = circo.queries(root, split), circo.candidates(root)
        _check_images(queries, gallery[1], split)
        used = template if shared_concept == "with" else "{caption}"
        self._split, self._examples = split, examples
        self._rules = {"shared_concept": shared_concept}
        if shared_concept == "with":
            self._rules["template"] = template
        self.task = benchmark.task(
            f"CIRCO {split}",
            [_triplet(query, used) for query in queries],
            gallery[1],
            gallery,
            on_missing=on_missing,
            removed=False,
            by_name=True,
        )
        kept = {t.query_id for t in self.task.triplets}
        self.aspects = [query.aspects for query in queries if query.query_id in kept]

    def run(self, retriever: Retriever, kept: list[Answers] | None = None) -> benchmark.Result:
        """Ranks every query against all images.

        Raises:
          UserError: the split has no targets.
        """
        one = self.task
        if (one.target < 0).any():
            raise UserError(
                f"CIRCO split {self._split!r} has no targets; `cir-jax submit` writes the file "
                "that its server scores. For mAP, set eval.split=val"
            )
        query, gallery = benchmark.encode(retriever, one)
        k = min(max(metrics.CIRCO_AT), len(one.names))
        rows, _ = retriever.top(query, gallery, k)
        ranks = retriever.ranks(query, gallery, one.target)
        row_of = one.row_of
        truths = [[row_of[name] for name in t.truths] for t in one.triplets]
        hits = np.stack([np.isin(found, right) for found, right in zip(rows, truths, strict=True)])
        counts = np.asarray([len(right) for right in truths])
        asked = {a: sum(a in every for every in self.aspects) for a in self._aspect_names()}
        shown = benchmark.shown(retriever, one, query, gallery, ranks, None, self._examples)
        if kept is not None:
            values = metrics.circo_values(hits, counts, ranks, self.aspects)
            kept.append(Answers("", one, query, gallery, {"rank": ranks}, values))
        return benchmark.Result(
            scores=metrics.circo(hits, counts, ranks, self.aspects),
            selection="map_at5",
            protocol={
                "benchmark": "CIRCO",
                "split": self._split,
                "reference": "kept",
                **self._rules,
                **one.protocol(),
                "aspects": {name: {"queries": count} for name, count in asked.items()},
            },
            examples=shown.examples,
            best=shown.best,
            worst=shown.worst,
        )

    def predict(self, retriever: Retriever) -> Predictions:
        """The best 50 images of every query; all of them if there are fewer."""
        one = self.task
        query, gallery = benchmark.encode(retriever, one)
        rows, _ = retriever.top(query, gallery, min(COUNT, len(one.names)))
        numbers = np.asarray([int(name) for name in one.names])
        ids = [t.query_id for t in one.triplets]
        return Predictions(dict(zip(ids, numbers[rows].tolist(), strict=True)), numbers.tolist())

    def submit(self, retriever: Retriever, folder: str | Path, name: str) -> list[Path]:
        """Writes the file that the test server takes, see `cir_jax.evals.submissions.circo`."""
        made = self.predict(retriever)

        def write() -> list[Path]:
            return [submission.write(folder, name, made)]

        return deliver("CIRCO", made.best, COUNT, len(made.gallery), write)

    def _aspect_names(self) -> list[str]:
        return metrics.in_order(self.aspects)


def build(config: ConfigDict) -> Benchmark:
    """From the sections `data` and `eval` of a config."""
    e, root = config.eval, benchmark.root(config)
    return Benchmark(
        root, e.split, e.shared_concept, e.concept_template, screens.of(config), e.examples
    )


def _triplet(query: circo.Query, template: str) -> Triplet:
    text = template.format(concept=query.concept, caption=query.caption)
    return Triplet(
        query.reference, query.target, (text,), text, circo.SOURCE, query.query_id,
        truths=query.truths,
    )  # fmt: skip


def _check_texts(shared_concept: str, template: str) -> None:
    if shared_concept not in CONCEPTS:
        raise UserError(
            f"eval.shared_concept={shared_concept!r} is unknown; use {' or '.join(CONCEPTS)}."
            f"{nearest(shared_concept, CONCEPTS)}"
        )
    try:
        fields = {name for _, name, _, _ in Formatter().parse(template) if name is not None}
    except ValueError as error:
        fields = {str(error)}
    if fields != {"concept", "caption"}:
        raise UserError(
            f"eval.concept_template={template!r} must hold {{concept}} and {{caption}}, and "
            f"nothing else in braces; the default is {TEMPLATE!r}"
        )


def _check_images(queries: tuple[circo.Query, ...], known: dict[str, str], split: str) -> None:
    for query in queries:
        for name in (query.reference, *query.truths):
            if name not in known:
                raise UserError(
                    f"CIRCO {split} query {query.query_id}: image {name} is not among the "
                    f"{len(known):,} images of COCO's list; fetch image_info_unlabeled2017.json "
                    "or the annotations again"
                )
