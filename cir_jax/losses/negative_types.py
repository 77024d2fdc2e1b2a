# SPDX-License-Identifier: Apache-2.0
"""The four ways to make a negative of a triplet: an ablation of arXiv 2404.11317.

A triplet (reference, text, target) is spoilt by taking one part from another example of the batch:
its target (the method's choice), its whole query, only its text, or only its reference. The last
two need the query of every reference with every text. They are composed one rotation of the batch
at a time, and again in the backward pass, so that no [B, B, D] exists.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from cir_jax.losses.in_batch import diagonal_cross_entropy
from cir_jax.losses.scores import scores

TYPES = ("target", "query", "text", "reference")
CROSSED = ("text", "reference")  # those that need queries of one example's image, another's text


def losses(
    types: Sequence[str],
    query: jax.Array,
    targets: jax.Array,
    temperature: jax.Array | float,
    crossed: Callable[[jax.Array], jax.Array] | None,
) -> dict[str, jax.Array]:
    """The cross-entropies of some types, name -> [B] float32.

    Args:
      types: some of TYPES.
      query: [B, D] unit queries.
      targets: [B, K, D] unit rows of their positives.
      temperature: scalar.
      crossed: shift s -> [B, D], in row i the query of reference i with text (i + s) mod B. Called
        only for types of CROSSED; None where there are none of these.
    """
    found = {}
    if {"target", "query"} & set(types):
        pairs = scores(query, targets) / temperature
        found["target"] = diagonal_cross_entropy(pairs)
        found["query"] = diagonal_cross_entropy(pairs.T)
    if set(CROSSED) & set(types):
        assert crossed is not None
        by_text, by_reference = _rotations(crossed, targets)
        # Row s holds the scores of shift s; the true pair is shift 0.
        for name, rows in (("text", by_text), ("reference", by_reference)):
            logits = rows / temperature
            found[name] = jax.nn.logsumexp(logits, axis=0) - logits[0]
    return {name: found[name] for name in types}


def _rotations(
    crossed: Callable[[jax.Array], jax.Array], targets: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """[B, B] twice: scores with target i of (reference i, text i + s) and (reference i - s, text i)
    in row s."""

    @jax.checkpoint
    def one(shift: jax.Array) -> tuple[jax.Array, jax.Array]:
        query = crossed(shift)
        own = _row_scores(query, targets)
        # Row r is (reference r, text r + s): the text belongs to example r + s.
        other = _row_scores(jnp.roll(query, shift, axis=0), targets)
        return own, other

    return jax.lax.map(one, jnp.arange(targets.shape[0]))


def _row_scores(query: jax.Array, targets: jax.Array) -> jax.Array:
    """[B, D] and [B, K, D] -> [B]: query i with target i."""
    return jnp.einsum("bd,bkd->bk", query, targets, precision="highest").max(axis=1)
