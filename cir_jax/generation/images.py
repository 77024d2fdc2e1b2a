# SPDX-License-Identifier: Apache-2.0
"""The images that triplets are made of: of a data set, of a folder, or of lists with captions."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cir_jax.data import places
from cir_jax.data.listing import images_below
from cir_jax.data.pixels import AUTO, Loading
from cir_jax.data.triplets import Triplet
from cir_jax.data.unusable import Problem
from cir_jax.datasets import held_out, image_lists, loading, reader
from cir_jax.datasets.readers import fashioniq
from cir_jax.errors import UserError, nearest

IMAGES = ("all", "split", "triplets")
_NEUTRAL = ("val.jsonl", "gallery.txt")  # files of the neutral layout, beside train.jsonl


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
      unusable: name -> why it cannot be used, of images that are left out.
    """

    paths: dict[str, Any]
    categories: dict[str, str] = field(default_factory=dict)
    triplets: tuple[Triplet, ...] = ()
    home: str = ""
    texts: tuple[str, ...] = ()
    unusable: Mapping[str, Problem] = field(default_factory=dict)

    @property
    def left_out(self) -> tuple[str, ...]:
        """Names of images that are left out."""
        return tuple(self.unusable)

    def references(self) -> set[str]:
        """Names that are the reference of an annotated triplet."""
        return {t.reference for t in self.triplets}

    def known(self) -> set[tuple[str, str]]:
        """(reference, target) of the annotated triplets, every right answer a target."""
        return {(t.reference, n) for t in self.triplets for n in t.truths or (t.target,)}

    def without(self, unusable: Mapping[str, Problem]) -> "Pool":
        """The pool without some images that cannot be used."""
        paths = {n: p for n, p in self.paths.items() if n not in unusable}
        return replace(self, paths=paths, unusable={**self.unusable, **unusable})


def read(config: ConfigDict) -> Pool:
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
    if data.lists and data.name != "list":
        raise UserError(f"data.lists is set, but data.name={data.name} would not look at it; set "
                        "data.name=list")  # fmt: skip
    with places.within(config):
        if data.name == "list":
            pool = _of_lists(data)
        elif data.name == "folder" and not (Path(data.root) / "train.jsonl").is_file():
            pool = _of_folder(data.root)
        else:
            pool = _of_dataset(config)
        places.check_all(pool.paths, f"data.name={data.name}")
    if not pool.triplets and (config.pair.references_only or config.pair.method == "mined"):
        raise UserError(
            f"data.name={data.name} has no annotated triplet, which pair.references_only=True and "
            "pair.method=mined need; set others"
        )
    if not pool.triplets and data.images == "triplets":
        raise UserError(
            f"data.images=triplets, but data.name={data.name} has no annotated triplet; set all"
        )
    odd = next((n for n in pool.paths if not _is_unicode(n)), None)
    if odd is not None:
        raise UserError(f"the name of image {odd!r} is no UTF-8; rename the file")
    if len(pool.paths) < 2:
        raise UserError(
            f"{len(pool.paths)} image(s) in {data.root or 'data.lists'}; pairs need two or more"
        )
    return pool


def loading_of(config: ConfigDict) -> Loading:
    """How the files become pictures: of published data sets as in published runs, of other images
    as a person sees them, if the config does not say it."""
    data = config.data
    own = "released" if reader.is_published(data.name) else "natural"
    return Loading(own if data.loading == AUTO else data.loading, data.background)


def are_opened(config: ConfigDict) -> bool:
    """Whether a step after the first opens the images: captions may come from files alone."""
    return config.caption.captioner != "texts" or bool(config.pair.run)


def _of_folder(root: str) -> Pool:
    if not root:
        raise UserError("data.root is empty; set it to a folder of images")
    if not Path(root).is_dir():
        raise UserError(f"data.root={root} is no folder; set it to a folder of images")
    listing = images_below(root)
    listing.say_outside(root)
    # A file of two names is one image.
    found = {n: path for n, path in listing.files.items() if n not in listing.same}
    listing.say_others(root)
    # The neutral layout has its images, and their names, below images/; a bare folder has not,
    # though one of its folders may have that name.
    below = {n.removeprefix("images/"): p for n, p in found.items() if n.startswith("images/")}
    neutral = any((Path(root) / f).is_file() for f in _NEUTRAL)
    if len(below) == len(found) or neutral:
        gone = held_out.of_reader("folder", root) if neutral else held_out.HeldOut({})
        below = {n: path for n, path in below.items() if not gone.is_file(path)}
        return Pool(below, home=str(Path(root) / "images"))
    return Pool(found, home=str(root))


def _of_lists(data: Any) -> Pool:
    if not data.lists:
        raise UserError(
            "data.lists is empty; set it to .json, .jsonl, .csv, .tsv or .tar files of images and "
            "captions, or to folders of them"
        )
    files = image_lists.expand(data.lists)
    paths: dict[str, Any] = {}
    identity = places.Identity()
    written = places.Written(places.roots(data.root, *{str(Path(f).parent) for f in files}))
    for entry in image_lists.entries(files, data.root):
        if not entry.path:
            raise UserError(
                f"{entry.where} names no image file; one of {', '.join(image_lists.PATH_KEYS)} is "
                f"expected. It has: {', '.join(entry.record)}"
            )
        path = entry.path
        if isinstance(path, str):
            path = written.file("", path, entry.where)
        other = paths.setdefault(entry.name, path)
        if other != path and identity.of(other) != identity.of(path):
            raise UserError(
                f"{entry.where}: image {entry.name!r} is {path}, and {paths[entry.name]} "
                "before; one name cannot be two images"
            )
    paths = places.distinct(paths, identity)
    return Pool(paths, home=data.root or str(Path(files[0]).parent), texts=tuple(files))


def _of_dataset(config: ConfigDict) -> Pool:
    data, pair = config.data, config.pair
    module = reader.load(data.name)
    listed = reader.training_images(data.name, data.root, "triplets are generated from")
    known = dict(listed)
    categories = _categories(module, data)
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
        if data.annotated >= 0:
            sets = loading.choose(sets, data.annotated, config.seed)
        triplets = tuple(t for one in sets for t in one.triplets)
        known |= {n: p for one in sets for n, p in one.paths.items() if n not in known}
    if data.images == "triplets":
        names = list(dict.fromkeys(n for t in triplets for n in (t.reference, t.target, *t.truths)))
    elif data.categories:
        if not categories:
            raise UserError(f"data set {data.name!r} has no categories; leave data.categories out")
        names = [n for n in listed if n in categories]
    else:
        names = list(listed)
    if data.images != "triplets":
        gone = held_out.of_reader(data.name, data.root)
        names = [n for n in names if not gone.is_file(known[n])]
    texts: tuple[str, ...] = ()
    if isinstance(module, reader.HasCaptionFile):
        texts = (str(module.caption_file(data.root)),)
    return Pool({n: known[n] for n in names}, categories, triplets, texts=texts)


def _categories(module: Any, data: Any) -> dict[str, str]:
    """Name -> category of all training images, where a data set has any."""
    if not hasattr(module, "find_categories") and not hasattr(module, "home"):
        return {}
    root = module.home(data.root) if hasattr(module, "home") else data.root
    files = sorted((Path(root) / "image_splits").glob("split.*.train.json"))
    there = [f.name.split(".")[1] for f in files]
    official = [c for c in fashioniq.CATEGORIES if c in there]
    found: dict[str, str] = {}
    for category in list(data.categories) or [*official, *(c for c in there if c not in official)]:
        found |= dict.fromkeys(fashioniq.split_names(root, category, "train"), category)
    return found


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
