# SPDX-License-Identifier: Apache-2.0
"""Triplets made without annotators: ours, those of the released project, and imported ones.

A `.jsonl` file holds the neutral records of `cir_jax.positives.folder`. A `.json` file has one of
the released layouts: FashionIQ's (`candidate`, `target`, `captions`), CIRR's (`reference`,
`target_hard`, `caption`), or that of the out-of-domain set (`reference`, `target` as paths). Texts
are used as they are written.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cir_jax.errors import UserError
from cir_jax.positives import folder, shards
from cir_jax.positives.annotations import (
    either,
    field,
    image_name,
    not_empty,
    read_json,
    read_lines,
)
from cir_jax.positives.named_files import NamedFiles
from cir_jax.positives.triplets import Triplet, TripletSet

SOURCE = "generated"


def read(
    files: Sequence[str | Path],
    known: Mapping[str, Any],
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
        two files, or a file holds no record.
    """
    names = NamedFiles(known)
    by_source: dict[str, list[Triplet]] = {}
    paths: dict[str, dict[str, Any]] = {}
    for file in files:
        file = Path(file) if Path(file).is_file() else Path(root) / file
        count = 0
        for count, (one, own) in enumerate(_records(file, llm_captions), start=1):  # noqa: B007
            one = folder.renamed(one, names, one.query_id)
            by_source.setdefault(one.source, []).append(one)
            used = paths.setdefault(one.source, {})
            for name, path in zip((one.reference, one.target), own, strict=True):
                if name in used:
                    continue
                if name in names.files:
                    used[name] = names.files[name]
                elif path:
                    used[name] = shards.place(str(file.parent / path))
                elif images:
                    used[name] = str(Path(images) / name)
                elif path is not None:
                    used[name] = str(Path(root) / name)
        if not count:
            raise UserError(f"{file} holds no triplet; make it anew, or take it out of the list")
    return [TripletSet(s, tuple(triplets), paths[s]) for s, triplets in by_source.items()]


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
            own = (record.get("reference_path"), record.get("target_path"))
            yield one, tuple(path or None for path in own)
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
