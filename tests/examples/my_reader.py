# SPDX-License-Identifier: Apache-2.0
"""A data set of your own: {root}/{split}.csv with columns reference, target, text, and images/.

cir-jax doctor my_reader.py DATA/mine
cir-jax train --config clip_sum:fashioniq,stage=1 --set data.name=my_reader.py --init-from CLIP
"""

import csv
from pathlib import Path

from cir_jax.data.triplets import Triplet, TripletSet
from cir_jax.datasets.examination import Examination


def read(root, split="train", categories=()):
    """The triplets of a split."""
    with open(Path(root) / f"{split}.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    triplets = tuple(
        Triplet(
            reference=row["reference"],
            target=row["target"],
            texts=(row["text"],),  # in training one of them is drawn at a time
            eval_text=row["text"],
            source="mine",
            query_id=f"{split}/{number}",
        )
        for number, row in enumerate(rows)
    )
    return [TripletSet("mine", triplets, images(root))]


def images(root, split="train"):
    """Name -> file of every image."""
    return {file.name: str(file) for file in sorted((Path(root) / "images").iterdir())}


def examine(root, categories=()):
    """What `cir-jax doctor` counts; it opens the images itself."""
    found = Examination(images=images(root))
    for split in ("train", "val"):
        triplets = read(root, split)[0].triplets
        found.count(f"{split} triplets", len(triplets))
        found.check_names(found.images, triplets)
    return found
