# SPDX-License-Identifier: Apache-2.0
"""Models, plug-ins found by name; `cir_jax.contract` says what one must define."""
