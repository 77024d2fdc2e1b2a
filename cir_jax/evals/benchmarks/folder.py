# SPDX-License-Identifier: Apache-2.0
"""Your own triplets, {root}/val.jsonl of `cir_jax.datasets.readers.folder`: recall@1, 5, 10, 50.

The reference is removed from the ranking. `average_recall`, the mean of the four, selects models.
"""

from pathlib import Path

from ml_collections import ConfigDict

from cir_jax.data.screening import Screen
from cir_jax.datasets.readers import folder
from cir_jax.evals import benchmark, metrics
from cir_jax.retrieval.retriever import Retriever

AT = (1, 5, 10, 50)


class Benchmark:
    """Triplets of a JSON-lines file against gallery.txt, or against the images they name.

    Args:
      root: folder of {split}.jsonl and images/.
      split: name of the file.
      on_missing: see `benchmark.task`.
      examples: queries for the report.

    Raises:
      UserError: what the reader and `benchmark.task` find wrong.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "val",
        on_missing: str | Screen = "error",
        examples: int = 24,
    ):
        sets = folder.read(root, split)
        files = {name: path for one in sets for name, path in one.paths.items()}
        triplets = [t for one in sets for t in one.triplets]
        self._split, self._examples = split, examples
        self.task = benchmark.task(
            f"{split}.jsonl",
            triplets,
            files,
            folder.gallery(root, split),
            on_missing=on_missing,
        )

    def run(self, retriever: Retriever) -> benchmark.Result:
        """Ranks every query against the gallery."""
        one = self.task
        query, gallery = benchmark.encode(retriever, one)
        ranks = retriever.ranks(query, gallery, one.target, one.reference)
        scores = metrics.recalls(ranks, AT)
        chosen = (retriever, one, query, gallery, ranks, one.reference, self._examples)
        best, worst = benchmark.extremes(*chosen)
        return benchmark.Result(
            scores={**scores, "average_recall": metrics.arithmetic_mean(list(scores.values()))},
            selection="average_recall",
            protocol={
                "benchmark": "folder",
                "split": self._split,
                "reference": "removed",
                **one.protocol(),
            },
            examples=benchmark.examples(*chosen),
            best=best,
            worst=worst,
        )


def build(config: ConfigDict) -> Benchmark:
    """From the sections `data` and `eval` of a config."""
    e = config.eval
    return Benchmark(benchmark.root(config), e.split, benchmark.screen(config), e.examples)
