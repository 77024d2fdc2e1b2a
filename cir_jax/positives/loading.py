# SPDX-License-Identifier: Apache-2.0
"""Config -> triplet sets, through the reader module that `data.name` names."""

from types import ModuleType
from typing import Any

from cir_jax import plugins
from cir_jax.errors import UserError
from cir_jax.positives import captions as caption_files
from cir_jax.positives.triplets import TripletSet

PACKAGE = "cir_jax.positives"


def reader(name: str) -> ModuleType:
    """The reader module, e.g. "fashioniq", or a file of yours that defines `read`.

    Raises:
      UserError: no such reader; what exists is listed.
    """
    return plugins.load(PACKAGE, name, marker="gallery")


def load(config: Any, captions: bool) -> list[TripletSet]:
    """The training sets of a run: image-caption pairs for stage zero, triplets otherwise.

    Raises:
      UserError: whatever the reader finds wrong.
    """
    data = config.data
    module = reader(data.name)
    if captions:
        if data.captions:
            return caption_files.read(data.captions, data.root)
        if hasattr(module, "captions"):
            return module.captions(data.root)
        raise UserError(
            f"stage zero trains on image captions, and data set {data.name!r} has none; set "
            "data.captions to a file of {image_id, image_path, caption} records"
        )
    return module.read(data.root, "train", data.categories, data.generated, data.llm_captions)
