# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: rankings, metrics, protocols and the report.

A benchmark is one module of this package (or a file of yours) that defines `build(config)`, which
returns an object with `run(retriever) -> Result`; see `cir_jax.evals.benchmark`.
"""
