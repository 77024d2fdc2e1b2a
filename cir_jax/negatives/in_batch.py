# SPDX-License-Identifier: Apache-2.0
"""Losses whose negatives are the other examples of the global batch.

Plain `jnp` on global arrays: under `jax.jit` with the batch sharded, the compiler gathers the
[B, D] embeddings and nothing larger. Every loss is returned per query, [B], before any mean.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from cir_jax.negatives.scores import scores

LOGIT_SCALE_LIMIT = 100.0  # CLIP clips the inverse temperature here
NEGATIVE_TYPES = ("target", "query", "text", "reference")


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
    return _diagonal_cross_entropy(scores(query, targets) / temperature)


def symmetric_loss(image: jax.Array, text: jax.Array, logit_scale: jax.Array) -> jax.Array:
    """CLIP's loss, the mean of both directions, [B]; `logit_scale` is log(1 / temperature)."""
    scale = jnp.minimum(jnp.exp(logit_scale), LOGIT_SCALE_LIMIT)
    logits = scale * jnp.einsum("id,jd->ij", image, text, precision="highest")
    return (_diagonal_cross_entropy(logits) + _diagonal_cross_entropy(logits.T)) / 2


def negative_type_losses(
    fuse: Callable[[jax.Array, jax.Array], jax.Array],
    reference: jax.Array,
    text: jax.Array,
    targets: jax.Array,
    temperature: float,
) -> dict[str, jax.Array]:
    """The four ways to make a negative of a triplet: an ablation of arXiv 2404.11317.

    Replace the target (the method's choice), the whole query, only its text, or only its reference.

    Args:
      fuse: ([..., C], [..., C]) -> [..., D] unit query; broadcasts over leading axes.
      reference: [B, C] reference features.
      text: [B, C] text features.
      targets: [B, D] unit targets.
      temperature: scalar.

    Returns:
      name -> [B] losses, for every name of NEGATIVE_TYPES. Memory is [B, B, D].
    """
    query = fuse(reference, text)
    pairs = jnp.einsum("id,jd->ij", query, targets, precision="highest")
    # [i, j]: reference i with text j.
    crossed = fuse(reference[:, None], text[None])
    other_text = jnp.einsum("ijd,id->ij", crossed, targets, precision="highest")
    other_reference = jnp.einsum("jid,id->ij", crossed, targets, precision="highest")
    logits = {
        "target": pairs,
        "query": pairs.T,
        "text": other_text,
        "reference": other_reference,
    }
    return {name: _diagonal_cross_entropy(x / temperature) for name, x in logits.items()}


def _diagonal_cross_entropy(logits: jax.Array) -> jax.Array:
    return jax.nn.logsumexp(logits, axis=1) - jnp.diagonal(logits)
