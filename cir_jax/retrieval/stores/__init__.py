# SPDX-License-Identifier: Apache-2.0
"""Where the rows of an index are ranked; what a store is says `cir_jax.retrieval.store`."""
