# SPDX-License-Identifier: Apache-2.0
"""A benchmark of your own: the data set `data.name`, every image of it a candidate.

cir-jax evaluate --workdir RUN --set eval.benchmark=my_benchmark.py
"""

from cir_jax.datasets import reader
from cir_jax.evals import benchmark, metrics, screens


class Recall:
    """Recall@1 and @5; the reference is removed from the ranking."""

    def __init__(self, queries, images, screen):
        gallery = list(images), images
        self.task = benchmark.task("mine", queries, images, gallery, on_missing=screen)

    def run(self, retriever):
        """Ranks every query; recall@5 selects the best checkpoint."""
        query, gallery = benchmark.encode(retriever, self.task)
        ranks = retriever.ranks(query, gallery, self.task.target, self.task.reference)
        protocol = {"benchmark": "mine", "reference": "removed", **self.task.protocol()}
        return benchmark.Result(metrics.recalls(ranks, (1, 5)), "recall_at5", protocol)


def build(config):
    """Reads the queries now, so that what is missing is reported before anything trains."""
    data, root = reader.load(config.data.name), benchmark.root(config)
    [queries] = data.read(root, config.eval.split)
    return Recall(queries.triplets, data.images(root), screens.of(config))
