# SPDX-License-Identifier: Apache-2.0
"""Triplets made without annotators: ours, those of the released project, and imported ones.

A `.jsonl` file holds the neutral records of `cir_jax.datasets.readers.folder`. A `.json` file has
one of the released layouts: FashionIQ's (`candidate`, `target`, `captions`), CIRR's (`reference`,
`target_hard`, `caption`), or that of the out-of-domain set (`reference`, `target` as paths). Texts
are used as they are written.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cir_jax.data import places
from cir_jax.data.annotations import either, field, image_name, not_empty, read_json, read_lines
from cir_jax.data.pixels import Crop, ImageFile, Packed
from cir_jax.data.triplets import Triplet, TripletSet
from cir_jax.datasets import shards
from cir_jax.datasets.named_files import NamedFiles
from cir_jax.datasets.readers import folder
from cir_jax.errors import UserError

SOURCE = "generated"


def read(
    files: Sequence[str | Path],
    known: Mapping[str, ImageFile],
    root: str | Path,
    llm_captions: bool = False,
    images: str | Path = "",
) -> list[TripletSet]:
    """The triplets of some files, one set per source, in the order they come.

    Args:
      files: .jsonl or .json; relative to `root` if they do not exist as given.
      known: image name -> file, of the data set the triplets extend.
      root: folder of that data set.
      llm_captions: use a record's `llm_caption` instead of its template texts.
      images: folder in which names are looked up that `known` lacks; "" = only the released
        out-of-domain layout may name such images, by paths relative to `root`.

    Raises:
      UserError: a record lacks a field or a text (the file and the record are named), a name fits
        two files, one name means two different pictures, or a file holds no record.
    """
    names = NamedFiles(known)
    found = _Places(names.files, root, images, files)
    by_source: dict[str, list[Triplet]] = {}
    paths: dict[str, dict[str, ImageFile]] = {}
    for file in files:
        file = Path(file) if Path(file).is_file() else Path(root) / file
        count = 0
        for count, (one, own) in enumerate(_records(file, llm_captions), start=1):  # noqa: B007
            one = folder.renamed(one, names, one.query_id)
            by_source.setdefault(one.source, []).append(one)
            used = paths.setdefault(one.source, {})
            for name, path in zip((one.reference, one.target), own, strict=True):
                place = found.find(name, path, file, one.query_id)
                if place is not None:
                    used[name] = place
            for name in one.truths[1:]:  # of a record with several right answers
                place = found.find(name, None, file, one.query_id)
                if place is not None:
                    used[name] = place
        if not count:
            raise UserError(f"{file} holds no triplet; make it anew, or take it out of the list")
    return [TripletSet(s, tuple(triplets), paths[s]) for s, triplets in by_source.items()]


class _Places:
    """Finds the file of every image; a name must mean one picture in all files of triplets."""

    def __init__(
        self,
        known: Mapping[str, ImageFile],
        root: str | Path,
        images: str | Path,
        files: Sequence[str | Path],
    ):
        self._found: dict[str, ImageFile] = dict(known)
        self._root, self._images = root, images
        homes = [Path(file).parent for file in files if Path(file).is_file()]
        # Without a config nobody has said where images may lie; the caller named the files.
        allowed = places.roots(root, images, *homes)
        anywhere = places.Roots((), everywhere=True)
        self._written = places.Written(allowed if places.in_effect() else anywhere)
        self._seen: dict[str, str] = {}  # name -> the last path that was compared

    def find(self, name: str, path: str | None, file: Path, record: str) -> ImageFile | None:
        """The file of `name`; None if neither the data set nor the record says which.

        Args:
          name: of the image.
          path: what its record says: a path, None for nothing, "" if the name is one.
          file: of the record.
          record: its name.

        Raises:
          UserError: the record's path is another picture than this name meant before, or leads out
            of the roots.
        """
        if name not in self._found:
            if path:
                self._found[name] = self._place(file.parent, path, file, record)
            elif self._images or path is not None:
                base = Path(self._images or self._root)
                self._found[name] = self._place(base, name, file, record)
        elif path and self._seen.get(name) != (written := str(file.parent / path)):
            self._seen[name] = written
            if _differ(self._found[name], self._place(file.parent, path, file, record)):
                raise UserError(
                    f"{file}: image {name!r} is {written}, and {self._found[name]} before; one "
                    "name cannot be two images: rename one of them and make the triplets anew"
                )
        return self._found.get(name)

    def _place(self, base: Path, written: str, file: Path, record: str) -> str | shards.TarImage:
        where = record if record.startswith(f"{file}:") else f"{file}: triplet {record}"
        return shards.place(written, lambda path: self._written.file(base, path, where))


def _differ(one: ImageFile, other: ImageFile) -> bool:
    """Whether two files hold different pictures; not if one is missing, which others report."""
    if str(one) == str(other):
        return False
    if isinstance(one, Crop) or isinstance(other, Crop):  # a part, and a whole or another part
        return True
    try:
        if isinstance(one, str) and isinstance(other, str) and os.path.samefile(one, other):
            return False
        return _content(one) != _content(other)
    except OSError:
        return False


def _content(place: str | Packed) -> bytes:
    return (Path(place) if isinstance(place, str) else place).read_bytes()


def _records(
    file: Path, llm_captions: bool
) -> Iterator[tuple[Triplet, tuple[str | None, str | None]]]:
    """Triplets, each with the paths its record gives: None = none, "" = the names are paths."""
    if file.suffix == ".jsonl":
        for where, record in read_lines(file):
            one = folder.triplet({"source": SOURCE, **record}, where)
            if llm_captions:
                meta = field(record, "meta", where)
                texts = not_empty(field(meta, "llm_caption", where), where)
                one = replace(one, texts=texts, eval_text=texts[0])
            yield one, (_path(record, "reference_path", where), _path(record, "target_path", where))
        return
    for number, record in enumerate(read_json(file)):
        where = f"{file} record {number}"
        reference = image_name(record, either(record, "candidate", "reference"), where)
        target = image_name(record, either(record, "target_hard", "target"), where)
        key = "llm_caption" if llm_captions else either(record, "captions", "caption")
        texts = not_empty(field(record, key, where), where)
        named = "reference_name" in record  # the out-of-domain layout: names are paths
        one = Triplet(reference, target, texts, texts[0], SOURCE, f"{file.name}/{number}")
        yield one, ("", "") if named else (None, None)


def _path(record: dict[str, Any], key: str, where: str) -> str | None:
    path = record.get(key)
    if path is not None and not isinstance(path, str):
        raise UserError(f"{where}: {key!r} is {path!r}, expected a path; correct that record")
    return path or None
