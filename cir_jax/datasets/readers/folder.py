# SPDX-License-Identifier: Apache-2.0
"""Your own triplets: one neutral JSON-lines file per split beside a folder of images.

    {root}/train.jsonl  {"reference": "a.jpg", "target": "b.jpg", "text": "in red"}
    {root}/val.jsonl    the same; the targets and references of val are its gallery, or
    {root}/gallery.txt  one image per line, if the gallery is larger
    {root}/images/      files; a name is a path below it, with or without its suffix

Fields: reference, target, text or texts (several phrasings, one drawn at a time), and optionally
id, source, group (names of a subset), meta (anything, not read), and, in files of generated
triplets about images of no data set, reference_path and target_path. A triplet's names come out in one
form, with their suffix, however they were written: `./a.jpg`, the absolute path and `a` are one
image, and so is `A.JPG` if no file is called so. Hidden files are no images.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cir_jax.data import places, text_files
from cir_jax.data.annotations import image_name, image_names, not_empty, read_lines
from cir_jax.data.pixels import ImageFile
from cir_jax.data.triplets import Triplet, TripletSet
from cir_jax.datasets.examination import Examination
from cir_jax.datasets.named_files import NamedFiles
from cir_jax.errors import UserError, nearest

SOURCE = "folder"
FIELDS = (
    "reference", "target", "text", "texts", "id", "source", "group", "meta",
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


def gallery(root: str | Path, split: str = "val") -> tuple[list[str], dict[str, ImageFile]]:
    """Names of the gallery, in order, and the file of each: gallery.txt, or the split's images.

    Raises:
      UserError: it is empty, or a name fits two files.
    """
    known, listed = _known(root), Path(root) / "gallery.txt"
    if listed.is_file():
        names = [
            known.name(image_name({"image": line.strip()}, "image", where), where)
            for number, line in text_files.lines(listed)
            if line.strip() and (where := f"{listed}:{number}")
        ]
    else:
        triplets = [t for one in read(root, split) for t in one.triplets]
        names = [n for t in triplets for n in (t.reference, t.target)]
    names = list(dict.fromkeys(names))
    if not names:
        raise UserError(f"{listed} names no image; add one per line, or remove the file")
    return names, {n: known.file(n) for n in names}


def held_out(root: str | Path, splits: Sequence[str] = ("val",)) -> dict[str, ImageFile]:
    """Name -> file of the images that gallery.txt and the files of `splits` but "train" name.

    Images without a file are left out; gallery.txt and the files of splits may be absent.

    Raises:
      UserError: a malformed line, or a name that fits two files.
    """
    known, listed = _known(root), Path(root) / "gallery.txt"
    names = gallery(root)[0] if listed.is_file() else []
    for split in {*splits} - {"train"}:
        if (Path(root) / f"{split}.jsonl").is_file():
            triplets = [t for one in read(root, split) for t in one.triplets]
            names += [n for t in triplets for n in (t.reference, t.target, *t.members)]
    return {n: known.files[n] for n in names if n in known.files}


def examine(root: str | Path, categories: Sequence[str] = ()) -> Examination:
    """Counts triplets and gallery images, and finds targets of val that the gallery lacks.

    Raises:
      UserError: neither train.jsonl nor val.jsonl is there, or a line is malformed.
    """
    found, identity = Examination(), places.Identity()
    paths: dict[str, ImageFile] = {}
    splits = [s for s in ("train", "val") if (Path(root) / f"{s}.jsonl").is_file()]
    if not splits:
        raise UserError(f"neither train.jsonl nor val.jsonl in {root}; write one of them")
    for split in splits:
        sets = read(root, split, categories)
        found.count(f"{split} triplets", sum(len(one.triplets) for one in sets))
        for one in sets:
            paths |= one.paths
        if split == "val":
            names, files = gallery(root, split)
            paths |= files
            ranked = places.distinct({n: files[n] for n in names}, identity)
            found.count("gallery images", len(ranked))
            there = {identity.of(path) for path in files.values()}
            alike = [n for n, path in paths.items() if identity.of(path) in there]
            triplets = [t for one in sets for t in one.triplets]
            found.check_names(alike, triplets, targets_only=True)
    found.images = places.distinct(paths, identity)
    return found


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
        raise UserError(f"{where} needs either text or texts")
    texts = not_empty(record["texts" if "texts" in record else "text"], where)
    return Triplet(
        image_name(record, "reference", where),
        image_name(record, "target", where),
        texts,
        texts[0],
        str(record.get("source", SOURCE)),
        str(record.get("id", where)),
        members=image_names(record, "group", where) if "group" in record else (),
    )


def renamed(one: Triplet, known: NamedFiles, where: str) -> Triplet:
    """The triplet with its names in the form that `known` uses.

    Raises:
      UserError: a name fits two files.
    """
    return replace(
        one,
        reference=known.name(one.reference, where),
        target=known.name(one.target, where),
        members=tuple(known.name(n, where) for n in one.members),
    )


def _known(root: str | Path) -> NamedFiles:
    return NamedFiles.below(Path(root) / "images", root)


def _paths(known: NamedFiles, triplets: Sequence[Triplet]) -> dict[str, ImageFile]:
    """The file of every image that the triplets name, or the one that is expected."""
    names = {n: None for t in triplets for n in (t.reference, t.target)}
    return {n: known.file(n) for n in names}
