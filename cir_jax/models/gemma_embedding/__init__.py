# SPDX-License-Identifier: Apache-2.0
"""EmbeddingGemma 2. `model` is the network, `layouts` its weights."""

from cir_jax.models.gemma_embedding.layouts import LAYOUTS
from cir_jax.models.gemma_embedding.model import (
    CUT_PADDING,
    INPUT_KEYS,
    REFERENCE_ROWS,
    TEXT_ALONE,
    TOKENIZER,
    Model,
    image_size,
    prompted,
    roles,
    sharding,
)

KEYS = {
    "tower": ("RN50x4", "size of the encoders, see cir_jax/towers/gemma/sizes.py; auto = that of "
              "init_from", "size of cir_jax.towers.gemma.sizes"),
    "width": (0, "values of a vector: the first so many, again of unit length (512, 256 and 128 as "
              "published); 0 = all", "[0, 65536]"),
    "prompt": ("<|image|>{text}", "what the encoder reads of a query: where its image goes, and "
               "its text", None),
    "image_ids": ((), "token ids of an image alone; () = the image token between start and end of "
                  "a text, or what the tokenizer of init_from says", "[0, 1e9]"),
    "freeze": ((), "parts that never train: image (the image encoder), tokens (the table of token "
               "vectors, of which a batch reads few)", ("image", "tokens")),
}  # fmt: skip
