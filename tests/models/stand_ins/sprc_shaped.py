# SPDX-License-Identifier: Apache-2.0
"""The shape of SPRC, the hard case of the contract: K = 32 target rows, references that depend on
the text, a query part that the index uses too, and dropout in `compose`."""

import jax
import jax.numpy as jnp
from flax import nnx

from cir_jax.towers.clip.sizes import VOCABULARY
from cir_jax.towers.layers import Dense, normal, unit

TOKENIZER = "clip"
CUT_PADDING = True
REFERENCE_ROWS = "per_triplet"
WIDTH = 8
SLOTS = 32


class Model(nnx.Module):
    """R = K = 32, C = D = 8."""

    def __init__(self, config, *, rngs):
        self.patches = Dense(4 * 4 * 3, WIDTH, 0.2, rngs=rngs)
        self.slots = normal(rngs, (SLOTS, WIDTH), 1.0)
        self.words = normal(rngs, (VOCABULARY, WIDTH), 0.5)
        self.former = Dense(WIDTH, WIDTH, 0.3, rngs=rngs)
        self.head = Dense(WIDTH, WIDTH, 0.3, rngs=rngs)

    def reference(self, pixels, text):
        return self._look(pixels, self.slots[...][None] + self._read(text)[:, None])

    def target(self, pixels):
        slots = jnp.broadcast_to(self.slots[...][None], (pixels.shape[0], SLOTS, WIDTH))
        return unit(self.head(self._look(pixels, slots)))

    def compose(self, reference, text, key=None):
        mixed = jnp.tanh(self.former(reference.mean(axis=1) + self._read(text)))
        if key is not None:
            kept = jax.random.bernoulli(key, 0.9, mixed.shape)
            mixed = jnp.where(kept, mixed / 0.9, 0.0)
        return unit(mixed)

    def _look(self, pixels, slots):
        batch = pixels.shape[0]
        tiles = pixels.reshape(batch, 4, 4, 4, 4, 3).transpose(0, 1, 3, 2, 4, 5)
        patches = jnp.tanh(self.patches(tiles.reshape(batch, 16, 48)))
        weights = jax.nn.softmax(jnp.einsum("bkc,bpc->bkp", slots, patches), axis=-1)
        return jnp.tanh(self.former(jnp.einsum("bkp,bpc->bkc", weights, patches) + slots))

    def _read(self, text):
        used = (text > 0)[..., None].astype(jnp.float32)
        return (self.words[...][text] * used).sum(axis=1) / used.sum(axis=1)


def image_size(config):
    return 16


def roles(config):
    return [(r"(patches/.*|slots|head/.*)", "index"), (r"(words|former/.*)", "query")]


def sharding(config):
    return [(r"words", ("model", None)), (r".*/kernel", (None, "model")), (r".*", ())]
