# SPDX-License-Identifier: Apache-2.0
"""Config -> training sets, through the reader that `data.name` names."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ml_collections import ConfigDict

from cir_jax import progress
from cir_jax.data import places
from cir_jax.data.column_images import Images
from cir_jax.data.triplets import TripletSet
from cir_jax.datasets import captions as caption_files
from cir_jax.datasets import generated, held_out, reader
from cir_jax.errors import UserError


def load(config: ConfigDict, captions: bool) -> list[TripletSet]:
    """The training sets of a run: image-caption pairs for stage zero, triplets otherwise.

    Triplets are annotated ones, then generated ones; without annotated ones
    (`data.annotated=0`) their files need not exist.

    Raises:
      UserError: whatever the reader finds wrong, or neither kind is asked for.
    """
    with places.within(config):
        sets = _load(config, captions)
        for one in sets:
            # What a rule places was checked when it was.
            own = one.paths.special() if isinstance(one.paths, Images) else one.paths
            places.check_all(own, f"{config.data.name}, {one.name}")
        return sets


def _load(config: ConfigDict, captions: bool) -> list[TripletSet]:
    data = config.data
    module = reader.load(data.name)
    if captions:
        own = None if data.captions else _own_captions(module, data.root)
        if data.captions or own:
            choices = caption_files.Choices.of_stage_zero(
                data.caption_text_field,
                data.caption_empty,
                data.caption_duplicates,
                data.on_missing,
            )
            base = own.parent if own else data.root
            sets = caption_files.read(own or data.captions, base, choices)
            gone = held_out.of(config)
            return [gone.without(one, str(own or "data.captions")) for one in sets]
        if isinstance(module, reader.HasCaptions):
            return module.captions(data.root)
        raise UserError(
            f"stage zero trains on image captions, and data set {data.name!r} has none; set "
            "data.captions to a file of images and captions (.json, .jsonl, .csv, .tsv, .tar)"
        )
    if not data.annotated and not data.generated:
        raise UserError(
            "data.annotated=0 leaves no triplet; set data.generated to files of generated ones"
        )
    sets = module.read(data.root, "train", data.categories) if data.annotated else []
    if data.annotated > 0:
        sets = choose(sets, data.annotated, config.seed)
    if data.generated:
        known = reader.training_images(
            data.name, data.root, "generated triplets need to find theirs"
        )
        known |= {name: path for one in sets for name, path in one.paths.items()}
        home = reader.home(data.name, data.root)
        made = generated.read(data.generated, known, home, data.llm_captions, data.generated_images)
        gone = held_out.of(config)
        sets += [gone.without(one, "data.generated") for one in made]
    _say_several(sets, config.loss.exclude_positives)
    return [one.of_each_target() for one in sets]


def _own_captions(module: reader.Reader, root: str) -> Path | None:
    """The file of captions that lies in a data set; None if there is none."""
    if not isinstance(module, reader.HasCaptionFile):
        return None
    file = module.caption_file(root)
    return file if file.is_file() else None


def _say_several(sets: Sequence[TripletSet], excluded: bool) -> None:
    """Says how queries with several right answers are trained."""
    count = sum(one.several() for one in sets)
    if count:
        others = "are no negatives" if excluded else "are negatives (loss.exclude_positives=False)"
        progress.say(
            f"{count:,} queries have several right answers: each answer is a triplet, and in stage "
            f"two the others {others}"
        )


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
