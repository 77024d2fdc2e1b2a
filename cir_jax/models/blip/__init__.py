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
