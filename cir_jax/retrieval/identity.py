# SPDX-License-Identifier: Apache-2.0
"""What tells a model from another: its parameters and how pictures become its inputs.

Rows of an index are made by the image side, queries by the query side. Both are known by checksums
of their values (XXH3, 0.1 s per GB), never by the place of a file, so that a copy of the weights is
the same model, and weights that were trained on in the same folder are another one.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from cir_jax.contract import Functions
from cir_jax.convert.inputs import CONTENT
from cir_jax.data.pixels import Preprocess
from cir_jax.params import Params

# Part -> what messages call it, in the order in which they are named.
WORDS = {
    "model": "the model",
    "tower": "the size of the encoders",
    "rows_per_image": "the rows of an image",
    "embedding": "the size of the embedding",
    "preprocessing": "how pictures become inputs",
    "compute": "the type of computation",
    "image_side": "the parameters of the image side",
    "query_side": "the parameters of the query side",
    "tokenizer": "the tokenizer",
}
QUERY_PARTS = ("query_side", "tokenizer")  # what rows do not depend on


def of(
    config: Any, functions: Functions, index: Params, query: Params, preprocess: Preprocess
) -> dict[str, Any]:
    """Part -> its value or checksum; JSON, the same on any machine and number of devices.

    Args:
      config: of the model, its sections `model` and `data`.
      functions: the model.
      index, query: its two trees.
      preprocess: image -> pixels.
    """
    rows, width = functions.target_shape
    content = config.model[CONTENT]
    return {
        "model": Path(config.model.name).stem,
        "tower": config.model.tower,
        "rows_per_image": rows,
        "embedding": width,
        "preprocessing": preprocess.fingerprint(),
        "compute": config.model.dtype,
        "image_side": _checksum({path: index[path] for path in functions.index_paths}),
        "query_side": _checksum({path: query[path] for path in functions.abstract}),
        **({"tokenizer": content} if content else {}),
    }


def differences(there: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The parts that differ."""
    return [part for part in WORDS if there.get(part) != now.get(part)]


def in_words(parts: list[str], there: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Parts that differ, and their values: "the size of the encoders (ViT-B/16, here ViT-L/14)"."""
    return "; ".join(
        f"{WORDS[part]} ({str(there.get(part))[:60]} there, {str(now.get(part))[:60]} here)"
        for part in parts
    )


def _checksum(params: Params) -> str:
    digest = xxhash.xxh3_128()
    for path in sorted(params):
        value = np.asarray(params[path])
        digest.update(f"{path} {value.dtype} {value.shape}\n".encode())
        digest.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
