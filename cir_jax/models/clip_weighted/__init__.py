# SPDX-License-Identifier: Apache-2.0
"""The weighted sum of CLIP's features. `model` is the network, `layouts` its weights."""

from cir_jax.models.clip_weighted.layouts import LAYOUTS
from cir_jax.models.clip_weighted.model import (
    CUT_PADDING,
    NEW,
    PACKS_TEXTS,
    REFERENCE_ROWS,
    TOKENIZER,
    Model,
    image_size,
    roles,
    sharding,
)

KEYS = {
    "tower": ("RN50x4", "size of the encoders, see sizes.py of the families in cir_jax/towers; "
              "auto = that of init_from", "size of cir_jax.towers.encoders"),
}  # fmt: skip
