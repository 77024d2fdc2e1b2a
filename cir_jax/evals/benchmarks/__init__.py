# SPDX-License-Identifier: Apache-2.0
"""Benchmarks, plug-ins found by name; `cir_jax.evals.benchmark` says what one must define."""
