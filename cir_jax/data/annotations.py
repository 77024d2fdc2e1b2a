# SPDX-License-Identifier: Apache-2.0
"""Annotation files: JSON and JSON lines, with errors that name the file and the record."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cir_jax.data import json_files, text_files
from cir_jax.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_BETWEEN = re.compile(r"[\s,]*")  # records of a list


def read_json(
    path: str | Path, expected: type | tuple[type, ...] = list, packed: bool = False
) -> Any:
    """The content of a JSON file whose top level is a list (or what `expected` says).

    Where a list is expected, a file of one record per line is read as the list of them.

    Args:
      path: the file.
      expected: types of its top level.
      packed: it may be compressed by gzip.

    Raises:
      UserError: no such file, malformed (with the position), of another type, or something that
        `json_files` refuses (with the record).
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no annotation file {path}; `cir-jax doctor` lists what a data set needs")
    text = text_files.read(path, packed)
    kinds = expected if isinstance(expected, tuple) else (expected,)
    try:
        content = json_files.loads(text, printable=True)
    except ValueError as found:
        if list in kinds and _is_lines(text, found):
            return [record for _, record in read_lines(path)]
        record, wrong = _in_record(text, found)
        if isinstance(wrong, json.JSONDecodeError):
            raise UserError(
                f"{path} is no JSON: {wrong.msg} at line {wrong.lineno}, column {wrong.colno}"
                f"{record}; fetch the file again"
            ) from None
        raise UserError(f"{path}{record}: {wrong}; correct that or fetch the file again") from None
    if not isinstance(content, expected):
        raise UserError(
            f"{path} holds a {type(content).__name__} at its top level, expected a "
            f"{' or '.join(kind.__name__ for kind in kinds)}; name another file, or fetch it again"
        )
    return content


def read_lines(
    path: str | Path, lone_surrogates: bool = False
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Records of a JSON-lines file, each with "file:line" for messages; blank lines are skipped.

    One record is in memory at a time: files of generated triplets hold millions. A file that holds
    one list of objects is read as well, whole.

    Args:
      path: the file.
      lone_surrogates: read them, and control characters; see `json_files.loads`.

    Raises:
      UserError: no such file, or a line that is no JSON object or that `json_files` refuses.
    """
    path = Path(path)
    if not path.is_file():
        if not path.parent.is_dir():
            raise UserError(f"no file {path}: {path.parent} is no folder; correct its path")
        raise UserError(f"no file {path}; write one JSON object per line into it")
    if text_files.start(path).startswith("[") and _is_list(path):
        for number, record in enumerate(read_json(path)):
            yield f"{path} record {number}", _checked(record, f"{path} record {number}")
        return
    for number, line in text_files.lines(path):
        if line.strip():
            where = f"{path}:{number}"
            yield where, parsed(line, where, lone_surrogates)


def field(record: dict[str, Any], key: str, where: str) -> Any:
    """`record[key]`, or a UserError that names the record and the keys it has."""
    if not isinstance(record, dict):
        raise UserError(
            f"{where} is a {type(record).__name__}, expected an object with {key!r}; correct that "
            "record"
        )
    if key not in record:
        raise UserError(f"{where} has no {key!r}; it has: {', '.join(record) or 'nothing'}")
    return record[key]


def either(record: Any, first: str, second: str) -> str:
    """The key a record uses where layouts differ: `first` if it has it, else `second`."""
    return first if isinstance(record, dict) and first in record else second


def image_name(record: dict[str, Any], key: str, where: str) -> str:
    """The image that `record[key]` names.

    Raises:
      UserError: there is none. A null or "" must not pass: inside the program "" means that there
        is no such image, and the triplet would train on label -1.
    """
    name = field(record, key, where)
    if not isinstance(name, str) or not name:
        raise UserError(
            f"{where}: {key!r} is {name!r}, expected the name of an image; correct that record"
        )
    return _one_line(name, where)


def image_names(record: dict[str, Any], key: str, where: str) -> tuple[str, ...]:
    """The images that the list `record[key]` names.

    Raises:
      UserError: it is no list of names.
    """
    names = field(record, key, where)
    if not isinstance(names, list) or not all(isinstance(n, str) and n for n in names):
        raise UserError(
            f"{where}: {key!r} is {names!r}, expected a list of image names; correct that record"
        )
    return tuple(_one_line(name, where) for name in names)


def _one_line(name: str, where: str) -> str:
    """A name, or a UserError if it has characters that no name should have."""
    if not name.isprintable():
        line_end = next((c for c in name if c in "\t\n\r"), "")
        wrong = f"{line_end!r} is no part of a name" if line_end else text_files.fault(name)
        if wrong:
            raise UserError(f"{where}: image {name!r}: {wrong}; rename the file")
    return name


def not_empty(texts: Any, where: str, blank: bool = False) -> tuple[str, ...]:
    """The texts that are not blank, of one text or a list of them; with `blank`, all.

    Raises:
      UserError: none is left, one is no text, or one has characters that no text should have.
    """
    texts = tuple(texts) if isinstance(texts, list | tuple) else (texts,)
    for text in texts:
        if not isinstance(text, str):
            raise UserError(
                f"{where}: {text!r} is no text; write it in quotes, or remove the record"
            )
        if wrong := text_files.fault(text):
            raise UserError(f"{where}: {text!r}: {wrong}; correct the text")
    kept = tuple(t for t in texts if blank or t.strip())
    if not kept:
        raise UserError(f"{where} has no text; remove the record or give it one")
    return kept


def _is_lines(text: str, error: ValueError) -> bool:
    """Whether a text that is no JSON because of `error` holds one object per line."""
    extra = isinstance(error, json.JSONDecodeError) and error.msg == "Extra data"
    return extra and text.lstrip().startswith("{")


def _is_list(path: Path) -> bool:
    """Whether a file that begins with [ is one list, and not a line of JSON lines that is none."""
    text = text_files.read(path)
    try:
        json_files.loads(text)
    except json.JSONDecodeError as error:
        return error.msg != "Extra data"
    except ValueError:
        return True
    return text.strip() != "[]"


def _checked(record: Any, where: str) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise UserError(
            f"{where} is a {type(record).__name__}, expected a JSON object; write the record as "
            '{"field": value, ...}, or remove it'
        )
    return record


def parsed(line: str, where: str, lone_surrogates: bool) -> dict[str, Any]:
    """The record of one line, named `where` in messages; see `read_lines`.

    Raises:
      UserError: it is no JSON object, or one that `json_files` refuses.
    """
    try:
        record = json_files.loads(line, lone_surrogates, printable=not lone_surrogates)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{where} is no JSON ({error.msg}, column {error.colno}); correct that line"
        ) from None
    except ValueError as error:
        raise UserError(f"{where}: {error}; correct that line") from None
    return _checked(record, where)


def _in_record(text: str, error: ValueError) -> tuple[str, ValueError]:
    """(", record N" of a JSON list that is refused with `error`, what is wrong with that record).

    The text is "" if it is no list.
    """
    if not text.lstrip().startswith("["):
        return "", error
    end, count = text.index("[") + 1, 0
    while True:
        try:
            between = _BETWEEN.match(text, end)
            start = between.end() if between else end
            _, end = json_files.decode(text, start, printable=True)
        except ValueError as found:
            malformed = isinstance(found, json.JSONDecodeError)
            if malformed and not isinstance(error, json.JSONDecodeError):
                return "", error  # the end of the list: only its nesting was one level too deep
            return f", record {count}", found
        if end > getattr(error, "pos", len(text)):
            return f", record {count}", error
        count += 1
