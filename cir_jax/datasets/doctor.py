# SPDX-License-Identifier: Apache-2.0
"""Examines a data set: are the files there, are they as many as they should be, can they be read?

Official numbers are counts of the published annotation files.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cir_jax.data.inspection import Findings, inspect_images
from cir_jax.data.triplets import Triplet
from cir_jax.datasets.readers import circo, cirr, fashioniq, folder, genecis
from cir_jax.errors import UserError

# category -> (train triplets, train images, val triplets, val images, test queries, test images)
FASHIONIQ = {
    "dress": (5_985, 11_452, 2_017, 3_817, 2_024, 3_818),
    "shirt": (5_988, 19_036, 2_038, 6_346, 2_038, 6_346),
    "toptee": (6_027, 16_121, 1_961, 5_373, 2_056, 5_374),
}
FASHIONIQ_ENTRIES, FASHIONIQ_IDS, FASHIONIQ_TRAIN_IMAGES = 77_683, 74_381, 25_136
# split -> (queries, images)
CIRR = {"train": (28_225, 16_939), "val": (4_181, 2_297), "test1": (4_148, 2_315)}
# split -> (queries, right answers)
CIRCO, CIRCO_IMAGES = {"val": (220, 916), "test": (800, None)}, 123_403
GENECIS = {"focus_object": 1_960, "change_object": 1_960}  # queries
_OUTSIDE = "named by a triplet but not by its split"


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
      dataset: "fashioniq", "cirr", "circo", "genecis" or "folder".
      root: its folder.
      categories: FashionIQ categories or GeneCIS tasks, all of them if ().
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
    look = {
        "fashioniq": _fashioniq, "cirr": _cirr, "circo": _circo, "genecis": _genecis,
        "folder": _folder,
    }[dataset]  # fmt: skip
    report["images"][_OUTSIDE] = outside = []
    paths = look(report, root, categories)
    if outside:
        report["problems"].append(f"{len(outside):,} names in triplets are not in their split")
    _check_images(report, inspect_images(paths, decode, threads))
    return report


def _fashioniq(report: dict, root: Any, categories: Sequence[str]) -> dict[str, Any]:
    found = _fashioniq_categories(root, categories)
    listed: dict[str, None] = {}
    triplets: list[Triplet] = []
    pool: set[str] = set()
    entries, every = 0, found == list(fashioniq.CATEGORIES) and not categories
    whole = every
    for split, column in (("train", 0), ("val", 2), ("test", 4)):
        for category in found:
            files = (fashioniq.caption_file, fashioniq.split_file)
            if not _complete(report, split, [file(root, category, split) for file in files]):
                whole = False
                continue
            official = FASHIONIQ.get(category, (None,) * 6)[column : column + 2]
            queries = fashioniq.read_category(root, category, split)
            names = fashioniq.split_names(root, category, split)
            _count(report, f"{category} {split} triplets", len(queries), official[0])
            _count(report, f"{category} {split} images", len(names), official[1])
            _check_triplets(report, names, queries)
            triplets += queries if split == "train" else []
            pool |= set(names) if split == "train" else set()
            listed |= dict.fromkeys(names)
            entries += len(names)
    train = {n for t in triplets for n in (t.reference, t.target)}
    _count(report, "entries of all splits", entries, FASHIONIQ_ENTRIES if whole else None)
    _count(report, "different images", len(listed), FASHIONIQ_IDS if whole else None)
    _note_unlabelled(report, pool, triplets)
    official = FASHIONIQ_TRAIN_IMAGES if every else None
    _count(report, "images of train triplets", len(train), official)
    if whole:
        report["notes"].append(
            f"the official splits hold {FASHIONIQ_ENTRIES:,} entries but {FASHIONIQ_IDS:,} "
            f"different images, so {FASHIONIQ_IDS:,} files are a complete set"
        )
    there = fashioniq.locate(root)
    _describe_images(report, root, there)
    return {n: there.get(n, f"{root}/images/{n}.png") for n in listed}


def _fashioniq_categories(root: Any, wanted: Sequence[str]) -> list[str]:
    """What to look for: `wanted`, or all official ones if any is there, or what is there."""
    splits = [s for s in ("train", "val", "test") if _has_split(root, s)] or ["train"]
    found = {c for s in splits for c in fashioniq.find_categories(root, s)}
    unknown = [c for c in wanted if c not in found]
    if unknown:
        fashioniq.find_categories(root, splits[0], unknown)  # raises, and lists what exists
    if wanted:
        return list(dict.fromkeys(wanted))
    return list(fashioniq.CATEGORIES) if found & set(fashioniq.CATEGORIES) else sorted(found)


def _has_split(root: Any, split: str) -> bool:
    return any((Path(root) / "captions").glob(f"cap.*.{split}.json"))


def _cirr(report: dict, root: Any, categories: Sequence[str]) -> dict[str, Any]:
    paths: dict[str, Any] = {}
    folder = cirr.annotation_folder(root)
    for split, (queries, images) in CIRR.items():
        files = [
            folder / "captions" / f"cap.rc2.{split}.json",
            folder / "image_splits" / f"split.rc2.{split}.json",
        ]
        if not _complete(report, split, files):
            continue
        triplets = cirr.read(root, split, categories)[0].triplets
        names, found = cirr.gallery(root, split)
        _count(report, f"{split} queries", len(triplets), queries)
        _count(report, f"{split} images", len(names), images)
        _check_triplets(report, names, triplets)
        if split == "train":
            _note_unlabelled(report, set(names), triplets)
        blank = [t.query_id for t in triplets if not t.eval_text.strip()]
        if blank:
            report["notes"].append(
                f"{len(blank)} {split} query without a text, used as it is: pair {', '.join(blank)}"
            )
        paths |= found
    if not paths:
        raise UserError(f"no split of CIRR is complete in {folder}: {report['problems'][0]}")
    return paths


def _circo(report: dict, root: Any, categories: Sequence[str]) -> dict[str, Any]:
    if categories:
        raise UserError(f"CIRCO has no categories, got {tuple(categories)}; leave them empty")
    names, paths = circo.candidates(root)
    for split, (official, answers) in CIRCO.items():
        file = Path(root) / "annotations" / f"{split}.json"
        if not _complete(report, split, [file]):
            continue
        queries = circo.queries(root, split)
        _count(report, f"{split} queries", len(queries), official)
        if split == "val":
            _count(report, "val right answers", sum(len(q.truths) for q in queries), answers)
        report["images"][_OUTSIDE] += [
            f"{split}/{q.query_id} ({name})"
            for q in queries
            for name in (q.reference, *q.truths)
            if name not in paths
        ]
    _count(report, "images, all candidates", len(names), CIRCO_IMAGES)
    return paths


def _genecis(report: dict, root: Any, categories: Sequence[str]) -> dict[str, Any]:
    paths: dict[str, Any] = {}
    for task in genecis.find_tasks(categories):
        if not genecis.has_task(root, task):
            report["problems"].append(f"no annotation file genecis/{task}.json in {root}; fetch it")
            continue
        read = genecis.read_task(root, task)
        items = {n for t in read.triplets for n in (t.reference, *t.members)}
        _count(report, f"{task} queries", len(read.triplets), GENECIS.get(task))
        _count(report, f"{task} images and parts of images", len(items), None)
        paths |= {str(genecis.file_of(p)): genecis.file_of(p) for p in read.paths.values()}
    if not paths:
        raise UserError(f"no task of GeneCIS in {root}: {report['problems'][0]}")
    _count(report, "image files", len(paths), None)
    return paths


def _complete(report: dict, split: str, files: Sequence[Path]) -> bool:
    """Whether all files of a split are there. Test splits may be absent, but not in part."""
    lost = [str(file) for file in files if not file.is_file()]
    if lost and len(lost) == len(files) and split.startswith("test"):
        report["notes"].append(f"no {split} split: {', '.join(lost)}")
    else:
        report["problems"] += [f"no annotation file {file}; fetch it" for file in lost]
    return not lost


def _describe_images(report: dict, root: Any, found: Mapping[str, Any]) -> None:
    """Notes how the images lie."""
    if not found or not all(isinstance(path, str) for path in found.values()):
        report["notes"].append(f"{len(found):,} images, packed" if found else "no image at all")
        return
    folders = {os.path.dirname(os.path.relpath(path, root)) for path in found.values()}
    suffixes = {os.path.splitext(path)[1] for path in found.values()}
    shown = ", ".join(sorted(folders)[:5]) + (", ..." if len(folders) > 5 else "")
    report["notes"].append(f"{len(found):,} images ({', '.join(sorted(suffixes))}) in {shown}")


def _folder(report: dict, root: Any, categories: Sequence[str]) -> dict[str, Any]:
    paths: dict[str, Any] = {}
    files = [s for s in ("train", "val") if (Path(root) / f"{s}.jsonl").is_file()]
    if not files:
        raise UserError(f"neither train.jsonl nor val.jsonl in {root}; write one of them")
    for split in files:
        sets = folder.read(root, split, categories)
        _count(report, f"{split} triplets", sum(len(one.triplets) for one in sets), None)
        for one in sets:
            paths |= one.paths
        if split == "val":
            names, more = folder.gallery(root, split)
            _count(report, "gallery images", len(names), None)
            paths |= more
            _check_triplets(report, names, [t for one in sets for t in one.triplets], queries=False)
    return paths


def _count(report: dict, what: str, found: int, official: int | None) -> None:
    report["counts"].append({"what": what, "found": found, "official": official})
    if official is not None and found != official:
        report["problems"].append(
            f"{what}: {found:,}, officially {official:,}; recalls are not comparable with "
            "published ones"
        )


def _check_triplets(
    report: dict, listed: Sequence[str], triplets: Sequence[Triplet], queries: bool = True
) -> None:
    """Finds names that the split of the triplets does not list; only targets without `queries`."""
    known = set(listed)
    lost = [
        f"{t.query_id} ({name})"
        for t in triplets
        for name in ((t.reference, t.target, *t.members) if queries else (t.target,))
        if name and name not in known
    ]
    report["images"][_OUTSIDE] += dict.fromkeys(lost)


def _note_unlabelled(report: dict, listed: set[str], triplets: Sequence[Triplet]) -> None:
    rest = listed - {name for t in triplets for name in (t.reference, t.target)}
    if rest:
        report["notes"].append(
            f"{len(rest):,} images of the train split are in no triplet; data.unlabelled=split "
            "puts them into the bank of stage two"
        )


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
