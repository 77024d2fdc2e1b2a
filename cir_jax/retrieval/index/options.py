# SPDX-License-Identifier: Apache-2.0
"""How an index is made, and what `index.json` says of it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cir_jax.errors import UserError, nearest
from cir_jax.retrieval import store as stores
from cir_jax.retrieval.index import quantized, reading
from cir_jax.retrieval.index.fields import DUPLICATES

EMBEDDED = "embedded"
_DEFAULTS: dict[str, Any] = {
    "dtype": "float32", "store": EMBEDDED, "titles": [], "duplicates": "error", "queries": "",
    "benchmark": "", "allow_outside": False,
}  # fmt: skip


@dataclass(frozen=True)
class Gallery:
    """Which images of a folder an index has, and what is asked about them.

    Attributes:
      benchmark: whose they are.
      names: of the images.
      queries: {"reference": name, "text", "targets": [names]}.
    """

    benchmark: str
    names: tuple[str, ...]
    queries: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Options:
    """How an index is made. What is None is as the index has it, or the default of a new one.

    Attributes:
      place: folder of the images, or a table that names some.
      gallery: those of the images in the folder that are wanted; a place without one is all.
      titles: table, or several, whose columns become fields; () for none.
      duplicates: of `fields.DUPLICATES`.
      queries: file of queries with right answers; "" for none.
      dtype: type of the rows, of `quantized.DTYPES`.
      store: "embedded" or "milvus:PLACE".
      allow_outside: links and tables may lead out of the folder.
      batch: images per call of the compiled model.
      threads: that read and decode.
    """

    place: str | os.PathLike[str] | None = None
    gallery: Gallery | None = None
    titles: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None
    duplicates: str | None = None
    queries: str | os.PathLike[str] | None = None
    dtype: str | None = None
    store: str | None = None
    allow_outside: bool | None = None
    batch: int = 128
    threads: int = 16


def record(
    folder: str | Path, there: dict[str, Any] | None, options: Options, model: Any
) -> dict[str, Any]:
    """What `index.json` is to say.

    Args:
      folder: of the index.
      there: what it says now; None for a new index.
      options: what was asked for.
      model: a `Model`.

    Raises:
      UserError: an option is wrong; the index there is of another model; or its rows are to be of
        another type, or somewhere else.
    """
    _check(options)
    if there is None and options.place is None:
        raise UserError(f"{folder} is no index yet; name the folder of your images")
    now = model.identity()
    if there is not None:
        reading.check_model(folder, there, now, rows_alone=True)
    made = {**_DEFAULTS, **(there or {})}
    made.pop("version", None)
    if there is not None and options.dtype not in (None, made["dtype"]):
        raise UserError(
            f"the rows of the index in {folder} are {made['dtype']}, not {options.dtype}; make "
            "another index with it, --out OTHER"
        )
    made |= _asked(made, options)
    source = model.source
    places = None if source is None else {
        "places": [_absolute(place) for place in source.places],
        "model": source.model, "tower": source.tower, "pad": source.pad, "loading": source.loading,
    }  # fmt: skip
    return {**made, "model": now, "weights": places or made.get("weights")}


def _asked(made: dict[str, Any], options: Options) -> dict[str, Any]:
    """What options change in a record."""
    found = {key: made.get(key, "") for key in ("queries", "benchmark")}
    for key in ("dtype", "duplicates", "allow_outside"):
        if (asked := getattr(options, key)) is not None:
            found[key] = asked
    if options.store is not None:
        found["store"] = _store(options.store)
    if options.titles is not None:
        titles = options.titles
        tables = [titles] if isinstance(titles, str | os.PathLike) else titles
        found["titles"] = [_absolute(table) for table in tables]
    if options.queries is not None:
        found["queries"] = _absolute(options.queries) if str(options.queries) else ""
    if found["queries"] and (options.gallery or (found["benchmark"] and options.place is None)):
        raise UserError(f"queries={found['queries']}, but a benchmark brings its own; leave it out")
    if options.place is not None:
        found["benchmark"] = options.gallery.benchmark if options.gallery else ""
        found["place"] = _absolute(options.place)
        is_folder = os.path.isdir(found["place"])
        found["folder"] = found["place"] if is_folder else os.path.dirname(found["place"])
    return found


def _check(options: Options) -> None:
    for key, value, choices in (
        ("dtype", options.dtype, quantized.DTYPES),
        ("duplicates", options.duplicates, DUPLICATES),
    ):
        if value not in (None, *choices):
            raise UserError(
                f"{key}={value!r} is unknown; there are {', '.join(choices)}."
                f"{nearest(str(value), choices)}"
            )
    for key, number in (("batch", options.batch), ("threads", options.threads)):
        if number < 1:
            raise UserError(f"{key}={number} is below 1; leave it out, or give 1 or more")


def _store(asked: str) -> str:
    """A store by name and place, as it is kept: a relative path would depend on who reads it."""
    name, colon, place = asked.partition(":")
    module = stores.load(name)
    if name == EMBEDDED:
        if colon:
            raise UserError(f"store={asked!r}: rows lie in the index; leave {place!r} out")
        return name
    if not place:
        raise UserError(f"store={asked!r} does not say where; give {name}:PLACE")
    return f"{name}:{module.place(place)}"


def _absolute(path: str | os.PathLike[str]) -> str:
    return os.path.abspath(os.path.expanduser(os.fspath(path)))
