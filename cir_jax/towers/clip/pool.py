# SPDX-License-Identifier: Apache-2.0
"""The attention pool of CoCa: learned queries attend to all tokens of an image.

    out_q = W (attention of norm(query_q) over the keys and values of norm(tokens))

Queries do not see each other, and a search needs the first alone: the others, which a decoder of
captions attends to, are parameters that nothing here reads. Source: Yu et al., "CoCa: Contrastive
Captioners are Image-Text Foundation Models", arXiv 2205.01917, in the form that open_clip trained.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from cir_jax.towers.attention import XLA, Attend
from cir_jax.towers.layers import Dense, LayerNorm, normal


class AttentionPool(nnx.Module):
    """[B, T, C] tokens -> [B, D], what the first query gathers.

    Args:
      width: C.
      embedding: D, width of the queries.
      queries: how many there are.
      heads: a divisor of D.
      attention: what computes it, see `cir_jax.towers.attention`.
    """

    def __init__(
        self,
        width: int,
        embedding: int,
        queries: int,
        heads: int,
        *,
        attention: str = XLA,
        rngs: nnx.Rngs,
    ):
        std = embedding**-0.5
        self.queries = normal(rngs, (queries, embedding), std)
        self.norm_query = LayerNorm(embedding)
        self.norm_key = LayerNorm(width)
        self.query = Dense(embedding, embedding, std, rngs=rngs)
        self.key = Dense(width, embedding, width**-0.5, rngs=rngs)
        self.value = Dense(width, embedding, width**-0.5, rngs=rngs)
        self.out = Dense(embedding, embedding, std, rngs=rngs)
        self.attend = Attend(heads, embedding // heads, kind=attention)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """In the type of the tokens."""
        keys = self.norm_key(tokens)
        first = self.norm_query(self.queries[...][:1])[None].astype(tokens.dtype)
        query = jnp.broadcast_to(first, (len(tokens), 1, first.shape[-1]))
        gathered = self.attend(self.query(query), self.key(keys), self.value(keys))
        return self.out(gathered)[:, 0]
