# SPDX-License-Identifier: Apache-2.0
"""The score of a query and a candidate: the best of the candidate's rows."""

import jax
import jax.numpy as jnp


def scores(query: jax.Array, targets: jax.Array) -> jax.Array:
    """[B, D] and [N, K, D] -> [B, N] float32, the maximum over K of the inner products.

    Plain: it holds [B, N, K]. For K = 1 this is cosine similarity; K = 32 is SPRC's.
    """
    if targets.shape[1] == 1:  # the common case, without the two passes of a maximum
        rows = targets[:, 0]
        return jnp.einsum(
            "bd,nd->bn", query, rows, precision="highest", preferred_element_type=jnp.float32
        )
    products = jnp.einsum(
        "bd,nkd->bnk", query, targets, precision="highest", preferred_element_type=jnp.float32
    )
    return products.max(axis=-1)
