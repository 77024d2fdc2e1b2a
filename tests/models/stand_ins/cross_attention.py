# SPDX-License-Identifier: Apache-2.0
"""A model unlike CLIP: the text attends to R = 16 reference rows. A plug-in file, as a user's."""

import jax
import jax.numpy as jnp
from flax import nnx

from cir_jax.towers.clip.sizes import VOCABULARY
from cir_jax.towers.layers import Dense, normal, unit

TOKENIZER = "clip"
CUT_PADDING = True
REFERENCE_ROWS = "per_image"
WIDTH = 8


class Model(nnx.Module):
    """R = 16, C = 8, K = 1, D = 8."""

    def __init__(self, config, *, rngs):
        self.patches = Dense(4 * 4 * 3, WIDTH, 0.2, rngs=rngs)
        self.head = Dense(WIDTH, WIDTH, 0.3, rngs=rngs)
        self.words = normal(rngs, (VOCABULARY, WIDTH), 0.5)
        self.mix = Dense(WIDTH, WIDTH, 0.3, rngs=rngs)
        self.logit_scale = nnx.Param(jnp.asarray(2.0, jnp.float32))

    def reference(self, pixels, text):
        batch = pixels.shape[0]
        tiles = pixels.reshape(batch, 4, 4, 4, 4, 3).transpose(0, 1, 3, 2, 4, 5)
        return jnp.tanh(self.patches(tiles.reshape(batch, 16, 48)))

    def target(self, pixels):
        return unit(self.head(self.reference(pixels, None).mean(axis=1)))[:, None]

    def compose(self, reference, text, key=None):
        used = (text > 0)[..., None].astype(jnp.float32)
        question = (self.words[...][text] * used).sum(axis=1) / used.sum(axis=1)
        weights = jax.nn.softmax(jnp.einsum("bc,brc->br", question, reference), axis=-1)
        found = jnp.einsum("br,brc->bc", weights, reference)
        return unit(self.mix(found) + question)


def image_size(config):
    return 16


def roles(config):
    return [
        (r"(patches|head)/.*", "index"), (r"(words|mix/.*)", "query"), (r"logit_scale", "pretrain"),
    ]  # fmt: skip


def sharding(config):
    return [(r"words", ("model", None)), (r".*/kernel", (None, "model")), (r".*", ())]
