# SPDX-License-Identifier: Apache-2.0
"""Annotation files: JSON and JSON lines, with errors that name the file and the record."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cir_jax.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def read_json(path: str | Path, expected: type = list) -> Any:
    """The content of a JSON file whose top level is a list (or dict).

    Raises:
      UserError: no such file, malformed (with the position), or of another type.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no annotation file {path}; `cir-jax doctor` lists what a data set needs")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        record = path.read_text(encoding="utf-8")[: error.pos].count("{")
        raise UserError(
            f"{path} is no JSON: {error.msg} at line {error.lineno}, column {error.colno}, "
            f"near record {max(record - 1, 0)}; fetch the file again"
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error}); fetch the file again") from None
    if not isinstance(content, expected):
        raise UserError(
            f"{path} holds a {type(content).__name__} at its top level, expected a "
            f"{expected.__name__}"
        )
    return content


def read_lines(path: str | Path) -> list[tuple[str, dict[str, Any]]]:
    """Records of a JSON-lines file, each with "file:line" for messages; blank lines are skipped.

    Raises:
      UserError: no such file, or a line that is no JSON object.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no file {path}; write one JSON object per line into it")
    records = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(
                    f"{where} is no JSON ({error.msg}, column {error.colno}); correct that line"
                ) from None
            if not isinstance(record, dict):
                raise UserError(f"{where} is a {type(record).__name__}, expected a JSON object")
            records.append((where, record))
    return records


def field(record: dict[str, Any], key: str, where: str) -> Any:
    """`record[key]`, or a UserError that names the record and the keys it has."""
    if not isinstance(record, dict):
        raise UserError(f"{where} is a {type(record).__name__}, expected an object with {key!r}")
    if key not in record:
        raise UserError(f"{where} has no {key!r}; it has: {', '.join(record) or 'nothing'}")
    return record[key]


def not_empty(texts: Iterable[str], where: str) -> tuple[str, ...]:
    """The texts that are not blank.

    Raises:
      UserError: none is left, or one is no text.
    """
    texts = tuple(texts)
    wrong = [t for t in texts if not isinstance(t, str)]
    if wrong:
        raise UserError(f"{where}: {wrong[0]!r} is no text")
    kept = tuple(t for t in texts if t.strip())
    if not kept:
        raise UserError(f"{where} has no text; remove the record or give it one")
    return kept


def image_files(folder: str | Path, depth: int = 1) -> dict[str, str]:
    """Name without suffix -> path, for all images in `folder` and `depth` levels below it.

    One listing per folder instead of a question per image: data sets lie on network disks.
    """
    found: dict[str, str] = {}
    below = []
    try:
        entries = sorted(os.scandir(folder), key=lambda e: e.name)
    except (FileNotFoundError, NotADirectoryError):
        return found
    for entry in entries:
        stem, suffix = os.path.splitext(entry.name)
        if suffix.lower() in SUFFIXES:
            found.setdefault(stem, entry.path)
        elif depth and entry.is_dir():
            below.append(entry.path)
    for path in below:
        for stem, file in image_files(path, depth - 1).items():
            found.setdefault(stem, file)
    return found
