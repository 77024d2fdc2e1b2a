# SPDX-License-Identifier: Apache-2.0
"""What an importer is: how a record of another project becomes a neutral one, or why it cannot.

An importer is one module of `cir_jax.datasets.importers` (or a file of yours) that defines

    convert(record)   one record as read -> the neutral record: `neutral(...)` builds it, `Refused`
                      says why there is none

and, where it has them,

    HELP              one line for `cir-jax triplets --help`
    PATTERNS          names of the files that are taken where the source is a folder; else all
    KEYS              tuples of field names; a record that has all of one tuple is of this format
    OPTIONS           {name: help} of further keyword arguments of `convert`, which are strings
    records(path)     in place of `streams.records`: yields ("file:number", record), or what is
                      wrong with the record instead of it

Everything else is the same for all formats and lies in `importing`.
"""

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from cir_jax import plugins

PACKAGE = "cir_jax.datasets.importers"

NO_REFERENCE = "no reference"
NO_TARGET = "no target"
NO_TEXT = "no text"
SAME = "reference equals target"
MISSING = "image missing"
MALFORMED = "malformed record"
DUPLICATE = "duplicate"


class Refused(Exception):
    """A record that becomes no triplet.

    Attributes:
      reason: one of the constants above; refusals are counted by it.
      detail: what exactly is wrong.
    """

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def names() -> list[str]:
    """The formats there are."""
    return plugins.available(PACKAGE)


def load(name: str) -> ModuleType:
    """The importer of a format, e.g. "megapairs", or of a Python file.

    Raises:
      UserError: no such importer; what exists is listed.
    """
    return plugins.load(PACKAGE, name, marker="convert")


def neutral(
    reference: str, target: str, texts: Sequence[str], meta: Mapping[str, Any], name: str = ""
) -> dict[str, Any]:
    """A neutral record. Entries of `meta` that are None or empty are left out; `name` is its id."""
    record: dict[str, Any] = {"reference": reference, "target": target}
    record |= {"text": texts[0]} if len(texts) == 1 else {"texts": list(texts)}
    if name:
        record["id"] = name
    kept = {key: value for key, value in meta.items() if value not in (None, "", [], {})}
    return record | ({"meta": kept} if kept else {})


def image(record: Mapping[str, Any], key: str, reason: str) -> str:
    """The image that `record[key]` names.

    Raises:
      Refused: for `reason` if it names none.
    """
    name = record.get(key)
    if name is None or name == "":
        raise Refused(reason, f"{key!r} is {name!r}" if key in record else _lacks(record, key))
    if not isinstance(name, str):
        raise Refused(MALFORMED, f"{key!r} is {name!r}, expected the name of an image")
    return name


def texts(record: Mapping[str, Any], *keys: str) -> list[str]:
    """The texts of `record` under the first of `keys` that it has, blank ones left out.

    Raises:
      Refused: there is none, or one is no text.
    """
    key = next((k for k in keys if k in record), None)
    if key is None:
        raise Refused(NO_TEXT, _lacks(record, " or ".join(keys)))
    found = record[key] if isinstance(record[key], list) else [record[key]]
    wrong = [t for t in found if not isinstance(t, str | None)]
    if wrong:
        raise Refused(MALFORMED, f"{key!r} holds {wrong[0]!r}, which is no text")
    kept = [t for t in found if t and t.strip()]
    if not kept:
        raise Refused(NO_TEXT, f"{key!r} is {record[key]!r}")
    return kept


def _lacks(record: Mapping[str, Any], key: str) -> str:
    return f"no {key}; it has: {', '.join(record) or 'nothing'}"
