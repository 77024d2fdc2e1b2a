# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: rankings, metrics, protocols and the report.

A benchmark is one module of this package (or a file of yours) that defines `build(config)`, which
returns an object with `run(retriever) -> Result`; see `cir_jax.evals.benchmark`.
"""

from typing import Any

from cir_jax import plugins

PACKAGE = "cir_jax.evals"


def build(config: Any) -> Any:
    """The benchmark `config.eval.benchmark`, its data read and checked; None for "none".

    Raises:
      UserError: no such benchmark (what exists is listed), or its data cannot be used.
    """
    name = config.eval.benchmark
    return None if name == "none" else plugins.load(PACKAGE, name, marker="build").build(config)
