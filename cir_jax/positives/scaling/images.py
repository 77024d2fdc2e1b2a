# SPDX-License-Identifier: Apache-2.0
"""The images that triplets are made of: of a data set, of a folder, or of lists with captions."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cir_jax.errors import UserError, nearest
from cir_jax.positives import fashioniq, loading
from cir_jax.positives.named_files import NamedFiles
from cir_jax.positives.scaling import lists
from cir_jax.positives.triplets import Triplet

IMAGES = ("all", "split", "triplets")


@dataclass(frozen=True)
class Pool:
    """Images, and what is known of them.

    Attributes:
      paths: name -> file, in the order that numbers the images.
      categories: name -> category for the prompt, where the data set has any; of an image in
        several, the last one, whose caption the released reader keeps.
      triplets: annotated ones, if the data set has any.
      home: what paths in the result are relative to; "" if the data set knows the names.
      texts: files of captions that come with the images.
    """

    paths: dict[str, Any]
    categories: dict[str, str] = field(default_factory=dict)
    triplets: tuple[Triplet, ...] = ()
    home: str = ""
    texts: tuple[str, ...] = ()

    def references(self) -> set[str]:
        """Names that are the reference of an annotated triplet."""
        return {t.reference for t in self.triplets}

    def known(self) -> set[tuple[str, str]]:
        """(reference, target) of the annotated triplets."""
        return {(t.reference, t.target) for t in self.triplets}

    def without(self, names: Iterable[str]) -> "Pool":
        """The pool without some images."""
        gone = set(names)
        paths = {n: p for n, p in self.paths.items() if n not in gone}
        return Pool(paths, self.categories, self.triplets, self.home, self.texts)


def read(config: Any) -> Pool:
    """The images of a config.

    Raises:
      UserError: no such data set, files are missing, or there are fewer than two images.
    """
    data = config.data
    if data.images not in IMAGES:
        raise UserError(
            f"data.images={data.images!r} is unknown; there are: {', '.join(IMAGES)}."
            f"{nearest(data.images, IMAGES)}"
        )
    if data.threads < 1:
        raise UserError(f"data.threads={data.threads} is below 1; the default is 16")
    if data.name == "list":
        pool = _of_lists(data)
    elif data.name == "folder" and not (Path(data.root) / "train.jsonl").is_file():
        pool = _of_folder(data.root)
    else:
        pool = _of_dataset(config)
    if not pool.triplets and (config.pair.references_only or config.pair.method == "mined"):
        raise UserError(
            f"data.name={data.name} has no annotated triplet, which pair.references_only=True and "
            "pair.method=mined need; set others"
        )
    if len(pool.paths) < 2:
        raise UserError(
            f"{len(pool.paths)} image(s) in {data.root or 'data.lists'}; pairs need two or more"
        )
    return pool


def _of_folder(root: str) -> Pool:
    if not root:
        raise UserError("data.root is empty; set it to a folder of images")
    if not Path(root).is_dir():
        raise UserError(f"data.root={root} is no folder; set it to a folder of images")
    # The neutral layout has its images, and names, below images/; a bare folder has not.
    folder = Path(root) / "images" if (Path(root) / "images").is_dir() else Path(root)
    return Pool(NamedFiles.below(folder).files, home=str(folder))


def _of_lists(data: Any) -> Pool:
    if not data.lists:
        raise UserError(
            "data.lists is empty; set it to .json, .jsonl, .csv, .tsv or .tar files of images and "
            "captions, or to folders of them"
        )
    files = lists.expand(data.lists)
    paths: dict[str, Any] = {}
    for entry in lists.entries(files, data.root):
        if paths.setdefault(entry.name, entry.path) != entry.path:
            raise UserError(
                f"{entry.where}: image {entry.name!r} is {entry.path}, and {paths[entry.name]} "
                "before; one name cannot be two images"
            )
    return Pool(paths, home=data.root or str(Path(files[0]).parent), texts=tuple(files))


def _of_dataset(config: Any) -> Pool:
    data, pair = config.data, config.pair
    module = loading.reader(data.name)
    known = module.images(data.root, "train")
    triplets: tuple[Triplet, ...] = ()
    if (
        data.images == "triplets"
        or pair.references_only
        or pair.exclude_known
        or pair.method == "mined"
    ):
        try:
            sets = module.read(data.root, "train", data.categories)
        except UserError as error:
            raise UserError(
                f"{error} (without annotated triplets: data.images=split, "
                "pair.references_only=False, pair.exclude_known=False)"
            ) from None
        triplets = tuple(t for one in sets for t in one.triplets)
        known |= {n: p for one in sets for n, p in one.paths.items() if n not in known}
    names = list(known)
    if data.images == "triplets":
        names = [n for t in triplets for n in (t.reference, t.target)]
    paths = {n: known[n] for n in names}
    texts = (str(module.caption_file(data.root)),) if hasattr(module, "caption_file") else ()
    return Pool(paths, _categories(module, data, paths), triplets, texts=texts)


def _categories(module: Any, data: Any, paths: dict[str, Any]) -> dict[str, str]:
    if not hasattr(module, "find_categories") and not hasattr(module, "home"):
        return {}
    root = module.home(data.root) if hasattr(module, "home") else data.root
    files = sorted((Path(root) / "image_splits").glob("split.*.train.json"))
    there = [f.name.split(".")[1] for f in files]
    official = [c for c in fashioniq.CATEGORIES if c in there]
    found: dict[str, str] = {}
    for category in list(data.categories) or [*official, *(c for c in there if c not in official)]:
        for name in fashioniq.split_names(root, category, "train"):
            if name in paths:
                found[name] = category
    return found
