# SPDX-License-Identifier: Apache-2.0
"""Examines a data set: are the files there, are they as many as they should be, can they be read?

Official numbers are counts of the published annotation files of FashionIQ and CIRR.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cir_jax.errors import UserError
from cir_jax.positives import cirr, fashioniq, folder
from cir_jax.positives.inspection import Findings, inspect_images
from cir_jax.positives.triplets import Triplet

# category -> (train triplets, train images, val triplets, val images, test queries, test images)
FASHIONIQ = {
    "dress": (5_985, 11_452, 2_017, 3_817, 2_024, 3_818),
    "shirt": (5_988, 19_036, 2_038, 6_346, 2_038, 6_346),
    "toptee": (6_027, 16_121, 1_961, 5_373, 2_056, 5_374),
}
FASHIONIQ_ENTRIES, FASHIONIQ_IDS, FASHIONIQ_TRAIN_IMAGES = 77_683, 74_381, 25_136
# split -> (queries, images)
CIRR = {"train": (28_225, 16_939), "val": (4_181, 2_297), "test1": (4_148, 2_315)}


def examine(
    dataset: str,
    root: str | Path,
    categories: Sequence[str] = (),
    *,
    decode: bool = True,
    threads: int = 16,
) -> dict[str, Any]:
    """Examines a data set.

    Args:
      dataset: "fashioniq", "cirr" or "folder".
      root: its folder.
      categories: FashionIQ categories, all of them if ().
      decode: open every image, which also finds pixel-identical ones.
      threads: images opened at a time.

    Returns:
      {"dataset", "root", "counts": [{"what", "found", "official"}], "images": {kind: names},
      "notes": [text], "problems": [text]}; a problem is what would change results.

    Raises:
      UserError: there are no annotations at all, or a file of them is malformed.
    """
    report = {
        "dataset": dataset, "root": str(root), "counts": [], "images": {}, "notes": [],
        "problems": [],
    }  # fmt: skip
    look = {"fashioniq": _fashioniq, "cirr": _cirr, "folder": _folder}[dataset]
    paths, listed, triplets = look(report, root, categories)
    _check_triplets(report, listed, triplets)
    _check_images(report, inspect_images(paths, decode, threads))
    return report


def _fashioniq(report: dict, root: Any, categories: Sequence[str]) -> tuple:
    listed: set[str] = set()
    triplets: list[Triplet] = []
    entries, official = 0, True
    splits = [s for s in ("train", "val", "test") if _has_split(root, s)]
    if not splits:
        fashioniq.find_categories(root, "train")  # raises, and says what is expected where
    for split in splits:
        for category in fashioniq.find_categories(root, split, categories):
            numbers = FASHIONIQ.get(category)
            official &= numbers is not None
            at = ("train", "val", "test").index(split) * 2
            found = fashioniq.read(root, split, (category,))[0].triplets
            names, _ = fashioniq.gallery(root, category, split)
            for what, count, number in (
                ("triplets", len(found), numbers and numbers[at]),
                ("images", len(names), numbers and numbers[at + 1]),
            ):
                _count(report, f"{category} {split} {what}", count, number)
            triplets += found
            listed |= set(names)
            entries += len(names)
    whole = official and len(splits) == 3 and not categories
    _count(report, "entries of all splits", entries, FASHIONIQ_ENTRIES if whole else None)
    _count(report, "different images", len(listed), FASHIONIQ_IDS if whole else None)
    if whole:
        report["notes"].append(
            f"the official splits hold {FASHIONIQ_ENTRIES:,} entries but {FASHIONIQ_IDS:,} "
            f"different images, so {FASHIONIQ_IDS:,} files are a complete set"
        )
    train = {n for t in triplets if t.target for n in (t.reference, t.target)}
    report["notes"].append(f"{len(train):,} images are named by triplets with a target")
    found = fashioniq.locate(root)
    return {n: found.get(n, f"{root}/images/{n}.png") for n in sorted(listed)}, listed, triplets


def _has_split(root: Any, split: str) -> bool:
    return any((Path(root) / "captions").glob(f"cap.*.{split}.json"))


def _cirr(report: dict, root: Any, categories: Sequence[str]) -> tuple:
    paths: dict[str, str] = {}
    triplets: list[Triplet] = []
    seen = False
    for split, (queries, images) in CIRR.items():
        try:
            found, (names, files) = cirr.read(root, split, categories), cirr.gallery(root, split)
        except UserError as error:
            if "no annotation file" not in str(error):
                raise
            report["notes"].append(f"split {split} is not there: {error}")
            continue
        seen = True
        _count(report, f"{split} queries", len(found[0].triplets), queries)
        _count(report, f"{split} images", len(names), images)
        triplets += found[0].triplets
        paths |= files
    if not seen:
        cirr.read(root, "train")
    return paths, set(paths), triplets


def _folder(report: dict, root: Any, categories: Sequence[str]) -> tuple:
    triplets: list[Triplet] = []
    paths: dict[str, Any] = {}
    files = [s for s in ("train", "val") if (Path(root) / f"{s}.jsonl").is_file()]
    if not files:
        raise UserError(f"neither train.jsonl nor val.jsonl in {root}; write one of them")
    for split in files:
        sets = folder.read(root, split, categories)
        found = [t for one in sets for t in one.triplets]
        _count(report, f"{split} triplets", len(found), None)
        triplets += found
        for one in sets:
            paths |= one.paths
        if split == "val":
            names, more = folder.gallery(root, split)
            _count(report, "gallery images", len(names), None)
            paths |= more
    return paths, set(paths), triplets


def _count(report: dict, what: str, found: int, official: int | None) -> None:
    report["counts"].append({"what": what, "found": found, "official": official})
    if official is not None and found != official:
        report["problems"].append(
            f"{what}: {found:,}, officially {official:,}; recalls are not comparable with "
            "published ones"
        )


def _check_triplets(report: dict, listed: set[str], triplets: list[Triplet]) -> None:
    lost = [
        f"{t.query_id} ({name})"
        for t in triplets
        for name in (t.reference, t.target)
        if name and name not in listed
    ]
    report["images"]["named by a triplet but in no split"] = lost
    if lost:
        report["problems"].append(f"{len(lost):,} triplet images are in no split file")


def _check_images(report: dict, findings: Findings) -> None:
    kinds: Mapping[str, list] = {
        "missing": findings.missing,
        "empty (0 bytes)": findings.empty,
        "undecodable": findings.undecodable,
        "pixel-identical groups": [" = ".join(names) for names in findings.duplicates],
    }
    report["images"] |= kinds
    bad = len(findings.unusable())
    if bad:
        report["problems"].append(
            f"{bad:,} of {findings.images:,} images cannot be used; fetch them again. Deleting "
            "them from the split files instead would change the gallery and every recall"
        )
