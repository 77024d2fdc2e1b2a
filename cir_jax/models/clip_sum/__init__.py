# SPDX-License-Identifier: Apache-2.0
"""CLIP4CIR (sum) and zero-shot CLIP. `model` is the network, `layouts` its weights."""

from cir_jax.models.clip_sum.layouts import LAYOUTS
from cir_jax.models.clip_sum.model import (
    CUT_PADDING,
    REFERENCE_ROWS,
    TOKENIZER,
    Model,
    image_size,
    roles,
    sharding,
)

__all__ = [
    "CUT_PADDING",
    "LAYOUTS",
    "REFERENCE_ROWS",
    "TOKENIZER",
    "Model",
    "image_size",
    "roles",
    "sharding",
]
