# SPDX-License-Identifier: Apache-2.0
"""The text transformer of CLIP: token ids -> one feature, not normalised.

What differs from OpenAI's in models of open_clip, and in MetaCLIP 2, is a `TextVariant` of `sizes`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cir_jax.errors import UserError
from cir_jax.runtime.sharding import keep_rows, lookup
from cir_jax.towers import packed
from cir_jax.towers.attention import XLA
from cir_jax.towers.clip.sizes import CONTEXT, PLAIN_TEXT, TextSize, TextVariant
from cir_jax.towers.layers import Block, LayerNorm, normal, run_blocks, stack
from cir_jax.towers.packed import Packed, Text

PADDING = 0  # id behind a text, of CLIP's tokenizer


class TextTransformer(nnx.Module):
    """A causal transformer, read at the end-of-text token, [B, T] ids -> [B, D] float32.

    Nothing behind that token is seen by it, so a text may be cut to any length that keeps it: the
    feature does not change, and the cost falls with the length. For the same reason texts may lie
    one behind the other in a row, as `cir_jax.data.packing` has them.

    Of a variant that sees its padding, or is read at a fixed place, texts are filled up to the
    context first. The class token of CoCa stands at the last position of all; it sees the text and
    one padding token behind it, which is how its weights were trained.

    Args:
      size: see `cir_jax.towers.clip.sizes`.
      embedding: D.
      context: positions of tokens; 0 means CLIP's 77, or 76 and a class token.
      variant: what differs from OpenAI's.
      activation: one of `cir_jax.towers.layers.ACTIVATIONS`.
      dtype: compute type.
      remat: what of a block is computed again in the backward pass, see `rematerialised` of
        `cir_jax.towers.layers`.
      attention: what computes it, see `cir_jax.towers.attention`.
    """

    def __init__(
        self,
        size: TextSize,
        embedding: int,
        *,
        context: int = 0,
        variant: TextVariant = PLAIN_TEXT,
        activation: str = "quick_gelu",
        dtype: jnp.dtype = jnp.float32,
        remat: str | bool = "none",
        attention: str = XLA,
        rngs: nnx.Rngs,
    ):
        extra = int(variant.class_token)
        self.context = context or CONTEXT - extra
        self.token_embedding = normal(rngs, (variant.vocabulary, size.width), 0.02)
        self.position = normal(rngs, (self.context + extra, size.width), 0.01)
        self.class_token = normal(rngs, (size.width,), 0.01) if variant.class_token else None
        options: dict[str, Any] = {
            "activation": activation, "epsilon": variant.epsilon, "layer_scale": variant.scale,
            "attention": attention, "causal": variant.causal,
        }  # fmt: skip
        self.blocks = stack(lambda rngs: Block(size, rngs=rngs, **options), size.layers, rngs)
        self.norm_out = LayerNorm(size.width, epsilon=variant.epsilon)
        self.proj = normal(rngs, (size.width, embedding), size.width**-0.5)
        self.proj_bias = nnx.Param(jnp.zeros((embedding,), jnp.float32)) if variant.bias else None
        self.variant = variant
        self.dtype = dtype
        self.remat = remat

    def tokens(self, text: Text) -> jax.Array:
        """[B, T] ids -> [B, T, C], after the last norm; of packed texts [P, L, C].

        Of a variant that fills texts up T is the context, and a class token is the last one.

        Raises:
          UserError: T is over the context.
        """
        if isinstance(text, Packed):
            assert self.variant.causal and self.class_token is None  # `ClipSize.packs_texts`
            ids, mask = text.tokens, packed.same_text(text)
            x, positions = self._embedded(ids), self.position[...][text.position]
        else:
            length, context = text.shape[1], self.context
            if length > context:
                raise UserError(f"text of {length} tokens is over the context of {context}; cut it")
            if self.class_token is None:
                ids, mask = self._filled(text), None
                x, positions = self._embedded(ids), self.position[...][None, : ids.shape[1]]
            else:
                (x, positions), mask = self._with_class_token(text), self.mask(text)
        x = keep_rows(x) + positions
        return self.norm_out(run_blocks(self.blocks, x.astype(self.dtype), mask, remat=self.remat))

    def __call__(self, text: Text) -> jax.Array:
        """[B, T] ids, or B packed texts -> [B, D] float32, not unit length."""
        return self.feature(self.tokens(text), text)

    def feature(self, tokens: jax.Array, text: Text) -> jax.Array:
        """What `tokens` gives for `text`, [B, T, C] -> [B, D] float32, not unit length."""
        if isinstance(text, Packed):
            read = packed.at_ends(tokens, text).astype(jnp.float32)
            return packed.in_order(self._projected(read), text)
        return self._projected(self._read(tokens, text).astype(jnp.float32))

    def _read(self, tokens: jax.Array, text: jax.Array) -> jax.Array:
        """[B, T, C] -> [B, C], the token where a text is read."""
        if self.class_token is not None or self.variant.pool == "last":
            return tokens[:, -1]
        if self.variant.pool == "first":
            return tokens[:, 0]
        end = self.variant.end  # CLIP's own end of text has the largest id
        last = jnp.argmax(text == end if end else text, axis=-1)
        return jnp.take_along_axis(tokens, last[:, None, None], axis=1)[:, 0]

    def _projected(self, x: jax.Array) -> jax.Array:
        x = x @ self.proj[...]
        return x if self.proj_bias is None else x + self.proj_bias[...][None]

    def _embedded(self, ids: jax.Array) -> jax.Array:
        return lookup(self.token_embedding[...], ids)

    def _filled(self, text: jax.Array) -> jax.Array:
        """[B, T] ids as they are, or with padding up to the context where that is seen or read."""
        if self.variant.causal and self.variant.pool != "last":
            return text
        missing = self.context - text.shape[1]
        return jnp.pad(text, ((0, 0), (0, missing)), constant_values=PADDING)

    def _with_class_token(self, text: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[B, T] ids -> embeddings [B, U, C] of its tokens and the class, positions [1, U, C]."""
        assert self.class_token is not None
        x, token = self._embedded(self._with_padding(text)), self.class_token[...][None, None]
        x = jnp.concatenate([x, jnp.broadcast_to(token, (len(x), *token.shape[1:]))], axis=1)
        table = self.position[...]
        return x, jnp.concatenate([table[: x.shape[1] - 1], table[-1:]])[None]

    def _with_padding(self, text: jax.Array) -> jax.Array:
        """[B, T] ids with one padding token more, unless they fill the context."""
        missing = int(text.shape[1] < self.context)
        return jnp.pad(text, ((0, 0), (0, missing)), constant_values=PADDING)

    def mask(self, text: jax.Array) -> jax.Array | None:
        """[B, T] ids -> [B, U, U] bool of the tokens and a class token, None where there is none.

        A key is seen if the token before it is no padding: open_clip shifts its mask so, and its
        weights were trained with that.
        """
        if self.class_token is None:
            return None
        shown = self._with_padding(text) != PADDING
        seen = jnp.pad(shown, ((0, 0), (1, 0)), constant_values=True)
        return jnp.broadcast_to(seen[:, None], (*seen.shape, seen.shape[1]))
