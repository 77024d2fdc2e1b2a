# SPDX-License-Identifier: Apache-2.0
"""Files that list images and their captions: titles, alt texts, crawled sets, earlier captions.

    .jsonl  one object per line           .json  a list of objects, or {name: caption}
    .csv .tsv  with a header              .tar   shards of NAME.jpg + NAME.txt or NAME.json

Which key says what is found by its name; `text_field` names the one of the text where it is
another (a dot goes one level down).
"""

import csv
import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cir_jax.errors import UserError
from cir_jax.positives import shards
from cir_jax.positives.annotations import not_empty, read_json, read_lines

SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".tar")
NAME_KEYS = ("image_id", "image_name", "url", "name", "image", "image_path", "file_name", "path")
PATH_KEYS = ("image_path", "path", "file_name", "image", "name")
TEXT_KEYS = ("caption", "captions", "caption.en", "title", "alt_text", "alt", "text")


@dataclass(frozen=True)
class Entry:
    """One image of a list.

    Attributes:
      name: of the image.
      path: its file, or an image in a shard; "" if the record gives none.
      texts: its captions; () if it has none.
      where: names the record in messages.
    """

    name: str
    path: Any
    texts: tuple[str, ...]
    where: str


def expand(files: Sequence[str]) -> list[str]:
    """The files that names, patterns and folders mean, sorted within each.

    Raises:
      UserError: one means no file, or a file of another kind.
    """
    found: list[str] = []
    for name in files:
        if Path(name).is_dir():
            fitting = sorted(str(p) for p in Path(name).iterdir() if p.suffix in SUFFIXES)
        else:
            fitting = sorted(glob.glob(name)) or ([name] if Path(name).is_file() else [])
        if not fitting:
            raise UserError(
                f"{name} is no file, and no folder with {', '.join(SUFFIXES)} files in it"
            )
        found += fitting
    for name in found:
        if Path(name).suffix not in SUFFIXES:
            raise UserError(f"{name} is none of {', '.join(SUFFIXES)}; convert it to .jsonl")
    return list(dict.fromkeys(found))


def entries(files: Sequence[str], root: str = "", text_field: str = "") -> Iterator[Entry]:
    """The records of all files, one in memory at a time (but for .json).

    Args:
      files: see `expand`.
      root: folder that paths are relative to; each file's own if "".
      text_field: key of the text, see the module.

    Raises:
      UserError: a record has no name, a text that is none, or nothing under `text_field`.
    """
    for file in files:
        base = Path(root) if root else Path(file).parent
        if file.endswith(".tar"):
            for name, image, record in shards.samples(file):
                where = f"{file}:{name}"
                yield Entry(name, image, _texts(record, text_field, where), where)
            continue
        for where, record in _records(Path(file)):
            name = _first(record, NAME_KEYS)
            if not isinstance(name, str | int) or name == "":
                raise UserError(
                    f"{where} names no image; it has: {', '.join(record)}, and one of "
                    f"{', '.join(NAME_KEYS)} is expected"
                )
            path = _first(record, PATH_KEYS)
            path = str(base / path) if isinstance(path, str) and path else ""
            yield Entry(str(name), path, _texts(record, text_field, where), where)


def _records(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if file.suffix == ".jsonl":
        yield from read_lines(file)
    elif file.suffix == ".json":
        yield from _json(file)
    else:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            rows = csv.DictReader(lines, delimiter="\t" if file.suffix == ".tsv" else ",")
            try:
                for row in rows:
                    where = f"{file}:{rows.line_num}"
                    if None in row or None in row.values():
                        raise UserError(
                            f"{where} has another number of columns than the header "
                            f"({', '.join(rows.fieldnames or ())}); quote texts with commas"
                        )
                    yield where, row
            except (csv.Error, UnicodeDecodeError) as error:
                raise UserError(
                    f"{file} cannot be read after line {rows.line_num} ({error}); save it as CSV "
                    "in UTF-8"
                ) from None


def _json(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    content = read_json(file, (list, dict))
    if isinstance(content, dict):
        content = [{"image": n, "caption": t, "image_id": n} for n, t in content.items()]
    for number, record in enumerate(content):
        where = f"{file} record {number}"
        if not isinstance(record, dict):
            raise UserError(f"{where} is a {type(record).__name__}, expected an object")
        yield where, record


def _texts(record: dict[str, Any], text_field: str, where: str) -> tuple[str, ...]:
    if text_field:
        text = _walk(record, text_field)
        if text is None:
            raise UserError(f"{where} has no {text_field!r}; it has: {', '.join(record)}")
    else:
        text = _first(record, TEXT_KEYS)
    if text is None or text == "" or text == []:
        return ()
    texts = not_empty(text, where, blank=True)
    return tuple(t.strip() for t in texts if t.strip())


def _first(record: dict[str, Any], keys: Sequence[str]) -> Any:
    return next((v for v in (_walk(record, k) for k in keys) if v is not None), None)


def _walk(record: Any, key: str) -> Any:
    """`record[key]`, or, where there is none and the key has dots, one level down at each."""
    if isinstance(record, dict) and key in record:
        return record[key]
    first, dot, rest = key.partition(".")
    if dot and isinstance(record, dict) and first in record:
        return _walk(record[first], rest)
    return None
