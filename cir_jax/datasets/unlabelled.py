# SPDX-License-Identifier: Apache-2.0
"""Images that no triplet names, for more rows of the bank.

An ablation of section 4 of arXiv 2404.11317: more negatives without more annotations. The released
code lets in images that are pixel-identical to a labelled one, a negative that is the target
itself; here an image comes in once, and only if it is none of the labelled ones. Images that a
"folder" data set evaluates with stay out, and so does whatever shows the same pixels.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from cir_jax import progress
from cir_jax.data import places
from cir_jax.data.annotations import read_json
from cir_jax.data.image_table import ImageTable, groups
from cir_jax.data.inspection import inspect_images
from cir_jax.data.pixels import ImageFile
from cir_jax.data.screening import Screen
from cir_jax.datasets import held_out, reader
from cir_jax.datasets.named_files import NamedFiles
from cir_jax.errors import UserError

SPLIT = "split"


def read(config: ConfigDict, evaluated: held_out.HeldOut) -> dict[str, ImageFile]:
    """Name -> file of all images that `data.unlabelled` names, in their order.

    Args:
      config: of the run.
      evaluated: images that are left out: as negatives they would be seen before they are ranked.

    Raises:
      UserError: a folder or list that does not exist or holds no image, or a name that is two
        images.
    """
    with places.within(config):
        return _read(config, evaluated)


def _read(config: ConfigDict, evaluated: held_out.HeldOut) -> dict[str, ImageFile]:
    data = config.data
    if data.unlabelled_count and not data.unlabelled:
        raise UserError(
            f"data.unlabelled_count={data.unlabelled_count}, but data.unlabelled names no images; "
            "set it to split, folders, or JSON lists of files"
        )
    home = reader.home(data.name, data.root)
    identity = places.Identity()
    found: dict[str, ImageFile] = {}
    for entry in data.unlabelled:
        more = _split(data) if entry == SPLIT else _images(entry, home)
        for name, path in more.items():
            if evaluated.is_file(path):
                continue
            if identity.of(found.setdefault(name, path)) != identity.of(path):
                raise UserError(
                    f"data.unlabelled: image {name!r} is {found[name]} and {path}; one name "
                    "cannot be two images: rename a folder"
                )
    places.check_all(found, "data.unlabelled")
    return found


def _split(data: ConfigDict) -> dict[str, ImageFile]:
    need = "data.unlabelled=split takes its images from (a folder will do instead)"
    return reader.training_images(data.name, data.root, need)


def _images(entry: str, home: str | Path) -> dict[str, ImageFile]:
    """The images of a folder, or of a JSON list of files, whose paths start where the list lies.

    Relative to `home` if there is no such place as given, as files of generated triplets are.
    """
    place = Path(entry) if Path(entry).exists() else Path(home) / entry
    if place.is_dir():
        known = NamedFiles.below(place)
        known.listing.say_outside(place)
        found = {f"{place.resolve().name}/{name}": path for name, path in known.files.items()}
    elif place.is_file():
        found = {}
        written = places.Written(places.roots(place.parent, home))
        for number, name in enumerate(read_json(place)):
            if not isinstance(name, str) or not name:
                raise UserError(
                    f"{place} record {number} is {name!r}, expected the path of a file; correct it"
                )
            where = f"{place} record {number}"
            beside = written.file(place.parent, name, where)
            there = os.path.exists(beside)
            found[name] = beside if there else written.file(home, name, where)
    else:
        raise UserError(
            f"data.unlabelled: no folder and no file {entry}, nor {place}; use split, a folder of "
            "images, or a JSON list of image files"
        )
    if not found:
        raise UserError(f"data.unlabelled: no image in {place}; give another folder or list")
    return found


def extend(
    table: ImageTable,
    found: Mapping[str, ImageFile],
    *,
    evaluated: Mapping[str, ImageFile] | None = None,
    count: int = 0,
    optimized: str = "",
    screen: Screen | None = None,
) -> ImageTable:
    """The table with rows for the images of `found` that it does not hold.

    Args:
      table: the labelled images.
      found: see `read`.
      evaluated: name -> file of images that training must not see; what shows one stays out.
      count: the first so many; 0 = all.
      optimized: `optimized_images.json` of the run. With it, pixel-identical images are one:
        those that the file knows by the file, others by comparing their pixels.
      screen: what becomes of images that cannot be used; None raises an error.

    Raises:
      UserError: images cannot be used, fewer than `count` are left, or a name of the table is
        another image there.
    """
    identity = places.Identity()
    known = {identity.of(path) for path in table.paths}
    new = {}
    for name, path in found.items():
        if name not in table.row_of and identity.of(path) not in known:
            known.add(identity.of(path))
            new[name] = path
    screen = screen or Screen()
    bad = screen.unusable(new, "data.unlabelled")
    new = {n: path for n, path in new.items() if n not in bad}
    if evaluated:
        what = "images that are held out for evaluation"
        alike, _ = _alike(list(evaluated.values()), new, what, screen)
        new = {n: path for n, path in new.items() if n not in alike}
    if optimized:
        new = _different(table, new, groups(optimized), screen)
    if count > len(new):
        raise UserError(
            f"data.unlabelled_count={count}, but there are {len(new)} images that no triplet "
            "names; use 0 for all of them"
        )
    if not new:
        raise UserError(
            "data.unlabelled: every image there is one of the labelled ones; set it to () (images "
            "that a folder's val.jsonl or gallery.txt names are for evaluation alone)"
        )
    left_out = f"; {len(bad):,} that cannot be used left out" if bad else ""
    progress.say(f"unlabelled images: {count or len(new):,} of {len(new):,}{left_out}")
    names = list(new)[: count or None]
    return table.extended(names, [new[n] for n in names])


def _different(
    table: ImageTable, new: Mapping[str, ImageFile], group: Mapping[str, int], screen: Screen
) -> dict[str, ImageFile]:
    """Those of `new` whose picture is neither in the table nor an earlier one of `new`."""
    seen = {group[n] for n in table.row_of if n in group}
    kept, unknown = {}, {}
    for name, path in new.items():
        if name not in group:
            unknown[name] = kept[name] = path
        elif group[name] not in seen:
            seen.add(group[name])
            kept[name] = path
    if not unknown:
        return kept
    others = [*table.paths, *(path for n, path in kept.items() if n not in unknown)]
    what = "others, since data.optimized does not have them"
    alike, again = _alike(others, unknown, what, screen)
    return {n: path for n, path in kept.items() if n not in alike | again}


def _alike(
    others: Sequence[ImageFile], new: Mapping[str, ImageFile], what: str, screen: Screen
) -> tuple[set[str], set[str]]:
    """Images of `new` that show what one of the `others` does, or else an earlier one of `new`.

    Args:
      others: files.
      new: name -> file.
      what: the others are, for the line that says so.
      screen: how images are opened.
    """
    progress.say(
        f"comparing the pixels of {len(new):,} unlabelled images with those of {len(others):,} "
        f"{what}"
    )
    everything = {str(i): path for i, path in enumerate([*others, *new.values()])}
    looked = inspect_images(everything, threads=screen.threads, loading=screen.loading)
    names, alike, again = list(new), set(), set()
    for same in looked.duplicates:
        first, *rest = sorted(map(int, same))
        shown = {names[i - len(others)] for i in rest if i >= len(others)}
        if first < len(others):
            alike |= shown
        else:
            again |= shown
    return alike, again
