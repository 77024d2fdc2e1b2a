# SPDX-License-Identifier: Apache-2.0
"""CLIP4CIR with the Combiner on a frozen CLIP. `model` is the network, `layouts` its weights."""

from cir_jax.models.clip_combiner.layouts import LAYOUTS
from cir_jax.models.clip_combiner.model import (
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
