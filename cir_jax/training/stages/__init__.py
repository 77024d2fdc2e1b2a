# SPDX-License-Identifier: Apache-2.0
"""Stages, plug-ins found by name; `cir_jax.training.stage` says what one must define."""
