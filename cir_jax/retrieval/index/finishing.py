# SPDX-License-Identifier: Apache-2.0
"""The next generation of an index: written beside the one in use, and named when it is whole."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cir_jax import files, progress
from cir_jax.retrieval import store as stores
from cir_jax.retrieval.index import compaction, records, segments
from cir_jax.retrieval.index import fields as known_fields
from cir_jax.retrieval.index import sample as samples
from cir_jax.retrieval.index.building import Building
from cir_jax.retrieval.index.catalogue import SCHEMA, Catalogue
from cir_jax.retrieval.index.options import EMBEDDED
from cir_jax.retrieval.index.sample import Sample
from cir_jax.runtime import checksums

_TOGETHER = 4096  # images that a store elsewhere is given at a time


@dataclass(frozen=True, eq=False)
class Old:
    """The generation that an update begins with.

    Attributes:
      state: its record.
      catalogue: its images.
    """

    state: records.Generation
    catalogue: Catalogue


def next_generation(
    folder: Path,
    record: dict[str, Any],
    old: Old,
    lines: pa.Table,
    fields: pa.Table,
    building: Building,
) -> records.Generation:
    """Makes a generation of these images, if they are others than those of the one in use.

    Args:
      folder: of the index.
      record: its record.
      old: the generation in use.
      lines: the images, by id; see `catalogue`.
      fields: theirs.
      building: what was encoded since, closed.

    Returns:
      The generation in use now.

    Raises:
      UserError: the disk is full.
    """
    images = Catalogue(lines, fields)
    with _writer(folder, record) as writer:
        if not _differs(old, record, images, building):
            if writer is not None:
                writer.commit()  # of a store that was asked for anew, and is filled by now
            building.discard()
            return old.state
        made, gone = _written(folder, record, old, images, building, writer)
        records.write_generation(folder, made)
        if writer is not None:
            writer.remove(gone)
            writer.commit()
    building.discard()
    return made


def _written(
    folder: Path,
    record: dict[str, Any],
    old: Old,
    images: Catalogue,
    building: Building,
    writer: Any,
) -> tuple[records.Generation, list[int]]:
    """(a generation, whole on disk but for its record; ids that a store elsewhere is to lose)."""
    shape = record["dtype"], record["model"]["rows_per_image"], record["model"]["embedding"]
    entries = {**old.state.segments, **building.finished}
    images, entries, next_segment = _compacted(folder, images, entries, shape, building)
    number = old.state.number + 1
    name, sampled = f"catalogue-{number}.parquet", f"sample-{number}.npz"
    try:
        images.write(folder / name)
        sums = checksums.of_file(folder / name)
    except OSError as error:
        raise files.full(folder / name, error) from None
    loss = _loss(folder, record["dtype"], old, images, building.sample, sampled)
    gone = _fill(folder, writer, old.catalogue, images, entries, shape)
    made = replace(
        old.state,
        number=number,
        images=len(images),
        catalogue=name,
        catalogue_sum=sums,
        segments=entries,
        next_id=building.next_id,
        next_segment=next_segment,
        fields=known_fields.types(images.fields),
        loss=loss,
        sample=sampled if loss else "",
        query_side=record["model"]["query_side"],
    )
    return made, gone


def clean(folder: Path, state: records.Generation, building: Building) -> None:
    """Removes what belongs to no generation but that in use, nor to what was begun.

    Whoever has opened an older one keeps what it has mapped.
    """
    kept = {str(number) for number in (*state.segments, *building.numbers)}
    for one in _below(folder / records.SEGMENTS):
        if one.name not in kept:
            shutil.rmtree(one, ignore_errors=True)
    names = {state.catalogue, state.sample}
    for pattern in ("catalogue-*.parquet*", "sample-*.npz*"):
        for one in folder.glob(pattern):
            if one.name not in names:
                with suppress(OSError):
                    one.unlink()
    for one in _below(folder / records.GENERATIONS):
        if one.name != f"{state.number}.json":
            with suppress(OSError):
                one.unlink()


def _below(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _differs(old: Old, record: dict[str, Any], images: Catalogue, building: Building) -> bool:
    """Whether a reader of the generation in use would miss anything."""
    if building.finished or not old.state.number:
        return True
    if old.state.query_side != record["model"]["query_side"]:
        return True
    return not (
        images.lines.equals(old.catalogue.lines) and images.fields.equals(old.catalogue.fields)
    )


def _compacted(
    folder: Path,
    images: Catalogue,
    entries: dict[int, dict[str, Any]],
    shape: tuple[str, int, int],
    building: Building,
) -> tuple[Catalogue, dict[int, dict[str, Any]], int]:
    """(images, entries of the segments that have any, number of the next segment)."""
    numbers, counts = np.unique(images.segment, return_counts=True)
    alive = dict(zip(numbers.tolist(), counts.tolist(), strict=True))
    entries = {number: entry for number, entry in entries.items() if alive.get(number)}
    most = segments.Writer(folder, 0, *shape).most
    chosen = compaction.due(entries, alive, most)
    if not chosen:
        return images, entries, building.next_segment
    arrays = segments.shapes(*shape)
    old = [segments.opened(folder, number, entries[number], arrays) for number in chosen]
    made, segment, row = compaction.copy(
        folder, old, images.segment, images.row, shape, building.next_segment, most
    )
    progress.say(f"{folder}: {len(chosen)} segments with room in them are joined to {len(made)}")
    lines = images.lines
    for name, column in (("segment", segment), ("row", row)):
        place = SCHEMA.get_field_index(name)
        lines = lines.set_column(place, SCHEMA.field(place), pa.array(column))
    entries = {n: entry for n, entry in entries.items() if n not in chosen} | made
    return Catalogue(lines, images.fields), entries, building.next_segment + len(made)


def _loss(
    folder: Path, dtype: str, old: Old, images: Catalogue, fresh: Sample, name: str
) -> dict[str, Any] | None:
    """What rows of `dtype` cost, said and noted with the sample that it was measured on."""
    if dtype == "float32":
        return None
    if old.state.sample:
        fresh.read(folder / old.state.sample)
    fresh.only(images.lines["content"].to_pylist())
    loss = fresh.loss(dtype)
    if loss is not None:
        fresh.write(folder / name)
        progress.say(samples.in_words(loss, dtype))
    return loss


@contextmanager
def _writer(folder: Path, record: dict[str, Any]) -> Iterator[Any]:
    """What writes the rows to a store elsewhere; None where they are ranked as they lie."""
    name, _, place = record["store"].partition(":")
    if name == EMBEDDED:
        yield None
        return
    shape = record["model"]["rows_per_image"], record["model"]["embedding"]
    writer = stores.load(name).writer(folder, place, *shape)
    try:
        yield writer
    finally:
        writer.close()


def _fill(
    folder: Path,
    writer: Any,
    old: Catalogue,
    images: Catalogue,
    entries: dict[int, dict[str, Any]],
    shape: tuple[str, int, int],
) -> list[int]:
    """Gives a store elsewhere what is new or is called otherwise; the ids to remove later."""
    if writer is None:
        return []
    same = np.zeros(len(images), bool)
    if old.table.schema.equals(images.table.schema):
        at = np.searchsorted(old.ids, images.ids)
        there = np.flatnonzero(at < len(old))
        there = there[old.ids[at[there]] == images.ids[there]]
        before, now = old.table.take(pa.array(at[there])), images.table.take(pa.array(there))
        alike = np.ones(len(there), bool)
        for name in images.table.column_names:
            one, other = before[name], now[name]
            equal = pc.fill_null(pc.equal(one, other), False)
            empty = pc.and_(pc.is_null(one), pc.is_null(other))
            alike &= pc.or_(equal, empty).to_numpy()
        same[there] = alike
    todo = np.flatnonzero(~same)
    arrays = segments.shapes(*shape)
    held = {n: segments.opened(folder, n, entry, arrays) for n, entry in entries.items()}
    with progress.counter(len(todo), "filling the store") as bar:
        for start in range(0, len(todo), _TOGETHER):
            part = todo[start : start + _TOGETHER]
            rows = np.empty((len(part), *shape[1:]), np.float32)
            for number in np.unique(images.segment[part]).tolist():
                here = images.segment[part] == number
                rows[here] = held[number].take(images.row[part[here]])
            writer.add(images.ids[part].tolist(), rows, images.table.take(pa.array(part)))
            bar.update(len(part))
    writer.commit()
    return old.ids[~np.isin(old.ids, images.ids)].tolist()
