# SPDX-License-Identifier: Apache-2.0
"""The pieces of BERT: embeddings, and post-norm attention and MLP with dropout.

The text encoder of BLIP and the Q-Former of BLIP-2 are made of them; they differ in what attends to
what.
Source: Devlin et al., arXiv 1810.04805; sizes, epsilon and dropout are those of BERT-base.
"""

import functools

import jax
from flax import nnx

from cir_jax.runtime.sharding import keep_rows, lookup
from cir_jax.towers.attention import XLA, Attend
from cir_jax.towers.layers import Dense, LayerNorm, dropout, gelu, normal

EPSILON = 1e-12  # of every norm, as in the released BERT
STD = 0.02  # of every random parameter, unless kernels are told otherwise


class Embeddings(nnx.Module):
    """Words and absolute positions; the norm comes last, so that others may join before it.

    Args:
      vocabulary: number of token ids.
      positions: longest text in tokens.
      width: C.
    """

    def __init__(self, vocabulary: int, positions: int, width: int, *, rngs: nnx.Rngs):
        # Bare tables: nnx.Embed would put them at words/embedding, where no checkpoint has them.
        self.words = normal(rngs, (vocabulary, width), STD)
        self.positions = normal(rngs, (positions, width), STD)
        self.norm = LayerNorm(width, epsilon=EPSILON)

    def lookup(self, text: jax.Array) -> jax.Array:
        """[B, T] ids -> [B, T, C] float32, without the norm."""
        return keep_rows(lookup(self.words[...], text)) + self.positions[...][None, : text.shape[1]]

    def finish(self, x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
        """Norm, then dropout, [B, T, C] -> [B, T, C]."""
        return dropout(self.norm(x), rate, key)


class Attention(nnx.Module):
    """norm(x + dropout(out(attention(x, source)))), [B, T, C] -> [B, T, C].

    Args:
      width: C, of the queries and of the result.
      heads: number of heads.
      source: width of what is attended to; 0 means `width`.
      rate: dropout of the attention weights and of the result.
      std: of the random kernels.
      attention: what computes it where no weight is dropped, see `cir_jax.towers.attention`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        source: int = 0,
        rate: float = 0.0,
        std: float = STD,
        attention: str = XLA,
        rngs: nnx.Rngs,
    ):
        self.query = Dense(width, width, std, rngs=rngs)
        self.key = Dense(source or width, width, std, rngs=rngs)
        self.value = Dense(source or width, width, std, rngs=rngs)
        self.out = Dense(width, width, std, rngs=rngs)
        self.norm = LayerNorm(width, epsilon=EPSILON)
        self.attend = Attend(
            heads, width // heads, masks=not source, written_out=True, kind=attention
        )
        self.rate = rate

    def __call__(
        self,
        x: jax.Array,
        source: jax.Array,
        mask: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Attends from x [B, T, C] to source [B, U, C'].

        Args:
          x: queries.
          source: keys and values.
          mask: see `cir_jax.towers.attention.Attend`; None if all is seen.
          key: dropout key; None for none.
        """
        keys = (None, None) if key is None else jax.random.split(key)
        drop = None
        if key is not None and self.rate:
            drop = functools.partial(dropout, rate=self.rate, key=keys[0])
        query, seen = self.query(x), (self.key(source), self.value(source))
        mixed = self.attend(query, *seen, mask, drop)
        return self.norm(x + dropout(self.out(mixed), self.rate, keys[1]))


class Mlp(nnx.Module):
    """norm(x + dropout(fc2(gelu(fc1(x))))), [B, T, C] -> [B, T, C]; the exact GELU.

    Args:
      width: C.
      inner: width between the two products.
      rate: dropout.
      std: of the random kernels.
    """

    def __init__(
        self,
        width: int,
        inner: int,
        *,
        rate: float = 0.0,
        std: float = STD,
        rngs: nnx.Rngs,
    ):
        self.fc1 = Dense(width, inner, std, rngs=rngs)
        self.fc2 = Dense(inner, width, std, rngs=rngs)
        self.norm = LayerNorm(width, epsilon=EPSILON)
        self.rate = rate

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        return self.norm(x + dropout(self.fc2(gelu(self.fc1(x))), self.rate, key))
