# SPDX-License-Identifier: Apache-2.0
"""Writes a split of the OpenMoji set in the official layouts of FashionIQ and CIRR."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from cir_jax.datasets.emoji_names import Emoji

CATEGORIES = ("people", "hands", "things")
GENERATED = "captions/cap.extend_clip.train.json"
SPLITS = {"train": "train", "val": "val", "test": "test1"}  # FashionIQ's name -> CIRR's
_FOLDERS = {"train": "train", "val": "dev", "test": "test1"}  # FashionIQ's split -> CIRR's folder
SUBSET = 6  # members of a CIRR subset


def write_fashioniq(root: Path, split: str, members: list[Emoji], triplets: list, rng: Any) -> None:
    """FashionIQ's files of one split; for train the generated triplets too. `root` has images/."""
    for category in CATEGORIES:
        inside = [t for t in triplets if t[0].category == category]
        records = [
            {"candidate": a.slug, "captions": texts}
            | ({} if split == "test" else {"target": b.slug})
            for a, b, texts in inside
        ]
        _dump(root / "captions" / f"cap.{category}.{split}.json", records)
        slugs = [e.slug for e in members if e.category == category]
        _dump(root / "image_splits" / f"split.{category}.{split}.json", slugs)
    if split != "train":
        return
    generated = []
    for reference in dict.fromkeys(t[0] for t in triplets):
        target = rng.choice([e for e in members if e != reference])
        generated.append(
            {
                "candidate": reference.slug,
                "target": target.slug,
                "captions": [target.name],
                "caption1": reference.name,
                "caption2": target.name,
            }
        )
    _dump(root / GENERATED, generated)


def write_cirr(
    root: Path, images: Path, split: str, members: list[Emoji], triplets: list, rng: Any
) -> None:
    """CIRR's files of one split; its images are links to those in `images`."""
    folder = root / _FOLDERS[split]
    folder.mkdir(parents=True)
    for one in members:
        _link(images / f"{one.slug}.png", folder / f"{one.slug}.png")
    paths = {e.slug: f"./{folder.name}/{e.slug}.png" for e in members}
    _dump(root / "cirr" / "image_splits" / f"split.rc2.{SPLITS[split]}.json", paths)
    groups: dict[tuple, list[Emoji]] = {}
    for one in members:
        groups.setdefault((one.category, one.gender), []).append(one)
    records = []
    for number, (reference, target, texts) in enumerate(triplets):
        # As in CIRR, the subset holds images that look alike.
        subset = [reference.slug, target.slug]
        alike = [e.slug for e in groups[reference.category, reference.gender]]
        for slug in [
            *rng.sample(alike, min(len(alike), SUBSET)),
            *rng.sample(list(paths), SUBSET),
        ]:
            if len(subset) < SUBSET and slug not in subset:
                subset.append(slug)
        rng.shuffle(subset)
        record = {
            "pairid": number,
            "reference": reference.slug,
            "caption": texts[0],
            "img_set": {"id": number, "members": subset},
        }
        if split != "test":
            record |= {"target_hard": target.slug, "target_soft": {target.slug: 1.0}}
        records.append(record)
    _dump(root / "cirr" / "captions" / f"cap.rc2.{SPLITS[split]}.json", records)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def _dump(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False))
