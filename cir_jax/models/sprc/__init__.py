# SPDX-License-Identifier: Apache-2.0
"""SPRC on BLIP-2. `model` is the network, `layouts` its weights."""

from cir_jax.models.sprc.layouts import LAYOUTS
from cir_jax.models.sprc.model import (
    AUXILIARY,
    CUT_PADDING,
    NEW,
    REFERENCE_ROWS,
    TOKENIZER,
    Model,
    image_size,
    roles,
    sharding,
)

KEYS = {
    "tower": ("RN50x4", "size of the encoders, see cir_jax/towers/blip2/sizes.py; auto = that of "
              "init_from", "size of cir_jax.towers.blip2.sizes"),
    "train_image": (False, "stage one trains the image side too", None),
}  # fmt: skip
