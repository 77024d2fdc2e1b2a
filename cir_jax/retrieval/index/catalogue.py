# SPDX-License-Identifier: Apache-2.0
"""The images of an index: one line for each, with where its rows lie and what is known of it.

id        int64, given once and never again; lines are in this order
name      path from the indexed folder, with "/"
segment   number of the segment that has its rows; row, the place in it
size, time, content   bytes, ns and XXH3 of its file, by which a changed file is known
field:X   column X of the tables that came with the images, e.g. a title or a price
"""

from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import parquet

from cir_jax.errors import UserError
from cir_jax.retrieval.search import where
from cir_jax.retrieval.search.conditions import Kind

FIELD = "field:"
SCHEMA = pa.schema(
    [
        pa.field("id", pa.int64()),
        pa.field("name", pa.string()),
        pa.field("segment", pa.int32()),
        pa.field("row", pa.int64()),
        pa.field("size", pa.int64()),
        pa.field("time", pa.int64()),
        pa.field("content", pa.binary(16)),
    ]
)


class Catalogue:
    """The images of a generation, by id ascending. Nothing in it changes.

    Args:
      lines: the columns of SCHEMA.
      fields: one column for each field; None for none.

    Attributes:
      lines, fields: see there.
      table: "name" and the fields: what a `where` may ask for.
      kinds: field -> its kind, of `table`.
      ids: int64 [n], ascending.
      segment: int32 [n] number of the segment of each.
      row: int64 [n] its place there.
      names: string column [n].
    """

    def __init__(self, lines: pa.Table, fields: pa.Table | None = None):
        self.lines = lines.combine_chunks()
        self.names = self.lines["name"]
        self.fields = pa.table({}) if fields is None else fields.combine_chunks()
        self.table = pa.table({"name": self.names})
        for name in self.fields.column_names:
            self.table = self.table.append_column(name, self.fields[name])
        self.kinds: Mapping[str, Kind] = where.kinds(self.table.schema)
        self.ids: NDArray[np.int64] = self.lines["id"].to_numpy()
        self.segment = self.lines["segment"].to_numpy()
        self.row = self.lines["row"].to_numpy()

    def __len__(self) -> int:
        return len(self.ids)

    def position(self, id: int) -> int:
        """The line of an image.

        Raises:
          UserError: there is no image of this id.
        """
        return int(self.positions([id])[0])

    def positions(self, ids: Iterable[int]) -> NDArray[np.int64]:
        """The lines of images, see `position`."""
        try:
            wanted = np.asarray(list(ids), np.int64)
        except OverflowError:
            wanted = np.asarray([-1])
        at = np.searchsorted(self.ids, wanted)
        there = at < len(self)
        there[there] = self.ids[at[there]] == wanted[there]
        if not there.all():
            missing = int(wanted[np.flatnonzero(~there)[0]])
            last = f"its ids go up to {self.ids[-1]}" if len(self) else "it is empty"
            raise UserError(f"the index has no image {missing}; {last}")
        return at

    def name(self, id: int) -> str:
        """Name of the image of an id.

        Raises:
          UserError: there is none.
        """
        return self.names[self.position(id)].as_py()

    def number_of(self, name: str) -> int | None:
        """The id of the image of a name; None if there is none."""
        return self.numbers_of([name])[0]

    def numbers_of(self, names: Iterable[str]) -> list[int | None]:
        """The ids of names, None for each that is not there."""
        wanted = pa.array([name.encode(errors="replace").decode() for name in names], pa.string())
        found = pc.index_in(wanted, value_set=self.names).to_pylist()
        return [None if at is None else int(self.ids[at]) for at in found]

    def known_of(self, id: int) -> dict[str, Any]:
        """Field -> value of an image, fields without a value left out.

        Raises:
          UserError: there is no image of this id.
        """
        at = self.position(id)
        found = ((name, self.fields[name][at].as_py()) for name in self.fields.column_names)
        return {name: value for name, value in found if value is not None}

    def contents(self, ids: Iterable[int]) -> list[bytes]:
        """The checksums of the files of images, 16 bytes each.

        Raises:
          UserError: there is no such image.
        """
        return self.lines["content"].take(pa.array(self.positions(ids))).to_pylist()

    def with_content(self, content: bytes) -> list[int]:
        """The ids of the images whose file has this checksum."""
        order, high, low = self._by_content
        one, other = np.frombuffer(content, ">u8").astype(np.uint64)
        start = int(np.searchsorted(high, one))
        stop = int(np.searchsorted(high, one, side="right"))
        first = start + int(np.searchsorted(low[start:stop], other))
        last = start + int(np.searchsorted(low[start:stop], other, side="right"))
        return self.ids[order[first:last]].tolist()

    @cached_property
    def _by_content(self) -> tuple[NDArray[np.int64], NDArray[np.uint64], NDArray[np.uint64]]:
        """(order of the lines by checksum, the first and the second half of each in this order)."""
        held = b"".join(self.lines["content"].to_pylist())
        parts = np.frombuffer(held, ">u8").reshape(-1, 2).astype(np.uint64)
        order = np.lexsort((parts[:, 1], parts[:, 0]))
        # Columns of their own: a search in a strided one would copy all of it.
        high, low = (np.ascontiguousarray(parts[order, column]) for column in (0, 1))
        return order, high, low

    def write(self, path: Path) -> None:
        """Writes the file; whoever reads it does so through a generation, which is written last.

        Raises:
          OSError: the disk is full or fails.
        """
        whole = self.lines
        for name in self.fields.column_names:
            whole = whole.append_column(f"{FIELD}{name}", self.fields[name])
        with path.open("wb") as file:
            parquet.write_table(whole, file)

    @classmethod
    def read(cls, path: Path) -> "Catalogue":
        """The catalogue of a file.

        Raises:
          OSError, pyarrow.ArrowException: it is not there, or damaged.
        """
        whole = parquet.read_table(path)
        own = [name for name in whole.column_names if name.startswith(FIELD)]
        fields = whole.select(own).rename_columns([name.removeprefix(FIELD) for name in own])
        return cls(whole.select(SCHEMA.names).cast(SCHEMA), fields if own else None)

    @classmethod
    def empty(cls) -> "Catalogue":
        """That of no image."""
        return cls(SCHEMA.empty_table())
