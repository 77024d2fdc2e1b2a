# SPDX-License-Identifier: Apache-2.0
"""CLIP4CIR (sum) and zero-shot CLIP. `model` is the network, `layouts` its weights."""

from cir_jax.models.clip_sum import layouts, siglip_layouts, tips_layouts
from cir_jax.models.clip_sum.model import (
    CUT_PADDING,
    PACKS_TEXTS,
    REFERENCE_ROWS,
    TOKENIZER,
    Model,
    image_size,
    roles,
    sharding,
)

LAYOUTS = (*layouts.LAYOUTS, *siglip_layouts.LAYOUTS, *tips_layouts.LAYOUTS)
KEYS = {
    "tower": ("RN50x4", "size of the encoders, see sizes.py of the families in cir_jax/towers; "
              "auto = that of init_from", "size of cir_jax.towers.encoders"),
}  # fmt: skip
