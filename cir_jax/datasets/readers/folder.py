# SPDX-License-Identifier: Apache-2.0
"""Your own triplets: one neutral JSON-lines file per split beside a folder of images.

    {root}/train.jsonl  {"reference": "a.jpg", "target": "b.jpg", "text": "in red"}
    {root}/val.jsonl    the same; the targets and references of val are its gallery, or
    {root}/gallery.txt  one image per line, if the gallery is larger
    {root}/copies.txt   one image per line that shows the same as another one: nothing trains on it
    {root}/images/      files; a name is a path below it, with or without its suffix

Fields: reference, target or targets (all images that answer the query, where that are several),
text or texts (several phrasings, one drawn at a time), and optionally id, source, group (names of a
subset), meta (anything, not read), and, in files of generated triplets about images of no data set,
reference_path and target_path. A triplet's names come out in one form, with their suffix, however
they were written: `./a.jpg`, the absolute path and `a` are one image, and so is `A.JPG` if no file
is called so. Hidden files are no images. Beside them may lie captions.jsonl of
`cir_jax.datasets.captions`, for stage zero and `cir-jax positives`.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cir_jax.data import places, text_files
from cir_jax.data.annotations import image_name, image_names, not_empty, read_lines
from cir_jax.data.pixels import ImageFile
from cir_jax.data.triplets import Triplet, TripletSet
from cir_jax.datasets import captions as caption_files
from cir_jax.datasets.examination import Examination
from cir_jax.datasets.named_files import NamedFiles
from cir_jax.errors import UserError, nearest

SOURCE = "folder"
FIELDS = (
    "reference", "target", "targets", "text", "texts", "id", "source", "group", "meta",
    "reference_path", "target_path",
)  # fmt: skip


def read(
    root: str | Path, split: str = "train", categories: Sequence[str] = ()
) -> list[TripletSet]:
    """The triplets of {root}/{split}.jsonl, one set per `source`.

    Raises:
      UserError: a missing file, a malformed line, an unknown field, a name that fits two files, or
        no triplet.
    """
    if categories:
        raise UserError(f"a folder has no categories, got {tuple(categories)}; leave them empty")
    if not str(root):
        raise UserError(
            f"data.root is empty; set it to the folder of {split}.jsonl and images/ (`cir-jax "
            "prepare` makes one of a folder of images and a table of titles)"
        )
    known = _known(root)
    by_source: dict[str, list[Triplet]] = {}
    for where, record in read_lines(Path(root) / f"{split}.jsonl"):
        one = renamed(triplet(record, where), known, where)
        by_source.setdefault(one.source, []).append(one)
    if not by_source:
        raise UserError(f"{Path(root) / f'{split}.jsonl'} holds no triplet; add lines to it")
    return [
        TripletSet(source, tuple(triplets), _paths(known, triplets))
        for source, triplets in by_source.items()
    ]


def images(root: str | Path, split: str = "train") -> dict[str, ImageFile]:
    """Name -> file of every image below images/, whatever the split; see `held_out`."""
    known = _known(root)
    known.listing.say_outside(Path(root) / "images")
    return known.files


def captions(root: str | Path) -> list[TripletSet]:
    """The captions of captions.jsonl, without those of images that are evaluated with.

    Raises:
      UserError: there is no such file, or what `cir_jax.datasets.captions` finds.
    """
    file = caption_file(root)
    if not file.is_file():
        raise UserError(
            f"stage zero trains on image captions, and there is no {file}; write one, or set "
            "data.captions to a file of {image_id, image_path, caption} records"
        )
    gone, identity = held_out(root), places.Identity()
    files = {identity.of(path) for path in gone.values()}  # captions may name them otherwise
    kept = lambda one, name: name not in gone and identity.of(one.paths[name]) not in files
    return [
        replace(one, triplets=tuple(t for t in one.triplets if kept(one, t.target)))
        for one in caption_files.read(file, root)
    ]


def caption_file(root: str | Path) -> Path:
    """Where the captions lie, if there are any."""
    return Path(root) / "captions.jsonl"


def gallery(root: str | Path, split: str = "val") -> tuple[list[str], dict[str, ImageFile]]:
    """Names of the gallery, in order, and the file of each: gallery.txt, or the split's images.

    Raises:
      UserError: it is empty, or a name fits two files.
    """
    known, listed = _known(root), Path(root) / "gallery.txt"
    if _lies_there(listed):
        names = _listed(known, listed)
    else:
        triplets = [t for one in read(root, split) for t in one.triplets]
        names = [n for t in triplets for n in (t.reference, t.target, *t.truths)]
    names = list(dict.fromkeys(names))
    if not names:
        raise UserError(f"{listed} names no image; add one per line, or remove the file")
    return names, {n: known.file(n) for n in names}


def held_out(root: str | Path, splits: Sequence[str] = ("val",)) -> dict[str, ImageFile]:
    """Name -> file of the images that gallery.txt, copies.txt, and `splits` but "train" name.

    A copy may be that of an image of another side, and is of no use to its own. Images without a
    file are left out; all of these files may be absent.

    Raises:
      UserError: a malformed line, or a name that fits two files.
    """
    known, listed = _known(root), Path(root) / "gallery.txt"
    names = gallery(root)[0] if _lies_there(listed) else []
    if _lies_there(copies := Path(root) / "copies.txt"):
        names += _listed(known, copies)
    for split in {*splits} - {"train"}:
        if _lies_there(file := Path(root) / f"{split}.jsonl"):
            for where, record in read_lines(file):
                t = renamed(triplet(record, where), known, where)
                names += [t.reference, t.target, *t.truths, *t.members]
    return {n: known.files[n] for n in names if n in known.files}


def examine(root: str | Path, categories: Sequence[str] = ()) -> Examination:
    """Counts triplets, gallery images and captions; finds targets of val that the gallery lacks.

    Raises:
      UserError: there is no such folder, neither train.jsonl nor val.jsonl is there, or a line of
        them is malformed.
    """
    found, identity = Examination(), places.Identity()
    paths: dict[str, ImageFile] = {}
    if not Path(root).is_dir():
        raise UserError(f"{root} is no folder; name the folder of the data set")
    splits = [s for s in ("train", "val") if _lies_there(Path(root) / f"{s}.jsonl")]
    if not splits:
        raise UserError(f"neither train.jsonl nor val.jsonl in {root}; write one of them")
    for split in splits:
        sets = read(root, split, categories)
        triplets = [t for one in sets for t in one.triplets]
        found.count(f"{split} triplets", len(triplets))
        for one in sets:
            paths |= one.paths
        if split == "val":
            names, files = gallery(root, split)
            paths |= files
            ranked = places.distinct({n: files[n] for n in names}, identity)
            found.count("gallery images", len(ranked))
            there = {identity.of(path) for path in files.values()}
            alike = [n for n, path in paths.items() if identity.of(path) in there]
            found.check_names(alike, triplets, targets_only=True, split=split)
        else:
            found.look_over(triplets, split)
    if _lies_there(caption_file(root)):
        paths |= _captions_looked_over(root, found)
    found.images = places.distinct(paths, identity)
    return found


def _captions_looked_over(root: str | Path, found: Examination) -> dict[str, ImageFile]:
    """Name -> file of the captioned images; what a run's keys may decide is a problem, no error."""
    try:
        sets = captions(root)
    except UserError as error:
        found.problems.append(str(error))
        return {}
    found.count("captioned images", sum(len(one.triplets) for one in sets))
    for one in sets:
        found.look_over(one.triplets, "train")
    used = {t.target for one in sets for t in one.triplets}
    return {n: file for one in sets for n, file in one.paths.items() if n in used}


def _listed(known: NamedFiles, file: Path) -> list[str]:
    """The images that a file names, one per line."""
    return [
        known.name(image_name({"image": line.strip()}, "image", where), where)
        for number, line in text_files.lines(file)
        if line.strip() and (where := f"{file}:{number}")
    ]


def _lies_there(file: Path) -> bool:
    """Whether there is such a file.

    Raises:
      UserError: something else has its name, so that leaving it out would change what is ranked.
    """
    if file.is_file():
        return True
    if os.path.lexists(file):
        what = "a link to nothing" if file.is_symlink() and not file.exists() else "no file"
        raise UserError(f"{file} is {what}; put the file there, or remove it")
    return False


def triplet(record: dict[str, Any], where: str) -> Triplet:
    """A triplet from one record; `where` names the record in messages.

    Raises:
      UserError: an unknown field, or one that is missing or of another type.
    """
    for key in record:
        if key not in FIELDS:
            raise UserError(
                f"{where} has an unknown field {key!r}.{nearest(key, FIELDS)} Fields: "
                f"{', '.join(FIELDS)}; put anything else under meta"
            )
    if ("text" in record) == ("texts" in record):
        has = "has both; keep one of them" if "text" in record else "has neither; write one"
        raise UserError(
            f"{where} needs either text or texts, and {has}: text is one string, texts a list"
        )
    target, truths = _targets(record, where)
    texts = not_empty(record["texts" if "texts" in record else "text"], where)
    return Triplet(
        image_name(record, "reference", where),
        target,
        texts,
        texts[0],
        str(record.get("source", SOURCE)),
        str(record.get("id", where)),
        members=image_names(record, "group", where) if "group" in record else (),
        truths=truths,
    )


def _targets(record: dict[str, Any], where: str) -> tuple[str, tuple[str, ...]]:
    """(target, all right answers where there are several)."""
    if "targets" not in record:
        return image_name(record, "target", where), ()
    if "target" in record:
        raise UserError(f"{where} has target and targets; write all right answers in targets")
    names = image_names(record, "targets", where)
    if not names:
        raise UserError(f"{where}: 'targets' is empty; name the images that answer the query")
    return names[0], names if len(names) > 1 else ()


def renamed(one: Triplet, known: NamedFiles, where: str) -> Triplet:
    """The triplet with its names in the form that `known` uses.

    Raises:
      UserError: a name fits two files.
    """
    target, truths = known.name(one.target, where), tuple(known.name(n, where) for n in one.truths)
    twice = next((n for i, n in enumerate(truths) if n in truths[:i]), None)
    if twice is not None:
        raise UserError(f"{where}: 'targets' names image {twice!r} twice; name each image once")
    return replace(
        one,
        reference=known.name(one.reference, where),
        target=target,
        truths=truths,
        members=tuple(known.name(n, where) for n in one.members),
    )


def _known(root: str | Path) -> NamedFiles:
    return NamedFiles.below(Path(root) / "images", root)


def _paths(known: NamedFiles, triplets: Sequence[Triplet]) -> dict[str, ImageFile]:
    """The file of every image that the triplets name, or the one that is expected."""
    names = {n: None for t in triplets for n in (t.reference, t.target, *t.truths)}
    return {n: known.file(n) for n in names}
