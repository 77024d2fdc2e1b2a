# SPDX-License-Identifier: Apache-2.0
"""Triplets made without annotators: ours, those of the released project, and imported ones.

A `.jsonl` file or a `.parquet` table holds the neutral records of
`cir_jax.datasets.readers.folder`. A `.json` file has
one of the released layouts: FashionIQ's (`candidate`, `target`, `captions`), CIRR's (`reference`,
`target_hard`, `caption`), or that of the out-of-domain set (`reference`, `target` as paths). Texts
are used as they are written. Large files are read as columns, which lie in a mapped file that is
made of them once (`cir_jax.datasets.conversion`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cir_jax.data import text_files
from cir_jax.data.annotations import either, field, image_name, not_empty, read_json, read_lines
from cir_jax.data.column_images import Images
from cir_jax.data.pixels import ImageFile
from cir_jax.data.triplet_columns import Columns, Part, Share
from cir_jax.data.triplets import Triplet, TripletSet
from cir_jax.datasets import conversion, placing
from cir_jax.datasets.importing.shards import parquet
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
      files: .jsonl, .parquet or .json; relative to `root` if they do not exist as given.
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
    found = placing.Places(names.files, root, images, files)
    there = [Path(file) if Path(file).is_file() else Path(root) / file for file in files]
    if any(conversion.is_large(file) for file in there if file.is_file()):
        return _columns(there, names, found, llm_captions)
    by_source: dict[str, list[Triplet]] = {}
    paths: dict[str, dict[str, ImageFile]] = {}
    for file in there:
        count = 0
        for count, (one, own, _, _) in enumerate(_records(file, llm_captions), 1):  # noqa: B007
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
            raise _empty(file)
    return [TripletSet(s, tuple(triplets), paths[s]) for s, triplets in by_source.items()]


def _columns(
    files: Sequence[Path], names: NamedFiles, found: placing.Places, llm_captions: bool
) -> list[TripletSet]:
    """As `read`, of files of which one is large: no triplet is held in memory."""
    parts: list[Part] = []
    for file in files:
        part = conversion.part(file, llm_captions, lambda f: _records(f, llm_captions))
        if not len(part):
            raise _empty(file)
        placing.rename(part, names)
        parts.append(part)
    images = placing.images(parts, found)
    by_source: dict[str, list[Share]] = {}
    for part in parts:
        for source, share in part.by_source():
            by_source.setdefault(source, []).append(share)
    sets = []
    for source, shares in by_source.items():
        triplets = Columns(shares)
        sets.append(TripletSet(source, triplets, Images(triplets, images)))
    return sets


def _empty(file: Path) -> UserError:
    return UserError(f"{file} holds no triplet; make it anew, or take it out of the list")


def _records(file: Path, llm_captions: bool) -> Iterator[conversion.Record]:
    if file.suffix in (".jsonl", ".parquet"):
        for where, record in _rows(file) if file.suffix == ".parquet" else read_lines(file):
            one = folder.triplet({"source": SOURCE, **record}, where)
            if llm_captions:
                meta = field(record, "meta", where)
                texts = not_empty(field(meta, "llm_caption", where), where)
                one = replace(one, texts=texts, eval_text=texts[0])
            paths = _path(record, "reference_path", where), _path(record, "target_path", where)
            yield conversion.Record(one, paths, where, "id" in record)
        return
    for number, record in enumerate(read_json(file)):
        where = f"{file} record {number}"
        reference = image_name(record, either(record, "candidate", "reference"), where)
        target = image_name(record, either(record, "target_hard", "target"), where)
        key = "llm_caption" if llm_captions else either(record, "captions", "caption")
        texts = not_empty(field(record, key, where), where)
        named = "reference_name" in record  # the out-of-domain layout: names are paths
        called = f"{file.name}/{number}"
        one = Triplet(reference, target, texts, texts[0], SOURCE, called)
        yield conversion.Record(one, ("", "") if named else (None, None), called, False)


def _rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Neutral records of a Parquet table; an empty cell is a field that a record lacks."""
    if not file.is_file():
        raise UserError(f"no file {file}; correct its path")
    for where, row in parquet(file):
        if isinstance(row, str):
            raise UserError(f"{where}: {row}; correct that row")
        record = {key: value for key, value in row.items() if value is not None}
        for key in ("source", "id"):
            if wrong := text_files.fault(str(record.get(key, ""))):
                raise UserError(f"{where}: {key} {record[key]!r}: {wrong}; correct that row")
        yield where, record


def _path(record: dict[str, Any], key: str, where: str) -> str | None:
    path = record.get(key)
    if path is not None and not isinstance(path, str):
        raise UserError(f"{where}: {key!r} is {path!r}, expected a path; correct that record")
    return path or None
