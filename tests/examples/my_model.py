# SPDX-License-Identifier: Apache-2.0
"""A gate decides how much of the query is the image and how much is the text."""

import jax
import jax.numpy as jnp
from flax import nnx

from cir_jax.models import clip_sum
from cir_jax.towers.clip import sizes
from cir_jax.towers.layers import unit

TOKENIZER, CUT_PADDING, REFERENCE_ROWS = "clip", True, "per_image"
LAYOUTS = clip_sum.LAYOUTS  # every file of weights that clip_sum reads is read ...
NEW = ("gate/.*",)  # ... and may lack the gate, which then starts at random
image_size, sharding = clip_sum.image_size, clip_sum.sharding


class Model(clip_sum.Model):
    """reference, target and text_features are CLIP's; compose calls fuse, which is ours."""

    def __init__(self, config, *, rngs):
        super().__init__(config, rngs=rngs)
        self.gate = nnx.Linear(2 * sizes.find(config.tower).embedding, 1, rngs=rngs)

    def fuse(self, reference, features, key=None):
        """[B, 1, D] image features and [B, D] text features -> [B, D] unit queries."""
        image = reference[:, 0].astype(jnp.float32)
        gate = jax.nn.sigmoid(self.gate(jnp.concatenate([image, features], axis=-1)))
        return unit(gate * image + (1 - gate) * features)


def roles(config):
    """The gate trains with the query side, in stage one and in stage two."""
    return [("gate/.*", "query"), *clip_sum.roles(config)]
