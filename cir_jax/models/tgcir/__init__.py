# SPDX-License-Identifier: Apache-2.0
"""TG-CIR on CLIP. `model` is the network, `layouts` its weights."""

from cir_jax.models.tgcir.layouts import LAYOUTS
from cir_jax.models.tgcir.model import (
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

__all__ = [
    "AUXILIARY",
    "CUT_PADDING",
    "LAYOUTS",
    "NEW",
    "REFERENCE_ROWS",
    "TOKENIZER",
    "Model",
    "image_size",
    "roles",
    "sharding",
]
