# SPDX-License-Identifier: Apache-2.0
"""The score of a query and a candidate: the best of the candidate's rows."""

import jax
import jax.numpy as jnp


def scores(query: jax.Array, targets: jax.Array) -> jax.Array:
    """[B, D] and [N, K, D] -> [B, N] float32, the maximum over K of the inner products.

    Plain: it holds [B, N, K]. For K = 1 this is cosine similarity; K = 32 is SPRC's.
    """
    if targets.shape[1] == 1:  # a maximum over one value would still cost its passes over [B, N]
        equation, rows = "bd,nd->bn", targets[:, 0]
    else:
        equation, rows = "bd,nkd->bnk", targets
    products = jnp.einsum(
        equation, query, rows, precision="highest", preferred_element_type=jnp.float32
    )
    return products if products.ndim == 2 else products.max(axis=-1)
