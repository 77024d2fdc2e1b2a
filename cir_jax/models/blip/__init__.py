# SPDX-License-Identifier: Apache-2.0
"""BLIP4CIR. `model` is the network, `layouts` its weights."""

from cir_jax.models.blip.layouts import LAYOUTS
from cir_jax.models.blip.model import (
    CUT_PADDING,
    REFERENCE_ROWS,
    TOKENIZER,
    Model,
    image_size,
    roles,
    sharding,
)

KEYS = {
    "tower": ("RN50x4", "size of the encoders, see cir_jax/towers/blip/sizes.py; auto = that of "
              "init_from", "size of cir_jax.towers.blip.sizes"),
    "dropout": (0.0, "of the text encoder, in steps of training", "[0, 1)"),
    "train_image": (False, "stage one trains the image side too", None),
}  # fmt: skip
