# SPDX-License-Identifier: Apache-2.0
"""Losses whose negatives are the other examples of the global batch.

Plain `jnp` on global arrays: under `jax.jit` with the batch sharded, the compiler gathers the
[B, D] embeddings and nothing larger. Every loss is returned per query, [B], before any mean.
"""

import jax
import jax.numpy as jnp

from cir_jax.losses.scores import scores

LOGIT_SCALE_LIMIT = 100.0  # CLIP clips the inverse temperature here


def in_batch_loss(
    query: jax.Array, targets: jax.Array, temperature: jax.Array | float
) -> jax.Array:
    """Cross-entropy of query i over the batch's targets, label i (stage one, arXiv 2404.11317).

    Args:
      query: [B, D] unit queries.
      targets: [B, K, D] unit rows of the positives.
      temperature: scalar.

    Returns:
      [B] float32. A target that occurs twice in a batch is a negative of its twin, as released.
    """
    return diagonal_cross_entropy(scores(query, targets) / temperature)


def symmetric_loss(image: jax.Array, text: jax.Array, logit_scale: jax.Array) -> jax.Array:
    """CLIP's loss, the mean of both directions, [B]; `logit_scale` is log(1 / temperature)."""
    scale = jnp.minimum(jnp.exp(logit_scale), LOGIT_SCALE_LIMIT)
    logits = scale * jnp.einsum("id,jd->ij", image, text, precision="highest")
    return (diagonal_cross_entropy(logits) + diagonal_cross_entropy(logits.T)) / 2


def diagonal_cross_entropy(logits: jax.Array) -> jax.Array:
    """[B, B] logits with label i in row i -> [B]."""
    return jax.nn.logsumexp(logits, axis=1) - jnp.diagonal(logits)
