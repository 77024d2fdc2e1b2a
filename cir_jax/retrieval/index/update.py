# SPDX-License-Identifier: Apache-2.0
"""Makes an index, or brings one up to date: each new or changed image is encoded once."""

import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cir_jax import files, progress
from cir_jax.data import places
from cir_jax.data.unusable import Problem
from cir_jax.errors import UserError
from cir_jax.retrieval import golden
from cir_jax.retrieval.index import changes as comparing
from cir_jax.retrieval.index import (
    finishing,
    options,
    questions,
    reading,
    records,
    segments,
    vectors,
    writing,
)
from cir_jax.retrieval.index import found as looking
from cir_jax.retrieval.index.building import Building
from cir_jax.retrieval.index.changes import Changes
from cir_jax.retrieval.index.encoding import Encoder
from cir_jax.retrieval.index.fields import Columns
from cir_jax.retrieval.index.finishing import Old
from cir_jax.retrieval.index.found import Found
from cir_jax.retrieval.index.options import Options


@dataclass(frozen=True)
class Report:
    """What an update did.

    Attributes:
      images: that the index has now.
      new, changed: those that were encoded since the last generation, by stopped calls too;
        damaged rows that were made again count as changed.
      moved, touched: those that kept their rows though name or time is another.
      gone: those that are not there any more, or cannot be read.
      unreadable: name -> why, of those that cannot be read.
      left_out: (name, why) of what is no image of the index.
      encoded: images that this call has encoded.
      seconds: that this took.
      generation: number of the generation in use.
      renewed: whether fields or the query side of the model are others than before.
    """

    images: int
    new: int
    changed: int
    moved: int
    touched: int
    gone: int
    unreadable: dict[str, Problem]
    left_out: list[tuple[str, str]]
    encoded: int
    seconds: float
    generation: int
    renewed: bool


def update(
    folder: str | Path,
    asked: Options,
    *,
    model: Any = None,
    load: Callable[[dict[str, Any]], Any] | None = None,
) -> Report:
    """Makes an index in `folder`, or brings the one there up to date.

    Stopped at any moment, the same call goes on: what was encoded is kept, every image is encoded
    once, and the index is the one that it would have been.

    Args:
      folder: of the index.
      asked: see `Options`.
      model: a `Model`; None for that of the index.
      load: the record of an index -> its model.

    Raises:
      UserError: another process writes it; it is of another model; there is no image; the disk is
        full (what was written is kept).
    """
    if jax.process_count() > 1:
        raise UserError(
            f"{jax.process_count()} processes were started, and an index is made by one, on all "
            "devices of its host; start one"
        )
    folder = Path(folder)
    _check_free(folder)
    with writing.alone(folder):
        there = records.read(folder) if records.exists(folder) else None
        if model is None:
            if there is None or load is None:
                raise UserError(f"{folder} is no index yet; name its model, --model WEIGHTS")
            model = load(there)
        record = options.record(folder, there, asked, model)
        return _Update(folder, record, there, asked, model).run()


def _check_free(folder: Path) -> None:
    """Raises UserError if a folder holds something else than an index: an update deletes files."""
    if records.exists(folder) or not folder.is_dir():
        return
    others = sorted({one.name for one in folder.iterdir()} - writing.OWN)
    if others:
        raise UserError(
            f"{folder} is no index and is not empty ({', '.join(others[:3])}); give a new folder"
        )


class _Update:
    def __init__(
        self,
        folder: Path,
        record: dict[str, Any],
        there: dict[str, Any] | None,
        asked: Options,
        model: Any,
    ):
        self.folder, self.record, self.there = folder, record, there
        self.asked, self.model = asked, model
        identity = record["model"]
        self.shape = record["dtype"], identity["rows_per_image"], identity["embedding"]

    def run(self) -> Report:
        """The update."""
        record = self.record
        gallery = self.asked.gallery
        only: Sequence[str] = gallery.names if gallery else ()
        if record["benchmark"] and not gallery:
            only = questions.names(self.folder)
        found = looking.look(
            record["place"],
            self.folder,
            only=only,
            allow_outside=record["allow_outside"],
            threads=self.asked.threads,
        )
        if os.path.isdir(record["place"]) and not only:
            found.listing.say_others(found.folder)
        columns = self._columns(found)
        state = records.generation(self.folder, records.current(self.folder))
        catalogue = reading.catalogue(self.folder, state)
        old = Old(state, catalogue)
        damaged = self._damaged(old)
        with Building(self.folder, state, *self.shape) as building:
            building.resume()
            resumed = len(building)
            known, damaged = _together(old, damaged, building)
            changed = comparing.compare(
                found, known, damaged, building.unreadable, self.asked.threads
            )
            self._check_place(known, changed)
            if {k: v for k, v in (self.there or {}).items() if k != "version"} != record:
                records.write(self.folder, record)
            if gallery:
                questions.keep(self.folder, gallery)
            finishing.clean(self.folder, state, building)
            seconds = self._encode(found, changed, building, resumed)
            building.finish()
            lines = _lines(changed, building, resumed)
            fields = columns.table(lines["name"].to_pylist()) if columns else pa.table({})
            unreadable = _unreadable(found, building)
            encoded = len(building) - resumed
            new, again, gone = _new(lines, old.catalogue.lines)
            made = finishing.next_generation(self.folder, record, old, lines, fields, building)
            # Times that become certain make a generation too, of which nobody wants to hear.
            renewed = state.query_side != made.query_side or state.fields != made.fields
            renewed = renewed or not fields.equals(old.catalogue.fields)
        self._list(unreadable)
        questions.write(self.folder, record, found)
        return Report(
            made.images, new, again, changed.moved, changed.touched, gone,
            unreadable, found.left_out, encoded, seconds, made.number, renewed,
        )  # fmt: skip

    def _columns(self, found: Found) -> Columns | None:
        """The fields that tables say; None if there are none."""
        tables = list(self.record["titles"])
        if not os.path.isdir(self.record["place"]):
            tables = [self.record["place"], *tables]
        if not tables:
            return None
        outside = self.record["allow_outside"]
        allowed: AbstractContextManager[Any] = places.anywhere() if outside else nullcontext()
        with allowed:
            names = looking.named_files(found.folder, found.listing)
            columns = Columns(tables, names, self.record["duplicates"])
        columns.say(", ".join(tables[:3]))
        return columns

    def _damaged(self, old: Old) -> NDArray[np.bool_]:
        """Which images of the index have damaged rows."""
        arrays = segments.shapes(*self.shape)
        _, damaged = reading.rows(self.folder, old.state, old.catalogue, arrays)
        if damaged.any():
            progress.say(
                f"rows of {damaged.sum():,} images of {self.folder} are not what was written: they "
                "are encoded anew"
            )
        return damaged

    def _check_place(self, known: pa.Table, changed: Changes) -> None:
        """Raises UserError if none of the images that are known is there: it is another folder."""
        if len(known) and changed.gone == len(known):
            raise UserError(
                f"{self.record['place']} holds none of the {len(known):,} images of the index in "
                f"{self.folder}; name the folder that it is of, or give another --out"
            )

    def _encode(self, found: Found, changed: Changes, building: Building, resumed: int) -> float:
        started = time.monotonic()
        retriever = self.model.retriever(batch=self.asked.batch, threads=self.asked.threads)
        encoder = Encoder(retriever, self.model.image_size, found)
        todo = self._readable(encoder, found, changed.todo, building)
        self._check_room(len(todo))
        self._check_vectors(len(todo))
        with progress.counter(resumed + len(todo), "indexing", resumed) as bar:
            for reads, rows in encoder.batches(todo):
                good = [i for i, read in enumerate(reads) if read.problem is None]
                building.add(
                    [found.names[reads[i].place] for i in good],
                    [reads[i].stamp for i in good],
                    [reads[i].content for i in good],
                    rows[good],
                )
                for read in reads:
                    if read.problem is not None:
                        building.cannot_read(found.names[read.place], read.problem)
                building.commit()
                bar.update(len(reads))
        return time.monotonic() - started

    def _readable(
        self, encoder: Encoder, found: Found, todo: NDArray[np.int64], building: Building
    ) -> NDArray[np.int64]:
        """`todo` without images that could not be read before, and still cannot.

        They take no place in a batch: an index with a few of them is brought up to date as quickly
        as one without.
        """
        before = {line.get("image") for line in records.lines(self.folder / records.UNREADABLE)}
        again = [place for place in todo.tolist() if before and found.names[place] in before]
        problems = looking.in_threads(encoder.problem, again, self.asked.threads)
        bad = set()
        for place, problem in zip(again, problems, strict=True):
            if problem is not None:
                bad.add(place)
                building.cannot_read(found.names[place], problem)
        return todo[~np.isin(todo, list(bad))] if bad else todo

    def _check_vectors(self, images: int) -> None:
        """Keeps the golden vectors of the model, or compares them before rows join others."""
        same = self.there is not None and self.there["model"] == self.record["model"]
        kept = golden.beside(self.folder).is_file()
        if images or not (same and kept):
            vectors.check(self.folder, self.model, keep=not (same and kept))

    def _check_room(self, images: int) -> None:
        need = images * segments.Writer(self.folder, 0, *self.shape).row_bytes
        if need > shutil.disk_usage(self.folder).free:
            raise UserError(
                f"the rows of {images:,} images do not fit {self.folder}. "
                f"{files.room_for(need, self.folder)}; make room, give --out on a larger disk, or "
                "--dtype float16 or int8"
            )

    def _list(self, unreadable: dict[str, Problem]) -> None:
        lines = [
            {
                "image": name.encode(errors="backslashreplace").decode(),
                "file": one.file.encode(errors="backslashreplace").decode(),
                "reason": one.reason,
                "why": one.why,
            }
            for name, one in unreadable.items()
        ]
        content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        path = self.folder / records.UNREADABLE
        if not path.is_file() or path.read_bytes() != content.encode(errors="replace"):
            files.put(path, content.encode(errors="replace"))


def _unreadable(found: Found, building: Building) -> dict[str, Problem]:
    missing = {found.names[at]: problem for at, problem in found.problems.items()}
    return dict(sorted({**missing, **building.unreadable}.items()))


def _together(
    old: Old, damaged: NDArray[np.bool_], building: Building
) -> tuple[pa.Table, NDArray[np.bool_]]:
    """The images of an index and those that were encoded since; of one name the newer line."""
    lines, more = old.catalogue.lines, building.table()
    if not len(more):
        return lines, damaged
    again = pc.is_in(lines["name"], value_set=more["name"]).to_numpy()
    table = pa.concat_tables([lines.filter(pa.array(~again)), more]).combine_chunks()
    return table, np.concatenate([damaged[~again], np.zeros(len(more), bool)])


def _new(lines: pa.Table, before: pa.Table) -> tuple[int, int, int]:
    """(new images, images whose file has another content than before, images that are gone)."""
    ids, old = lines["id"].to_numpy(), before["id"].to_numpy()
    names = lines["name"].filter(pa.array(~np.isin(ids, old)))
    again = int(pc.sum(pc.is_in(names, value_set=before["name"])).as_py() or 0)
    return len(names) - again, again, int((~np.isin(old, ids)).sum()) - again


def _lines(changed: Changes, building: Building, resumed: int) -> pa.Table:
    """The images that the index is to have: what is kept, and what this call has encoded."""
    return pa.concat_tables([changed.kept, building.table().slice(resumed)]).sort_by("id")
