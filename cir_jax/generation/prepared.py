# SPDX-License-Identifier: Apache-2.0
"""A data set in the neutral layout, made of images and their titles.

    images/         a link to the folder of the images, or copies of those that are used
    captions.jsonl  every title, for stage zero and for more pairs (recipe `titles` of positives)
    train.jsonl     a triplet for each training image: another one, by the templates of the titles
    val.jsonl       the same of the images that are held out, which are the gallery
    gallery.txt     their names
    copies.txt      names of images that show the picture of another one: no training takes them in
    left_out.jsonl  what of the folder is not used, and why
    prepare.json    what it was made of

Pictures are split by a hash of their product (or of what they show) and the seed, so neither order
nor names of files nor their number move one to the other side; and a picture has one name only. All
images of the split that have the title of a target answer its query: they are its "targets".
"""

import hashlib
import json
import os
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cir_jax import files
from cir_jax.errors import UserError
from cir_jax.generation import modify
from cir_jax.generation.catalogue import Catalogue, Item

RECORD = "prepare.json"
MOST_TARGETS = 16  # of a training triplet: each becomes a triplet of its own


@dataclass(frozen=True)
class Split:
    """The two sides of a catalogue, each by name."""

    train: tuple[Item, ...]
    val: tuple[Item, ...]


def split(items: Sequence[Item], share: float, seed: int, grouped: bool) -> Split:
    """Holds out so many images at least, whole products at a time.

    Args:
      items: distinct pictures.
      share: of the images, between 0 and 1.
      seed: another one gives another split.
      grouped: whether products were named, for messages.

    Raises:
      UserError: there are too few images, products or titles for two sides.
    """
    check_share(share)
    _check(items, grouped)
    products: dict[str, list[Item]] = {}
    for item in items:
        products.setdefault(item.group, []).append(item)
    order = sorted(products, key=lambda p: hashlib.sha256(f"{seed}\n{p}".encode()).digest())
    held: list[Item] = []
    for product in order:
        if len(held) >= share * len(items) and _can_pair(held):
            break
        held += products[product]
    out = {item.name for item in held}
    train = [item for item in items if item.name not in out]
    if not _can_pair(train) or not _can_pair(held):
        what = f"{len(products)} products" if grouped else "pictures"
        raise UserError(
            f"{len(items)} images of {what} are too few to split: training and validation each "
            "need two images with different titles. Add images, or lower --val"
            + (", or leave --group out to split by picture" if grouped else "")
        )
    return Split(tuple(train), tuple(item for item in items if item.name in out))


def check_share(share: float) -> None:
    """Raises UserError for a share that leaves one side empty."""
    if not 0 < share < 1:
        raise UserError(f"--val {share} is no share between 0 and 1; the default is 0.2")


def _check(items: Sequence[Item], grouped: bool) -> None:
    if len(items) < 4:
        raise UserError(
            f"{len(items)} image(s) with a title can be used; training and validation need two "
            "each. Add images, or titles"
        )
    products = {item.group for item in items}
    if len(products) == 1:
        raise UserError(
            f"all {len(items)} images are of one product, {min(products)!r}, and a split by "
            "product keeps them together; leave --group out to split by picture"
        )
    titles = {item.title.casefold() for item in items}
    if len(titles) == 1:
        raise UserError(
            f"all {len(items)} images have the title {items[0].title!r}, so no text leads from "
            "one to another; name a column that tells them apart in --text-field"
        )


def _can_pair(items: Sequence[Item]) -> bool:
    return len({item.title.casefold() for item in items}) > 1


def triplets(
    items: Sequence[Item], recipe: ConfigDict, seed: int, most: int = 0
) -> list[dict[str, Any]]:
    """A record for each image that is a reference, by the templates of a recipe.

    Args:
      items: of one side, with two different titles at least.
      recipe: a config of configs/positives.py.
      seed: of the pairs.
      most: right answers that a record names; 0 = all.
    """
    rng = random.Random(seed)
    same: dict[str, list[str]] = {}
    for item in items:
        same.setdefault(item.title.casefold(), []).append(item.name)
    pairs = []
    for item in items:
        target = rng.choice(items)
        while target.title.casefold() == item.title.casefold():
            target = rng.choice(items)
        pairs.append({"reference": item.name, "target": target.name})
    titles = {item.name: item.title for item in items}
    records = []
    for one in modify.run(recipe, pairs, titles, Path()):
        target = one.pair["target"]
        others = [n for n in same[titles[target].casefold()] if n != target]
        if most and len(others) >= most:
            others = rng.sample(others, most - 1)
        right: dict[str, Any] = {"targets": [target, *others]} if others else {"target": target}
        texts = list(dict.fromkeys(one.texts))
        records.append({"reference": one.pair["reference"], **right, "texts": texts})
    return records


def contents(
    catalogue: Catalogue, sides: Split, recipe: ConfigDict, seed: int, record: Mapping[str, Any]
) -> dict[str, bytes]:
    """File name -> what it holds."""
    captions = [
        {"image_id": item.name, "image_path": f"images/{item.name}", "caption": item.title}
        for item in catalogue.items
    ]
    left_out = [{"file": file, "why": why} for file, why in catalogue.left_out]
    train = triplets(sides.train, recipe, seed, MOST_TARGETS)
    val = triplets(sides.val, recipe, seed)
    return {
        "captions.jsonl": _lines(captions),
        "train.jsonl": _lines(train),
        "val.jsonl": _lines(val),
        "gallery.txt": "".join(f"{item.name}\n" for item in sides.val).encode(),
        "copies.txt": "".join(f"{name}\n" for name in catalogue.copies).encode(),
        "left_out.jsonl": _lines(left_out),
        RECORD: json.dumps(dict(record), indent=2).encode(),
    }


def _lines(records: Sequence[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records).encode()


def check_place(folder: Path, out: Path, copy: bool) -> None:
    """Raises UserError where `out` cannot take a data set of the images of `folder`."""
    file = next((p for p in (out, *out.parents) if p.exists() and not p.is_dir()), None)
    if file is not None:
        raise UserError(f"--out {out}: {file} is a file and no folder; give the name of a folder")
    source, place, images = folder.resolve(), out.resolve(), out / "images"
    if place == source or source in place.parents:
        raise UserError(
            f"--out {out} lies in the folder of the images, {folder}; choose a place beside it"
        )
    if images.exists() and not copy and images.resolve() != source:
        raise UserError(f"{images} is there and is not {folder}; give another --out, or remove it")
    if copy and images.is_symlink():
        raise UserError(f"{images} is a link, and --copy makes a folder; remove the link")


def write(out: Path, made: Mapping[str, bytes], overwrite: bool) -> bool:
    """Writes the files that are not there; False if all are, the same.

    Raises:
      UserError: a file that is there would change, unless `overwrite`; nothing is written then.
    """
    changed = []
    for name, content in made.items():
        try:
            if (out / name).read_bytes() != content:
                changed.append(name)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise files.full(out / name, error, len(content)) from None
    if changed and not overwrite:
        raise UserError(
            f"{out} holds {', '.join(changed)} with other content, made of other images or "
            "titles, with other flags, or edited; give another --out, or --overwrite to replace "
            f"{'it' if len(changed) == 1 else 'them'}"
        )
    missing = [name for name in made if not (out / name).is_file()]
    for name in dict.fromkeys([*missing, *changed]):
        files.put(out / name, made[name])
    return bool(missing or changed)


def place_images(folder: Path, out: Path, items: Sequence[Item], copy: bool) -> None:
    """Links the folder of the images, or copies those that are used.

    Raises:
      UserError: the system makes no link, or the disk is full.
    """
    images = out / "images"
    if not copy:
        if images.exists():
            return
        try:
            out.mkdir(parents=True, exist_ok=True)
            images.symlink_to(folder.resolve(), target_is_directory=True)
        except OSError as error:
            raise UserError(
                f"{images} cannot be made a link ({error.strerror or error}); give --copy"
            ) from None
        return
    for item in items:
        place = images / item.name
        try:
            there = os.stat(item.path).st_size
            if place.is_file() and place.stat().st_size == there:
                continue
        except OSError as error:
            raise files.full(place, error) from None
        with files.whole(place) as file, open(item.path, "rb") as source:
            shutil.copyfileobj(source, file)


def more_pairs(made: Mapping[str, bytes], wanted: int) -> int:
    """How many further pairs every training image can have, `wanted` at most."""
    records = [json.loads(line) for line in made["train.jsonl"].splitlines()]
    known = max(len(record.get("targets", (0,))) for record in records)
    return max(0, min(wanted, len(records) - 1 - known))
