# SPDX-License-Identifier: Apache-2.0
"""Files with which sentence-transformers loads an exported folder, and how a query is composed.

`SentenceTransformer(folder).encode` gives raw features, of images and of texts; their sum, made
unit length, is the query of `clip_sum`. It makes pictures into squares as transformers does, which
is data.pad=none; a model that was trained with padding gets padded pictures there.
"""

from pathlib import Path
from typing import Any

from cir_jax.convert.transformers_files import json_bytes
from cir_jax.files import put

MODULES = "modules.json"
COMPOSING = "composing.json"
# The name of before version 5.4, which later ones know, too.
_MODULE = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.CLIPModel"}
_RULE = {
    "candidate": "unit(encode(image))",
    "query": "unit(encode(image) + encode(text))",
    "normalize_embeddings": False,
    "score": "inner product of query and candidate",
}


def write(folder: Path, data: dict[str, Any]) -> list[Path]:
    """Writes them beside the weights of a CLIPModel of transformers.

    Args:
      folder: of the weights.
      data: how images are made into squares, {} where that is not known.

    Returns:
      The files.
    """
    known = {key: data[key] for key in ("pad", "target_ratio", "loading") if key in data}
    for name, content in ((MODULES, [_MODULE]), (COMPOSING, _RULE | {"squares": known})):
        put(folder / name, json_bytes(content))
    return [folder / MODULES, folder / COMPOSING]
