# SPDX-License-Identifier: Apache-2.0
"""CIRR in its official layout.

    cirr/captions/cap.rc2.{train,val,test1}.json       one object per query
    cirr/image_splits/split.rc2.{train,val,test1}.json {name: "./train/34/train-...png"}
    train/ dev/ test1/                                  the images

The annotations may also lie in captions/ and image_splits/ at the root, as in their repository.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cir_jax.errors import UserError
from cir_jax.positives import generated as generated_files
from cir_jax.positives import records
from cir_jax.positives.annotations import field, not_empty, read_json
from cir_jax.positives.triplets import Triplet, TripletSet

SOURCE = "cirr"


def read(
    root: str | Path,
    split: str = "train",
    categories: Sequence[str] = (),
    generated: str = "",
    llm_captions: bool = False,
) -> list[TripletSet]:
    """The annotated triplets of a split ("train", "val" or "test1"), then the generated ones.

    Raises:
      UserError: a file or a field is missing, categories are given, or the split is empty.
    """
    if categories:
        raise UserError(f"CIRR has no categories, got {tuple(categories)}; leave them empty")
    _, paths = gallery(root, split)
    file = _annotations(root) / "captions" / f"cap.rc2.{split}.json"
    triplets = tuple(
        _triplet(record, f"{file} record {number}", split)
        for number, record in enumerate(read_json(file))
    )
    if not triplets:
        raise UserError(f"{file} holds no triplet; fetch it again")
    sets = [TripletSet(SOURCE, triplets, paths)]
    if generated:
        sets.append(generated_files.read(generated, paths, root, llm_captions))
    return sets


def gallery(root: str | Path, split: str = "val") -> tuple[list[str], dict[str, Any]]:
    """Names of all images of a split, in the order of its file, and the file of each.

    Raises:
      UserError: the file is missing or empty.
    """
    file = _annotations(root) / "image_splits" / f"split.rc2.{split}.json"
    packed = records.images(root)
    paths = {n: packed.get(n, str(Path(root) / p)) for n, p in read_json(file, dict).items()}
    if not paths:
        raise UserError(f"{file} names no image; fetch it again")
    return list(paths), paths


def _annotations(root: str | Path) -> Path:
    """The folder that holds captions/ and image_splits/."""
    for folder in (Path(root) / "cirr", Path(root)):
        if (folder / "captions").is_dir():
            return folder
    raise UserError(
        f"no CIRR annotations in {root}; expected {Path(root) / 'cirr' / 'captions'}/"
        "cap.rc2.train.json and so on. Set data.root to the folder that holds cirr/, train/, dev/ "
        "and test1/"
    )


def _triplet(record: Any, where: str, split: str) -> Triplet:
    caption = field(record, "caption", where)
    texts = not_empty((caption,) if isinstance(caption, str) else caption, where)
    target = "" if split.startswith("test") else field(record, "target_hard", where)
    return Triplet(
        field(record, "reference", where),
        target,
        texts[:1],
        texts[0],
        SOURCE,
        str(field(record, "pairid", where)),
        members=tuple(field(field(record, "img_set", where), "members", where)),
    )
