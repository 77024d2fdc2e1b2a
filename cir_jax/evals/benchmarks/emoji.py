# SPDX-License-Identifier: Apache-2.0
"""OpenMoji under FashionIQ's protocol: it lies on disk in FashionIQ's layout."""

from ml_collections import ConfigDict

from cir_jax.datasets.readers import emoji
from cir_jax.evals import benchmark
from cir_jax.evals.benchmarks import fashioniq

NO_SERVER = "its answers are made here, and `cir-jax evaluate` scores them"
# Those of FashionIQ, whose protocol this is.
KEYS = {
    "gallery": ("full", "the images of the split, or of its triplets (the VAL protocol)",
                ("full", "val")),
    "reference": ("removed", "whether the reference is removed from the ranking, or kept",
                  ("removed", "kept")),
}  # fmt: skip


def build(config: ConfigDict) -> fashioniq.Benchmark:
    """From a config; the data set is made first if need be."""
    folder = emoji.ready(benchmark.root(config)) / "fashioniq"
    return fashioniq.in_layout(config, folder, config.data.categories or emoji.CATEGORIES)
