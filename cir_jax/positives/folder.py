# SPDX-License-Identifier: Apache-2.0
"""Your own triplets: one neutral JSON-lines file per split beside a folder of images.

    {root}/train.jsonl  {"reference": "a.jpg", "target": "b.jpg", "text": "in red"}
    {root}/val.jsonl    the same; the targets and references of val are its gallery, or
    {root}/gallery.txt  one image per line, if the gallery is larger
    {root}/images/      files; a name is a path below it, with or without its suffix

Fields: reference, target, text or texts (several phrasings, one drawn at a time), and optionally
id, source, group (names of a subset) and meta (anything, not read). A triplet's names come out with
their suffix, however they were written: one file under two names would be two images of the bank.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cir_jax.errors import UserError, nearest
from cir_jax.positives import generated as generated_files
from cir_jax.positives.annotations import SUFFIXES, image_name, image_names, not_empty, read_lines
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
      UserError: a missing file, a malformed line, an unknown field, a name that fits two files, or
        no triplet.
    """
    if categories:
        raise UserError(f"a folder has no categories, got {tuple(categories)}; leave them empty")
    images = _Images.find(root)
    by_source: dict[str, list[Triplet]] = {}
    for where, record in read_lines(Path(root) / f"{split}.jsonl"):
        triplet = images.rename(_triplet(record, where), where)
        by_source.setdefault(triplet.source, []).append(triplet)
    if not by_source:
        raise UserError(f"{Path(root) / f'{split}.jsonl'} holds no triplet; add lines to it")
    sets = [
        TripletSet(source, tuple(triplets), images.paths(triplets))
        for source, triplets in by_source.items()
    ]
    if generated:
        made = generated_files.read(generated, {}, root, llm_captions)
        renamed = tuple(images.rename(t, t.query_id) for t in made.triplets)
        sets.append(TripletSet(made.name, renamed, images.paths(renamed) | made.paths))
    return sets


def gallery(root: str | Path, split: str = "val") -> tuple[list[str], dict[str, Any]]:
    """Names of the gallery, in order, and the file of each: gallery.txt, or the split's images.

    Raises:
      UserError: it is empty, or a name fits two files.
    """
    images, listed = _Images.find(root), Path(root) / "gallery.txt"
    if listed.is_file():
        lines = listed.read_text("utf-8-sig").split("\n")
        names = [
            images.name(line.strip(), f"{listed}:{number}")
            for number, line in enumerate(lines, start=1)
            if line.strip()
        ]
    else:
        triplets = [t for one in read(root, split) for t in one.triplets]
        names = [n for t in triplets for n in (t.reference, t.target)]
    names = list(dict.fromkeys(names))
    if not names:
        raise UserError(f"{listed} names no image; add one per line, or remove the file")
    return names, {n: images.path(n) for n in names}


@dataclass(frozen=True)
class _Images:
    """The files below images/.

    Attributes:
      base: the folder.
      files: name with suffix -> file.
      short: name without suffix -> the names with it that there are.
    """

    base: Path
    files: dict[str, str]
    short: dict[str, list[str]]

    @classmethod
    def find(cls, root: str | Path) -> "_Images":
        base = Path(root) / "images"
        files: dict[str, str] = {}
        short: dict[str, list[str]] = {}
        for file in sorted(base.rglob("*")):
            if file.suffix.lower() in SUFFIXES:
                name = file.relative_to(base)
                files[name.as_posix()] = str(file)
                short.setdefault(name.with_suffix("").as_posix(), []).append(name.as_posix())
        return cls(base, files, short)

    def name(self, written: str, where: str) -> str:
        """The name with its suffix; as it was written if there is no such file."""
        fitting = [written] if written in self.files else self.short.get(written, [written])
        if len(fitting) > 1:
            raise UserError(
                f"{where}: image {written!r} may be {' or '.join(fitting)}; write the suffix"
            )
        return fitting[0]

    def rename(self, triplet: Triplet, where: str) -> Triplet:
        """The triplet with all its names as `name` gives them."""
        return replace(
            triplet,
            reference=self.name(triplet.reference, where),
            target=self.name(triplet.target, where),
            members=tuple(self.name(n, where) for n in triplet.members),
        )

    def path(self, name: str) -> str:
        """Its file, or the one that is expected."""
        return self.files.get(name, str(self.base / name))

    def paths(self, triplets: Sequence[Triplet]) -> dict[str, str]:
        """The file of every image that the triplets name."""
        return {n: self.path(n) for t in triplets for n in (t.reference, t.target)}


def _triplet(record: dict[str, Any], where: str) -> Triplet:
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
