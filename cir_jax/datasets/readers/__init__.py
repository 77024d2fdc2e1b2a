# SPDX-License-Identifier: Apache-2.0
"""Readers, plug-ins found by name; `cir_jax.datasets.reader` says what one must define."""
