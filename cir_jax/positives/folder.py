# SPDX-License-Identifier: Apache-2.0
"""Your own triplets: one neutral JSON-lines file per split beside a folder of images.

    {root}/train.jsonl  {"reference": "a.jpg", "target": "b.jpg", "text": "in red"}
    {root}/val.jsonl    the same; the targets and references of val are its gallery, or
    {root}/gallery.txt  one image per line, if the gallery is larger
    {root}/images/      files; a name is a path below it, with or without its suffix

Fields: reference, target, text or texts (several phrasings, one drawn at a time), and optionally
id, source, group (names of a subset) and meta (anything, not read).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cir_jax.errors import UserError, nearest
from cir_jax.positives import generated as generated_files
from cir_jax.positives.annotations import SUFFIXES, field, not_empty, read_lines
from cir_jax.positives.triplets import Triplet, TripletSet

SOURCE = "folder"
FIELDS = ("reference", "target", "text", "texts", "id", "source", "group", "meta")


def read(
    root: str | Path,
    split: str = "train",
    categories: Sequence[str] = (),
    generated: str = "",
    llm_captions: bool = False,
) -> list[TripletSet]:
    """The triplets of {root}/{split}.jsonl, one set per `source`, then the generated ones.

    Raises:
      UserError: a missing file, a malformed line, an unknown field, or no triplet.
    """
    if categories:
        raise UserError(f"a folder has no categories, got {tuple(categories)}; leave them empty")
    paths = locate(root)
    by_source: dict[str, list[Triplet]] = {}
    for where, record in read_lines(Path(root) / f"{split}.jsonl"):
        triplet = _triplet(record, where)
        by_source.setdefault(triplet.source, []).append(triplet)
    if not by_source:
        raise UserError(f"{Path(root) / f'{split}.jsonl'} holds no triplet; add lines to it")
    sets = [
        TripletSet(
            source,
            tuple(triplets),
            {
                n: paths.get(n, str(Path(root) / "images" / n))
                for t in triplets
                for n in (t.reference, t.target)
                if n
            },
        )
        for source, triplets in by_source.items()
    ]
    if generated:
        sets.append(generated_files.read(generated, paths, root, llm_captions))
    return sets


def gallery(root: str | Path, split: str = "val") -> tuple[list[str], dict[str, Any]]:
    """Names of the gallery, in order, and the file of each: gallery.txt, or the split's images.

    Raises:
      UserError: it is empty.
    """
    listed = Path(root) / "gallery.txt"
    if listed.is_file():
        names = [line.strip() for line in listed.read_text("utf-8").splitlines() if line.strip()]
    else:
        triplets = [t for one in read(root, split) for t in one.triplets]
        names = [n for t in triplets for n in (t.reference, t.target) if n]
    names = list(dict.fromkeys(names))
    if not names:
        raise UserError(f"{listed} names no image; add one per line, or remove the file")
    paths = locate(root)
    return names, {n: paths.get(n, str(Path(root) / "images" / n)) for n in names}


def locate(root: str | Path) -> dict[str, str]:
    """Path below images/ -> file, with and without the suffix."""
    base = Path(root) / "images"
    found: dict[str, str] = {}
    for file in sorted(base.rglob("*")):
        if file.suffix.lower() in SUFFIXES:
            name = file.relative_to(base)
            found[name.as_posix()] = str(file)
            found.setdefault(name.with_suffix("").as_posix(), str(file))
    return found


def _triplet(record: dict[str, Any], where: str) -> Triplet:
    for key in record:
        if key not in FIELDS:
            raise UserError(
                f"{where} has an unknown field {key!r}.{nearest(key, FIELDS)} Fields: "
                f"{', '.join(FIELDS)}; put anything else under meta"
            )
    if ("text" in record) == ("texts" in record):
        raise UserError(f"{where} needs either text or texts")
    texts = record.get("texts", [record.get("text")])
    texts = not_empty([texts] if isinstance(texts, str) else texts, where)
    return Triplet(
        field(record, "reference", where),
        field(record, "target", where),
        texts,
        texts[0],
        str(record.get("source", SOURCE)),
        str(record.get("id", where)),
        members=tuple(record.get("group", ())),
    )
