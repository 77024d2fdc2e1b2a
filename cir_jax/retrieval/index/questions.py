# SPDX-License-Identifier: Apache-2.0
"""Queries with known right answers, kept with an index: a page can mark these, and tell their rank.

    queries.jsonl    {"reference": name, "text", "targets": [names]}

They come from JSON lines as the data set "folder" reads them. They are kept by name: an image that
has changed gets another id, and a query is still about it.
"""

import json
import os
from pathlib import Path
from typing import Any

from cir_jax import files, progress
from cir_jax.data.annotations import read_lines
from cir_jax.datasets.readers import folder as neutral
from cir_jax.errors import UserError
from cir_jax.retrieval.index import found as looking
from cir_jax.retrieval.index import records
from cir_jax.retrieval.index.catalogue import Catalogue
from cir_jax.retrieval.index.found import Found
from cir_jax.retrieval.index.options import Gallery


def write(folder: Path, record: dict[str, Any], found: Found) -> None:
    """Writes the queries that the record of an index names, if they are others than before.

    Raises:
      UserError: the file is missing, or a line of it is no query.
    """
    path = folder / records.QUERIES
    source = record["queries"]
    if not source:
        if not record["benchmark"]:
            path.unlink(missing_ok=True)
        return
    if not os.path.isfile(source):
        raise UserError(f"{source} is no file; name one of JSON lines, or give --queries ''")
    known = looking.named_files(found.folder, found.listing)
    lines = []
    for where, line in read_lines(source):
        one = neutral.renamed(neutral.triplet(line, where), known, where)
        targets = [known.listing.same.get(n, n) for n in one.truths or (one.target,)]
        reference = known.listing.same.get(one.reference, one.reference)
        lines.append({"reference": reference, "text": one.eval_text, "targets": targets})
    put(path, lines)


def keep(folder: Path, gallery: Gallery) -> None:
    """Writes the names and queries of a benchmark.

    Raises:
      UserError: the disk is full.
    """
    put(folder / records.GALLERY, [{"image": name} for name in gallery.names])
    put(folder / records.QUERIES, list(gallery.queries))


def names(folder: Path) -> list[str]:
    """Names of the images of a benchmark.

    Raises:
      UserError: the file is damaged, or cannot be read.
    """
    return [line["image"] for line in records.lines(folder / records.GALLERY)]


def put(path: Path, lines: list[dict[str, Any]]) -> None:
    """Writes queries by names.

    Raises:
      UserError: the disk is full.
    """
    content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
    if not path.is_file() or path.read_bytes() != content:
        files.put(path, content)


def read(folder: Path, images: Catalogue) -> list[dict[str, Any]]:
    """[{"reference": id, "text", "targets": [ids]}] of the queries that an index can answer.

    A query whose reference, or all of whose targets, the index does not have is left out, and said.

    Raises:
      UserError: the file is damaged, or cannot be read.
    """
    held = records.lines(folder / records.QUERIES)
    names = [name for line in held for name in (line["reference"], *line["targets"])]
    numbers = dict(zip(names, images.numbers_of(names), strict=True))
    found = []
    for line in held:
        targets = [n for name in line["targets"] if (n := numbers[name]) is not None]
        if numbers[line["reference"]] is not None and targets:
            found.append(
                {"reference": numbers[line["reference"]], "text": line["text"], "targets": targets}
            )
    if len(found) < len(held):
        progress.say(
            f"{folder}: {len(held) - len(found):,} of {len(held):,} queries are about images that "
            "the index does not have"
        )
    return found
