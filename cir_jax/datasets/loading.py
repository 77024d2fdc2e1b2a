# SPDX-License-Identifier: Apache-2.0
"""Config -> triplet sets, through the reader module that `data.name` names.

A reader is one module of `cir_jax.datasets` (or a file of yours) that defines

    read(root, split, categories)   the annotated triplets of a split, a list of `TripletSet`
    images(root, split)             name -> file, the images that generated triplets may name
    gallery(root, ...)              as its benchmark wants it
    captions(root)                  optional: image-caption pairs for stage zero
    caption_file(root)              optional: the file of them
    held_out(root, splits)          optional: name -> file, those of images(root, "train") that are
                                    for evaluation alone
    home(root)                      optional: folder that files are relative to, if not the root
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

from cir_jax import plugins
from cir_jax.data.triplets import TripletSet
from cir_jax.datasets import captions as caption_files
from cir_jax.datasets import generated
from cir_jax.errors import UserError

PACKAGE = "cir_jax.datasets.readers"


def reader(name: str) -> ModuleType:
    """The reader module, e.g. "fashioniq", or a file of yours that defines `read`.

    Raises:
      UserError: no such reader; what exists is listed.
    """
    return plugins.load(PACKAGE, name, marker="gallery")


def load(config: Any, captions: bool) -> list[TripletSet]:
    """The training sets of a run: image-caption pairs for stage zero, triplets otherwise.

    Triplets are annotated ones, then generated ones; without annotated ones
    (`data.annotated=0`) their files need not exist.

    Raises:
      UserError: whatever the reader finds wrong, or neither kind is asked for.
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
    if data.annotated < -1:
        raise UserError(f"data.annotated={data.annotated}; use -1 for all, 0 for none, or a number")
    if not data.annotated and not data.generated:
        raise UserError(
            "data.annotated=0 leaves no triplet; set data.generated to files of generated ones"
        )
    sets = module.read(data.root, "train", data.categories) if data.annotated else []
    if data.annotated > 0:
        sets = choose(sets, data.annotated, config.seed)
    if data.generated:
        if not hasattr(module, "images"):
            raise UserError(
                f"{data.name} defines no images(root, split), which generated triplets need to "
                "find theirs; add it, see cir_jax/datasets/loading.py"
            )
        home = module.home(data.root) if hasattr(module, "home") else data.root
        known = module.images(data.root, "train")
        known |= {name: path for one in sets for name, path in one.paths.items()}
        sets += generated.read(
            data.generated, known, home, data.llm_captions, data.generated_images
        )
    return sets


def choose(sets: Sequence[TripletSet], count: int, seed: int) -> list[TripletSet]:
    """`count` triplets of all sets, at random, in their old order.

    With one seed, a smaller choice is part of every larger one.

    Raises:
      UserError: there are fewer.
    """
    places = [(i, j) for i, one in enumerate(sets) for j in range(len(one.triplets))]
    if count > len(places):
        raise UserError(
            f"data.annotated={count}, but there are {len(places)} annotated triplets; use -1 for "
            "all of them"
        )
    random.Random(seed).shuffle(places)
    kept = set(places[:count])
    chosen = [
        replace(one, triplets=tuple(t for j, t in enumerate(one.triplets) if (i, j) in kept))
        for i, one in enumerate(sets)
    ]
    return [one for one in chosen if one.triplets]
