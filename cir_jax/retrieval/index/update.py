# SPDX-License-Identifier: Apache-2.0
"""Makes an index, or brings one up to date: each new or changed image is encoded once."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cir_jax import files, progress
from cir_jax.data.unusable import Problem
from cir_jax.errors import UserError, nearest
from cir_jax.retrieval.index import changes as comparing
from cir_jax.retrieval.index import found as looking
from cir_jax.retrieval.index import opened, quantized, records, segments, writing
from cir_jax.retrieval.index.building import Building
from cir_jax.retrieval.index.catalogue import SCHEMA, Catalogue
from cir_jax.retrieval.index.changes import Changes
from cir_jax.retrieval.index.encoding import Encoder
from cir_jax.retrieval.index.found import Found
from cir_jax.runtime import checksums


@dataclass(frozen=True)
class Options:
    """How an index is made. What is None is as the index has it, or the default of a new one.

    Attributes:
      place: folder or table of the images.
      dtype: type of the rows, see `quantized`; "float32".
      store: "embedded" or "milvus:PLACE".
      allow_outside: links and names may lead out of the folder; False.
      batch: images per call of the compiled model.
      threads: that read and decode.
    """

    place: str | None = None
    dtype: str | None = None
    store: str | None = None
    allow_outside: bool | None = None
    batch: int = 128
    threads: int = 16


@dataclass(frozen=True)
class Report:
    """What an update did.

    Attributes:
      images: that the index has now.
      new, changed, gone, touched: how many of them; touched ones kept their rows.
      unreadable: name -> why, of those that cannot be read.
      seconds: that encoding took.
      encoded: images, in this run.
    """

    images: int
    new: int
    changed: int
    gone: int
    touched: int
    unreadable: dict[str, Problem]
    seconds: float
    encoded: int


def update(
    folder: str | Path,
    options: Options,
    *,
    model: Any = None,
    load: Callable[[dict[str, Any]], Any] | None = None,
) -> Report:
    """Makes an index in `folder`, or brings the one there up to date.

    Args:
      folder: of the index.
      options: see there.
      model: a `Model`; None for that of the index.
      load: the record of an index -> its model.

    Raises:
      UserError: another process writes it; it is of another model; there is no image; the disk is
        full (what was written is kept, and the same call goes on).
    """
    folder = Path(folder)
    with writing.alone(folder):
        return _Update(folder, options, model, load).run()


class _Update:
    def __init__(
        self,
        folder: Path,
        options: Options,
        model: Any,
        load: Callable[[dict[str, Any]], Any] | None,
    ):
        self.folder, self.options = folder, options
        there = records.read(folder) if records.exists(folder) else None
        if model is None:
            if there is None or load is None:
                raise UserError(f"{folder} is no index yet, and no model is given; give --model")
            model = load(there)
        self.model = model
        self.record = _record(folder, there, options, model)
        self.base = records.generation(folder, records.current(folder))
        if there != self.record:
            records.write(folder, self.record)
        self.shape = (
            self.record["dtype"],
            self.record["model"]["rows_per_image"],
            self.record["model"]["embedding"],
        )

    def run(self) -> Report:
        """The update."""
        options = self.options
        found = looking.look(
            self.record["place"],
            self.folder,
            allow_outside=self.record["allow_outside"],
            threads=options.threads,
        )
        catalogue, damaged = self._known()
        with Building(self.folder, self.base, *self.shape) as building:
            building.resume()
            known, damaged = _together(catalogue, damaged, building)
            before = len(building)
            changed = comparing.compare(
                found, known, damaged, list(building.unreadable), options.threads
            )
            self._check_place(found, known, changed)
            seconds = self._encode(found, changed, building)
            unreadable = self._unreadable(found, building)
            encoded = len(building) - before
            self._finish(catalogue, known, changed, building, before)
        self._list(unreadable)
        return Report(
            self._images,
            changed.new,
            changed.changed,
            changed.gone,
            changed.touched,
            unreadable,
            seconds,
            encoded,
        )

    def _known(self) -> tuple[Catalogue, NDArray[np.bool_]]:
        """(the images of the index, which of them have damaged rows)."""
        if not self.base.number:
            return Catalogue.empty(), np.zeros(0, bool)
        catalogue = opened.catalogue_of(self.folder, self.base)
        damaged = np.zeros(len(catalogue), bool)
        arrays = segments.shapes(*self.shape)
        for number, entry in self.base.segments.items():
            _, bad = opened.open_segment(self.folder, number, entry, arrays, check=True)
            here = catalogue.segment == number
            damaged[here] = bad[catalogue.row[here]]
        if damaged.any():
            progress.say(
                f"rows of {damaged.sum():,} images of {self.folder} are not what was written: they "
                "are encoded anew"
            )
        return catalogue, damaged

    def _check_place(self, found: Found, known: pa.Table, changed: Changes) -> None:
        """Raises UserError if none of the images that are known is there: it is another folder."""
        if len(known) and changed.gone == len(known):
            raise UserError(
                f"{self.record['place']} holds none of the {len(known):,} images of the index in "
                f"{self.folder}; name the folder that it is of, or give another --out"
            )

    def _encode(self, found: Found, changed: Changes, building: Building) -> float:
        started = time.monotonic()
        retriever = self.model.retriever(batch=self.options.batch, threads=self.options.threads)
        encoder = Encoder(retriever, self.model.image_size, found)
        at = 0
        with progress.counter(len(changed.todo), "indexing") as bar:
            for reads, rows in encoder.batches(changed.todo):
                ids = changed.ids[at : at + len(reads)].tolist()
                at += len(reads)
                good = [i for i, read in enumerate(reads) if read.problem is None]
                building.add(
                    [found.names[reads[i].place] for i in good],
                    [None if ids[i] < 0 else ids[i] for i in good],
                    [reads[i].stamp for i in good],
                    [reads[i].content for i in good],
                    rows[good],
                )
                for read in reads:
                    if read.problem is not None:
                        building.cannot_read(found.names[read.place], read.problem, read.stamp)
                building.commit()
                bar.update(len(reads))
        return time.monotonic() - started

    def _unreadable(self, found: Found, building: Building) -> dict[str, Problem]:
        missing = {found.names[at]: problem for at, problem in found.problems.items()}
        return dict(sorted({**missing, **building.unreadable}.items()))

    def _finish(
        self,
        catalogue: Catalogue,
        known: pa.Table,
        changed: Changes,
        building: Building,
        resumed: int,
    ) -> None:
        """Makes the next generation, if anything is other than in this one."""
        made = building.finish()
        kept = known.take(pa.array(changed.kept))
        kept = _stamped(kept, changed.stamps)
        new = building.table().slice(resumed)  # what this run has encoded
        table = pa.concat_tables([kept, new]).sort_by("id")
        self._images = len(table)
        if table.equals(catalogue.table) and not made:
            return
        used = {int(n) for n in np.unique(table["segment"].to_numpy())}
        number = self.base.number + 1
        name = f"catalogue-{number}.parquet"
        whole = Catalogue(table)
        try:
            whole.write(self.folder / name)
            sums = checksums.of_file(self.folder / name)
        except OSError as error:
            raise files.full(self.folder / name, error) from None
        records.write_generation(
            self.folder,
            replace(
                self.base,
                number=number,
                images=len(table),
                catalogue=name,
                catalogue_sum=sums,
                segments={n: e for n, e in {**self.base.segments, **made}.items() if n in used},
                next_id=building.next_id,
                next_segment=building.next_segment,
            ),
        )
        building.discard()

    def _list(self, unreadable: dict[str, Problem]) -> None:
        lines = [
            {"image": progress.shown(name), "file": progress.shown(one.file), "reason": one.reason,
             "why": one.why}
            for name, one in unreadable.items()
        ]  # fmt: skip
        content = "".join(json.dumps(line) + "\n" for line in lines).encode()
        files.put(self.folder / records.UNREADABLE, content)


def _record(
    folder: Path, there: dict[str, Any] | None, options: Options, model: Any
) -> dict[str, Any]:
    """What `index.json` is to say.

    Raises:
      UserError: the index there is of another model, or another type or store is asked for.
    """
    if options.dtype not in (None, *quantized.DTYPES):
        raise UserError(
            f"dtype {options.dtype!r} is unknown; there are {', '.join(quantized.DTYPES)}."
            f"{nearest(str(options.dtype), quantized.DTYPES)}"
        )
    source = model.source
    weights = None if source is None else {
        "places": [str(Path(place).resolve()) for place in source.places],
        "model": source.model, "tower": source.tower, "pad": source.pad, "loading": source.loading,
    }  # fmt: skip
    if there is None:
        if options.place is None:
            raise UserError(f"{folder} is no index yet; name the folder of your images")
        record: dict[str, Any] = {"dtype": options.dtype or "float32"}
        record |= {"store": options.store or "embedded", "allow_outside": False}
    else:
        opened.check_model(folder, there, model.identity(), rows_alone=True)
        record = {key: value for key, value in there.items() if key != "version"}
        for key, asked in (("dtype", options.dtype), ("store", options.store)):
            if asked not in (None, record[key]):
                raise UserError(
                    f"the index in {folder} has {key} {record[key]}, not {asked}; make another "
                    "index with it, --out OTHER"
                )
    if options.allow_outside is not None:
        record["allow_outside"] = options.allow_outside
    if options.place is not None:
        place = Path(options.place).expanduser()
        record["place"] = str(place.resolve())
        record["folder"] = str((place if place.is_dir() else place.parent).resolve())
    return {**record, "model": model.identity(), "weights": weights}


def _together(
    catalogue: Catalogue, damaged: NDArray[np.bool_], building: Building
) -> tuple[pa.Table, NDArray[np.bool_]]:
    """The images of an index and those that were encoded since; of one image the newer line."""
    more = building.table()
    if not len(more):
        return catalogue.table, damaged
    old = catalogue.table
    again = np.isin(catalogue.ids, more["id"].to_numpy())
    table = pa.concat_tables([old.filter(pa.array(~again)), more])
    return table, np.concatenate([damaged[~again], np.zeros(len(more), bool)])


def _stamped(lines: pa.Table, stamps: NDArray[np.int64]) -> pa.Table:
    """Lines of a catalogue with the size and time that their files have now."""
    for column, name in enumerate(("size", "time")):
        at = SCHEMA.get_field_index(name)
        lines = lines.set_column(at, SCHEMA.field(at), pa.array(stamps[:, column]))
    return lines
