# SPDX-License-Identifier: Apache-2.0
"""FashionIQ in its official layout.

    captions/cap.{category}.{split}.json       [{"candidate", "target", "captions": [2 texts]}]
    image_splits/split.{category}.{split}.json [name]
    images/{name}.png or .jpg, flat or in a folder per category

Where several files have one name, a category's own folder comes first, then images/ itself; of a
name in several categories, the folder of the first of them that has it. A name that still fits two
different pictures is refused.

The two texts of a triplet are joined in four ways for training and in one way for evaluation
(section 4.1 of arXiv 2404.11317 follows CLIP4CIR here).
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cir_jax.data import places
from cir_jax.data.annotations import field, image_name, not_empty, read_json
from cir_jax.data.pixels import ImageFile
from cir_jax.data.triplets import Triplet, TripletSet
from cir_jax.datasets import records
from cir_jax.datasets.examination import Examination
from cir_jax.datasets.stem_files import StemFiles
from cir_jax.errors import UserError, nearest

CATEGORIES = ("dress", "shirt", "toptee")
SOURCE = "fashioniq"
SPLITS = ("train", "val", "test")
# Of the published files: category -> split -> (triplets, images).
OFFICIAL = {
    "dress": {"train": (5_985, 11_452), "val": (2_017, 3_817), "test": (2_024, 3_818)},
    "shirt": {"train": (5_988, 19_036), "val": (2_038, 6_346), "test": (2_038, 6_346)},
    "toptee": {"train": (6_027, 16_121), "val": (1_961, 5_373), "test": (2_056, 5_374)},
}
OFFICIAL_ENTRIES, OFFICIAL_IMAGES = 77_683, 74_381  # of all splits; an image may be in several
OFFICIAL_TRAIN_IMAGES = 25_136  # that a train triplet names


def read(
    root: str | Path,
    split: str = "train",
    categories: Sequence[str] = (),
) -> list[TripletSet]:
    """The annotated triplets of all categories.

    Raises:
      UserError: a file or a field is missing, a category does not exist, or the split is empty.
    """
    paths = locate(root)
    triplets: list[Triplet] = []
    for category in find_categories(root, split, categories):
        triplets += read_category(root, category, split)
    if not triplets:
        raise UserError(f"FashionIQ split {split!r} in {root} is empty; choose another split")
    return [TripletSet(SOURCE, tuple(triplets), _known(triplets, paths, root), by_name=True)]


def images(root: str | Path, split: str = "train") -> Mapping[str, ImageFile]:
    """Name -> file of all images that the split files list, or of every image if there are none.

    A listed image whose file is missing is among them: `data.on_missing` says what becomes of it.
    """
    there, listed = locate(root), _listed(root, split)
    if not listed:
        return there
    return {n: _place(there, n, category, root) for n, category in listed.items()}


def examine(root: str | Path, categories: Sequence[str] = ()) -> Examination:
    """Counts triplets and images per category and split, and finds names that no split lists.

    Args:
      root: the data set.
      categories: () for the official ones if any of them is there, else for those that are there.

    Raises:
      UserError: no caption file at all, an unknown category, or a malformed file.
    """
    found = Examination()
    chosen = _examined(root, categories)
    every = chosen == list(CATEGORIES) and not categories
    listed: list[str] = []
    pool: list[str] = []
    triplets: list[Triplet] = []
    whole = every
    for split in SPLITS:
        for category in chosen:
            files = [file(root, category, split) for file in (annotation_file, split_file)]
            if not found.has_files(split, files):
                whole = False
                continue
            official = OFFICIAL.get(category, {}).get(split, (None, None))
            queries = read_category(root, category, split)
            names = split_names(root, category, split)
            found.count(f"{category} {split} triplets", len(queries), official[0])
            found.count(f"{category} {split} images", len(names), official[1])
            found.check_names(names, queries, split=split)
            listed += names
            if split == "train":
                triplets, pool = triplets + queries, pool + names
    different = dict.fromkeys(listed)
    found.count("entries of all splits", len(listed), OFFICIAL_ENTRIES if whole else None)
    found.count("different images", len(different), OFFICIAL_IMAGES if whole else None)
    found.note_unlabelled(pool, triplets)
    train = {n for t in triplets for n in (t.reference, t.target)}
    found.count("images of train triplets", len(train), OFFICIAL_TRAIN_IMAGES if every else None)
    if whole:
        found.notes.append(
            f"the official splits hold {OFFICIAL_ENTRIES:,} entries but {OFFICIAL_IMAGES:,} "
            f"different images, so {OFFICIAL_IMAGES:,} files are a complete set"
        )
    there = locate(root)
    found.note_folders(root, there.files() if isinstance(there, StemFiles) else there)
    _note_double(found, there)
    owners = {n: c for split in reversed(SPLITS) for n, c in _listed(root, split).items()}
    found.images = {n: _place(there, n, owners.get(n, ""), root) for n in different}
    return found


def read_category(root: str | Path, category: str, split: str) -> list[Triplet]:
    """The annotated triplets of one category; no image is looked for.

    Raises:
      UserError: the file or a field is missing.
    """
    file = annotation_file(root, category, split)
    return [
        _triplet(record, category, number, f"{file} record {number}", split)
        for number, record in enumerate(read_json(file))
    ]


def split_names(root: str | Path, category: str, split: str) -> list[str]:
    """The entries of a category's split file, as they are listed.

    Raises:
      UserError: the file is missing or malformed.
    """
    file = split_file(root, category, split)
    names = read_json(file)
    for number, name in enumerate(names):
        if not isinstance(name, str) or not name:
            raise UserError(
                f"{file} record {number} is {name!r}, expected the name of an image; correct it"
            )
    return names


def annotation_file(root: str | Path, category: str, split: str) -> Path:
    """Where the annotated triplets of a category lie."""
    return Path(root) / "captions" / f"cap.{category}.{split}.json"


def split_file(root: str | Path, category: str, split: str) -> Path:
    """Where the image names of a category lie."""
    return Path(root) / "image_splits" / f"split.{category}.{split}.json"


def gallery(
    root: str | Path, category: str, split: str = "val", kind: str = "full"
) -> tuple[list[str], dict[str, ImageFile]]:
    """Names of the gallery of a category, in order, and the file of each.

    Args:
      root: the data set.
      category: e.g. "dress".
      split: e.g. "val".
      kind: "full" (all images of the split) or "val" (references and targets of its triplets, the
        VAL protocol).

    Raises:
      UserError: an unknown kind, or a missing or empty file.
    """
    if kind not in ("full", "val"):
        raise UserError(f"eval.gallery={kind!r} is unknown; use full or val")
    if kind == "full":
        names = list(dict.fromkeys(split_names(root, category, split)))
    else:
        find_categories(root, split, (category,))
        triplets = read_category(root, category, split)
        names = list(dict.fromkeys(n for t in triplets for n in (t.reference, t.target) if n))
    if not names:
        raise UserError(
            f"the gallery of {category!r}, split {split!r} in {root} is empty; fetch its "
            "annotations again, or leave the category out"
        )
    paths = locate(root)
    where = str(split_file(root, category, split))
    return names, {n: _place(paths, n, category, root, where) for n in names}


def find_categories(root: str | Path, split: str, wanted: Sequence[str] = ()) -> list[str]:
    """`wanted`, or the categories that the data set has: the official ones first, in their order.

    Raises:
      UserError: no caption file at all, or a wanted category without one.
    """
    folder = Path(root) / "captions"
    names = [re.fullmatch(rf"cap\.([^.]+)\.{split}\.json", p.name) for p in folder.glob("cap.*")]
    found = sorted(m[1] for m in names if m and not re.match(r"(extend_|cc$)", m[1]))
    if not found:
        raise UserError(
            f"no FashionIQ annotations for split {split!r} in {root}; expected "
            f"{folder}/cap.dress.{split}.json and so on. Set data.root to the folder that holds "
            "captions/, image_splits/ and images/"
        )
    for category in wanted:
        if category not in found:
            raise UserError(
                f"no category {category!r} in {folder}; there are: {', '.join(found)}."
                f"{nearest(category, found)}"
            )
    official = [c for c in CATEGORIES if c in found]
    return list(dict.fromkeys(wanted)) or official or found


def locate(root: str | Path) -> Mapping[str, ImageFile]:
    """Name -> file of every image that is there, or its record in a packed data set."""
    return records.images(root) or StemFiles(Path(root) / "images", root=root)


def every_file(root: str | Path) -> dict[str, ImageFile]:
    """Name -> file of every image that is there, for the first category of a split that has it.

    Raises:
      UserError: a name fits two files, and no category has either in its folder.
    """
    owners: dict[str, str] = {}
    for split in SPLITS:
        for name, category in _listed(root, split).items():
            owners.setdefault(name, category)
    there = locate(root)
    return {name: _place(there, name, owners.get(name, ""), root) for name in there}


def _examined(root: str | Path, wanted: Sequence[str]) -> list[str]:
    """The categories that `examine` looks at."""
    captions = Path(root) / "captions"
    splits = [s for s in SPLITS if any(captions.glob(f"cap.*.{s}.json"))] or ["train"]
    found = {c for s in splits for c in find_categories(root, s)}
    unknown = [c for c in wanted if c not in found]
    if unknown:
        find_categories(root, splits[0], unknown)  # raises, and lists what exists
    if wanted:
        return list(dict.fromkeys(wanted))
    return list(CATEGORIES) if found & set(CATEGORIES) else sorted(found)


def _note_double(found: Examination, there: Mapping[str, ImageFile]) -> None:
    """Notes names that several files have, and which of them is read."""
    double = there.double() if isinstance(there, StemFiles) else {}
    if double:
        name, files = next(iter(double.items()))
        found.notes.append(
            f"{len(double):,} names fit several files, {name} for one: {', '.join(files)}. The one "
            "in the category's own folder is read, else the one in images/ itself"
        )


def clean(text: str) -> str:
    """Strips the characters ". ? ," from both ends, and nothing else."""
    return text.strip(".?, ")


def join(captions: Sequence[str]) -> tuple[str, ...]:
    """The four training texts of a triplet, each equally likely; the first is the evaluation text.

    A blank caption is left out, so that no text is half a sentence.
    """
    first, second = (clean(c) for c in captions)
    if not first or not second:
        return (first or second,)
    return f"{first} and {second}", f"{second} and {first}", first, second


def _triplet(record: Any, category: str, number: int, where: str, split: str) -> Triplet:
    captions = field(record, "captions", where)
    if not isinstance(captions, list) or len(captions) != 2:
        raise UserError(f"{where} has captions {captions!r}; FashionIQ has two per triplet")
    not_empty(captions, where)
    texts = not_empty(join(captions), where)
    target = "" if split == "test" else image_name(record, "target", where)
    return Triplet(
        image_name(record, "candidate", where),
        target,
        texts,
        texts[0],
        SOURCE,
        f"{category}/{number}",
        category,
    )


def _known(
    triplets: list[Triplet], paths: Mapping[str, ImageFile], root: str | Path
) -> dict[str, ImageFile]:
    """A path for every name; where no file is found, the one that was expected."""
    owners: dict[str, Triplet] = {}
    for t in triplets:
        for name in (t.reference, t.target):
            if name:
                owners.setdefault(name, t)
    return {
        n: _place(paths, n, t.category, root, f"{SOURCE} triplet {t.query_id}")
        for n, t in owners.items()
    }


def _listed(root: str | Path, split: str) -> dict[str, str]:
    """Name -> category, of the split files that are there; of several categories, the first."""
    files = sorted((Path(root) / "image_splits").glob(f"split.*.{split}.json"))
    found: dict[str, str] = {}
    for category in (file.name.split(".")[1] for file in files):
        for name in split_names(root, category, split):
            found.setdefault(name, category)
    return found


def _place(
    there: Mapping[str, ImageFile], name: str, category: str, root: str | Path, where: str = ""
) -> ImageFile:
    """The file of an image of a category, or the one that was expected."""
    if not isinstance(there, StemFiles):  # packed
        if name not in there:
            places.check_spelling(name, where or str(root))
        return there.get(name, _expected(root, os.path.basename(name)))
    return there.find(name, category, where) or _expected(root, name)


def _expected(root: str | Path, name: str) -> str:
    return str(Path(root) / "images" / f"{name}.png")
