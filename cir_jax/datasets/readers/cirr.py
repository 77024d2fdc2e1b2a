# SPDX-License-Identifier: Apache-2.0
"""CIRR in its official layout.

    cirr/captions/cap.rc2.{train,val,test1}.json       one object per query
    cirr/image_splits/split.rc2.{train,val,test1}.json {name: "./train/34/train-...png"}
    train/ dev/ test1/                                  the images, or in cirr/img_raw/

The root may also be the folder cirr/ itself, which is what their repository is.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cir_jax.data import places
from cir_jax.data.annotations import field, image_name, image_names, not_empty, read_json
from cir_jax.data.pixels import ImageFile
from cir_jax.data.triplets import Triplet, TripletSet
from cir_jax.datasets import records
from cir_jax.datasets.examination import Examination
from cir_jax.errors import UserError

SOURCE = "cirr"
_FOLDERS = ("train", "dev", "test1")  # of images
# Of the published files: split -> (queries, images).
OFFICIAL = {"train": (28_225, 16_939), "val": (4_181, 2_297), "test1": (4_148, 2_315)}


def read(
    root: str | Path, split: str = "train", categories: Sequence[str] = ()
) -> list[TripletSet]:
    """The annotated triplets of a split: "train", "val" or "test1".

    Raises:
      UserError: a file or a field is missing, categories are given, or the split is empty.
    """
    if categories:
        raise UserError(f"CIRR has no categories, got {tuple(categories)}; leave them empty")
    _, paths = gallery(root, split)
    file = annotation_folder(root) / "captions" / f"cap.rc2.{split}.json"
    triplets = tuple(
        _triplet(record, f"{file} record {number}", split)
        for number, record in enumerate(read_json(file))
    )
    if not triplets:
        raise UserError(f"{file} holds no triplet; fetch it again")
    return [TripletSet(SOURCE, triplets, paths, by_name=True)]


def images(root: str | Path, split: str = "train") -> dict[str, ImageFile]:
    """Name -> file of all images that the split lists."""
    return gallery(root, split)[1]


def gallery(root: str | Path, split: str = "val") -> tuple[list[str], dict[str, ImageFile]]:
    """Names of all images of a split, in the order of its file, and the file of each.

    Raises:
      UserError: the file is missing or empty, or names a file outside of the data set.
    """
    file = annotation_folder(root) / "image_splits" / f"split.rc2.{split}.json"
    listed = read_json(file, dict)
    for name, path in listed.items():
        if not isinstance(path, str) or not path:
            raise UserError(f"{file}: image {name!r} has the path {path!r}; fetch the file again")
    if not listed:
        raise UserError(f"{file} names no image; fetch it again")
    packed, folder = records.images(root), _image_folder(root, next(iter(listed.values())))
    # Beside a root that is the folder of the annotations, the official folders alone.
    beside = [folder / name for name in _FOLDERS] if folder == Path(root).parent else []
    written = places.Written(places.roots(root, *beside))
    return list(listed), {
        n: packed[n] if n in packed else written.file(folder, p, f"{file}: {n}")
        for n, p in listed.items()
    }


def examine(root: str | Path, categories: Sequence[str] = ()) -> Examination:
    """Counts queries and images per split, and finds names that a split does not list.

    Raises:
      UserError: no split is complete, categories are given, or a file is malformed.
    """
    found = Examination()
    paths: dict[str, ImageFile] = {}
    folder = annotation_folder(root)
    for split, (official_queries, official_images) in OFFICIAL.items():
        files = [
            folder / "captions" / f"cap.rc2.{split}.json",
            folder / "image_splits" / f"split.rc2.{split}.json",
        ]
        if not found.has_files(split, files):
            continue
        triplets = read(root, split, categories)[0].triplets
        names, files_of = gallery(root, split)
        paths |= files_of
        found.count(f"{split} queries", len(triplets), official_queries)
        found.count(f"{split} images", len(names), official_images)
        found.check_names(names, triplets, split=split)
        if split == "train":
            found.note_unlabelled(names, triplets)
        blank = [t.query_id for t in triplets if not t.eval_text.strip()]
        if blank:
            found.notes.append(
                f"{len(blank)} {split} query without a text, used as it is: pair {', '.join(blank)}"
            )
    if not paths:
        raise UserError(f"no split of CIRR is complete in {folder}: {found.problems[0]}")
    found.images = paths
    return found


def annotation_folder(root: str | Path) -> Path:
    """The folder that holds captions/ and image_splits/.

    Raises:
      UserError: there is none.
    """
    for folder in (Path(root) / "cirr", Path(root)):
        if (folder / "captions").is_dir():
            return folder
    raise UserError(
        f"no CIRR annotations in {root}; expected {Path(root) / 'cirr' / 'captions'}/"
        "cap.rc2.train.json and so on. Set data.root to the folder that holds cirr/, train/, dev/ "
        "and test1/"
    )


def _image_folder(root: str | Path, path: str) -> Path:
    """The folder that paths of the split files, `path` for one, are relative to."""
    root, annotations = Path(root), annotation_folder(root)
    # In turn: beside the annotations, as CLIP4CIR has it; inside them, as their authors have it;
    # and beside a root that is itself the folder of the annotations.
    choices = [root, annotations / "img_raw", root / "img_raw"]
    if annotations == root:
        choices.append(root.parent)
    top = next(iter(Path(path).parts), "")
    return next((folder for folder in choices if os.path.isdir(folder / top)), root)


def _triplet(record: Any, where: str, split: str) -> Triplet:
    # Verbatim even if blank: test1 has such a query, and its server wants an answer to every one.
    texts = not_empty(field(record, "caption", where), where, blank=True)
    target = "" if split.startswith("test") else image_name(record, "target_hard", where)
    return Triplet(
        image_name(record, "reference", where),
        target,
        texts[:1],
        texts[0],
        SOURCE,
        str(field(record, "pairid", where)),
        members=image_names(field(record, "img_set", where), "members", where),
    )
