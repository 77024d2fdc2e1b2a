# SPDX-License-Identifier: Apache-2.0
"""What tables say of images: titles, prices, categories, as columns to show and to filter by.

A column is one type, decided by all of its values together:

    boolean   true and false, in any case
    number    numbers; in CSV and TSV what is written like one: 12, -0.5, 1e3, without spaces,
              separators of thousands, or leading zeros (007 is a text). Whole numbers stay whole
    text      everything else; lists and objects of JSON are kept as JSON

Nothing, blank text and numbers that are not finite are no value. The column that names the image is
no field, and a column called "name" is the field "name_", because the name of an image is `name`
("name_" is then "name__", so that no two columns become one).
"""

import datetime
import decimal
import json
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from cir_jax import progress
from cir_jax.data import places
from cir_jax.datasets import image_lists
from cir_jax.datasets.image_lists import Entry
from cir_jax.datasets.named_files import NamedFiles
from cir_jax.errors import UserError
from cir_jax.retrieval.index import found as looking

DUPLICATES = ("error", "first", "last")
MOST = 256  # fields
_SHOWN = 10  # records that cannot be read
_NUMBER = re.compile(r"[+-]?(0|[1-9][0-9]*)?(\.[0-9]+|\.)?([eE][+-]?[0-9]+)?")
_WHOLE = re.compile(r"[+-]?(0|[1-9][0-9]*)")
_LARGEST = 1 << 63


class Columns:
    """The fields of the images of some tables.

    Args:
      tables: as `image_lists.entries` takes them, and .parquet.
      known: what names mean.
      duplicates: of DUPLICATES: what to do where two records of one image differ.

    Raises:
      UserError: a record cannot be read, two records of one image differ, there are too many
        columns, or no record is of a known image.
    """

    def __init__(self, tables: Sequence[str], known: NamedFiles, duplicates: str = "error"):
        self._numbers: dict[str, int] = {}  # image -> its place in the columns
        self._columns: dict[str, list[Any]] = {}
        self._known, self._duplicates = known, duplicates
        self._unknown: list[str] = []
        self._wrong: list[str] = []
        self._where: dict[int, str] = {}
        for table in tables:
            self._read(table)
        if self._wrong:
            lines = "\n  ".join(self._wrong[:_SHOWN])
            more = len(self._wrong) - _SHOWN
            raise UserError(
                f"{len(self._wrong):,} records cannot be used:\n  {lines}"
                + (f"\n  and {more:,} more" if more > 0 else "")
            )

    def _read(self, table: str) -> None:
        if not Path(table).is_file():
            raise UserError(
                f"{table} is no file; name a table of the images (.csv, .parquet, ...), or give "
                "--titles without any"
            )
        for entry in image_lists.entries([table], wrong=self._wrong.append):
            try:
                name = looking.name_of(entry, self._known)
                name = self._known.listing.same.get(name, name)
                if name not in self._known.files:
                    self._unknown.append(f"{entry.where} ({entry.name})")
                    continue
                self._add(name, entry)
            except UserError as error:
                self._wrong.append(str(error))

    def _add(self, name: str, entry: Entry) -> None:
        values = {
            apart(key, "name"): value
            for key, value in ((key, cleaned(value)) for key, value in entry.record.items())
            if value is not None and not self._names(value, name, entry)
        }
        place = self._numbers.get(name)
        if place is None:
            place = self._numbers[name] = len(self._numbers)
            self._where[place] = entry.where
        for key, value in values.items():
            column = self._columns.setdefault(key, [])
            if len(self._columns) > MOST:
                raise UserError(
                    f"{entry.where}: there are more than {MOST} columns; take out those that "
                    "nobody shows or filters by"
                )
            if len(column) <= place:
                column.extend([None] * (place + 1 - len(column)))
            before = column[place]
            if before is None or self._duplicates == "last":
                column[place] = value
            elif before != value and self._duplicates == "error":
                raise UserError(
                    f"{entry.where}: image {name!r} has {key} {before!r} in {self._where[place]}, "
                    f"and {value!r} here; set --duplicates first or last"
                )

    def _names(self, value: Any, name: str, entry: Entry) -> bool:
        """Whether a value is how the record names its image."""
        if not isinstance(value, str) or value not in entry.names or places.is_address(value):
            return False
        return value == name or self._known.name(value, entry.where) == name

    def say(self, what: str) -> None:
        """Says what was left out.

        Raises:
          UserError: no record is of a known image.
        """
        if self._unknown and not self._numbers:
            raise UserError(
                f"no record of {what} is of an image that is there, such as "
                f"{next(iter(self._known.files), '')!r}; the first is {self._unknown[0]}: name "
                "images as their files are called"
            )
        if self._unknown:
            progress.say(
                f"{what}: {len(self._unknown):,} records are of images that are not there, "
                f"{self._unknown[0]} the first"
            )

    def table(self, names: Sequence[str]) -> pa.Table:
        """The fields of images, in the order of their names; columns without any value left out."""
        places = [self._numbers.get(name) for name in names]
        found = {}
        for key, column in self._columns.items():
            held = [
                None if place is None or place >= len(column) else column[place] for place in places
            ]
            if any(value is not None for value in held):
                found[key] = typed(held)
        return pa.table(found)


def apart(key: str, own: str) -> str:
    """A column's name beside a column of ours called `own`: that, and those like it, get a "_"."""
    return f"{key}_" if key.rstrip("_") == own else key


def types(fields: pa.Table) -> tuple[dict[str, str], ...]:
    """[{"name", "type"}] of fields."""
    words = {"string": "text", "bool": "boolean"}
    return tuple(
        {"name": one.name, "type": words.get(str(one.type), "number")} for one in fields.schema
    )


def cleaned(value: Any) -> Any:
    """A value of a table as it is kept; None for no value."""
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, decimal.Decimal):
        return float(value) if value.is_finite() else None
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False, default=str) if value else None
    return str(value)


def typed(values: Sequence[Any]) -> pa.Array:
    """A column of the type that all of its values are of, see the module."""
    there = [value for value in values if value is not None]
    if all(map(_is_boolean, there)):
        return pa.array([None if v is None else str(v).lower() == "true" for v in values])
    if all(map(_is_number, there)):
        if all(map(_is_whole, there)):
            return pa.array([None if v is None else int(v) for v in values], pa.int64())
        return pa.array([None if v is None else float(v) for v in values], pa.float64())
    return pa.array([None if v is None else _as_text(v) for v in values], pa.string())


def _is_boolean(value: Any) -> bool:
    return isinstance(value, bool) or (
        isinstance(value, str) and value.lower() in ("true", "false")
    )


def _is_number(value: Any) -> bool:
    if isinstance(value, str):
        digits = any(letter.isdigit() for letter in value)
        return digits and _NUMBER.fullmatch(value) is not None and math.isfinite(float(value))
    # A whole number of JSON may be larger than any float: it is a text, as 1e999 in a CSV is.
    return not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_whole(value: Any) -> bool:
    if isinstance(value, str):
        return _WHOLE.fullmatch(value) is not None and abs(int(value)) < _LARGEST
    return isinstance(value, int) and abs(value) < _LARGEST


def _as_text(value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text.encode(errors="replace").decode()
