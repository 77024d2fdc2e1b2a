# SPDX-License-Identifier: Apache-2.0
"""The Q-Former of BLIP-2, as SPRC runs it: query tokens and a text, with or without an image.

A BERT that mixes slots (query tokens) and text in its self-attention. Each layer has two MLPs, one
for slots and one for text, and every second layer, from the first on, has cross-attention from the
slots to the image. Which of them runs depends on the image:

    with an image     slots: cross-attention (even layers) and the MLP for slots; text: its own MLP
    without an image  slots and text: the MLP for text; no cross-attention

In BLIP-2 itself the second line is for texts that come without slots; SPRC runs slots that way as
well. Sources: Li et al., BLIP-2, ICML 2023, section 3.1; Bai et al., "Sentence-level Prompts
Benefit Composed Image Retrieval", ICLR 2024, and its released code.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from cir_jax.errors import UserError
from cir_jax.runtime.sharding import keep_rows, lookup
from cir_jax.towers import bert
from cir_jax.towers.attention import XLA
from cir_jax.towers.blip2.sizes import POSITIONS, VOCABULARY, QFormerSize
from cir_jax.towers.layers import run_stack, stack

PAD = 0  # token id that nobody attends to
BERT_WIDTH = 768
DROPOUT = 0.1  # of attention weights and of what each part adds, as in BERT


class Layer(nnx.Module):
    """One layer, with cross-attention or without; see the module docstring.

    Args:
      size: see `cir_jax.towers.blip2.sizes`.
      image_width: C', width of the image tokens; 0 for a layer that does not look at them.
      attention: what computes it, see `cir_jax.towers.attention`.
    """

    def __init__(
        self, size: QFormerSize, image_width: int, *, attention: str = XLA, rngs: nnx.Rngs
    ):
        width, inner = size.width, size.mlp or 4 * size.width
        # BERT's deviation is right for its width: in a narrow Q-Former slots, which are the same
        # tokens for all images, would at first hardly see any of them.
        std = bert.STD * (BERT_WIDTH / width) ** 0.5
        options = {"rate": DROPOUT, "std": std, "rngs": rngs}
        both = {"attention": attention, **options}
        self.attention = bert.Attention(width, size.heads, **both)
        cross = {"source": image_width, **both}
        self.cross = bert.Attention(width, size.heads, **cross) if image_width else None
        self.mlp = bert.Mlp(width, inner, **options)
        self.slot_mlp = bert.Mlp(width, inner, **options)

    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array,
        image: jax.Array | None,
        slots: int,
        key: jax.Array | None,
    ) -> jax.Array:
        """[B, R + T, C], [B, R + T] bool and image tokens [B, P, C'] or None -> [B, R + T, C]."""
        keys = (None,) * 4 if key is None else jax.random.split(key, 4)
        x = self.attention(x, x, mask, keys[0])
        if image is None:
            return self.mlp(x, keys[2])
        first, text = x[:, :slots], x[:, slots:]
        if self.cross is not None:
            first = self.cross(first, image, None, keys[1])
        first = self.slot_mlp(first, keys[3])
        return jnp.concatenate([first, self.mlp(text, keys[2])], axis=1) if text.size else first


class Pair(nnx.Module):
    """Two layers, of which the first looks at the image: what a scan runs over."""

    def __init__(
        self, size: QFormerSize, image_width: int, *, attention: str = XLA, rngs: nnx.Rngs
    ):
        self.even = Layer(size, image_width, attention=attention, rngs=rngs)
        self.odd = Layer(size, 0, attention=attention, rngs=rngs)

    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array,
        image: jax.Array | None,
        slots: int,
        key: jax.Array | None,
    ) -> jax.Array:
        """As `Layer`."""
        keys = (None, None) if key is None else jax.random.split(key)
        return self.odd(self.even(x, mask, image, slots, keys[0]), mask, image, slots, keys[1])


class QFormer(nnx.Module):
    """R slots, T tokens of a text and an image -> one state each, [B, R + T, C] float32.

    Nobody attends to padding, so a text may be padded to any length: no other state changes.

    Args:
      size: see `cir_jax.towers.blip2.sizes`.
      image_width: width of the image tokens.
      dtype: compute type.
      remat: what of two layers is computed again in the backward pass, see `rematerialised` of
        `cir_jax.towers.layers`.
      attention: what computes it, see `cir_jax.towers.attention`.
    """

    def __init__(
        self,
        size: QFormerSize,
        image_width: int,
        *,
        dtype: jnp.dtype = jnp.float32,
        remat: str | bool = "none",
        attention: str = XLA,
        rngs: nnx.Rngs,
    ):
        self.embeddings = bert.Embeddings(VOCABULARY, POSITIONS, size.width, rngs=rngs)
        self.pairs = stack(
            lambda rngs: Pair(size, image_width, attention=attention, rngs=rngs),
            size.layers // 2,
            rngs,
        )
        self.dtype = dtype
        self.remat = remat

    def __call__(
        self,
        slots: jax.Array,
        text: jax.Array | None,
        image: jax.Array | None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Slots come before the text and have no position; the norm is over both.

        Args:
          slots: [B, R, C], learned queries or states of an earlier pass.
          text: [B, T] ids; None for slots alone.
          image: [B, P, C'] image tokens, or None.
          key: dropout key; None for none.

        Returns:
          [B, R + T, C] float32; the state of the first token is at R.

        Raises:
          UserError: T is over the positions of BERT.
        """
        x, mask = slots.astype(jnp.float32), jnp.ones(slots.shape[:2], bool)
        if text is not None:
            self._check(text.shape[1])
            x = jnp.concatenate([x, self.embeddings.lookup(text)], axis=1)
            mask = jnp.concatenate([mask, text != PAD], axis=1)
        return self._run(x, mask, image, slots.shape[1], key)

    def prompted(
        self, prompts: jax.Array, text: jax.Array, key: jax.Array | None = None
    ) -> jax.Array:
        """A text with learned prompts behind its first token, and no image.

        Prompts have positions here: they are 1 to R, and the rest of the text follows.

        Args:
          prompts: [B, R, C].
          text: [B, T] ids.
          key: dropout key; None for none.

        Returns:
          [B, R + T, C] float32; the state of the first token is at 0.

        Raises:
          UserError: R + T is over the positions of BERT.
        """
        count = prompts.shape[1]
        length = count + text.shape[1]
        self._check(length)
        words = keep_rows(lookup(self.embeddings.words[...], text))
        x = jnp.concatenate([words[:, :1], prompts.astype(words.dtype), words[:, 1:]], axis=1)
        x = x + self.embeddings.positions[...][None, :length]
        seen = text != PAD
        ones = jnp.ones(prompts.shape[:2], bool)
        mask = jnp.concatenate([seen[:, :1], ones, seen[:, 1:]], axis=1)
        return self._run(x, mask, None, 0, key)

    def _run(
        self,
        x: jax.Array,
        mask: jax.Array,
        image: jax.Array | None,
        slots: int,
        key: jax.Array | None,
    ) -> jax.Array:
        keys = (None, None) if key is None else jax.random.split(key)
        x = self.embeddings.finish(x, DROPOUT, keys[0]).astype(self.dtype)
        image = None if image is None else image.astype(self.dtype)
        x = run_stack(
            self.pairs if image is not None else _without_image(self.pairs),
            x,
            lambda x, pair, key: pair(x, mask, image, slots, key),
            keys[1],
            remat=self.remat,
        )
        return x.astype(jnp.float32)

    def _check(self, length: int) -> None:
        limit = self.embeddings.positions.shape[0]
        if length > limit:
            raise UserError(
                f"text of {length} tokens is over the {limit} positions of BERT; cut it"
            )


def _without_image(pairs: Pair) -> Pair:
    """The layers without what only a pass with an image reads: no other pass carries it along."""
    bare = nnx.merge(*nnx.split(pairs))
    del bare.even.cross, bare.even.slot_mlp, bare.odd.slot_mlp
    return bare
