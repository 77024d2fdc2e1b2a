# SPDX-License-Identifier: Apache-2.0
"""The images of an index: one line for each, with where its rows lie and what is known of it.

id        int64, given once and never again; lines are in this order
name      path from the indexed folder, with "/"
segment   number of the segment that has its rows; row, the place in it
size, time, content   bytes, ns and XXH3 of its file, by which a changed file is known
field:X   column X of the tables that came with the images, e.g. a title or a price
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from cir_jax.errors import UserError, nearest

FIELD = "field:"
_NAMES_COMPARED = 10_000  # a hint is looked for among so many names
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

    Attributes:
      table: the columns of the module's list but the fields.
      fields: the fields, columns by their own names, in the order of the images.
      ids: int64 [n], ascending.
      segment: int32 [n] number of the segment of each.
      row: int64 [n] its place there.
      names: string column [n].
    """

    def __init__(self, table: pa.Table, fields: pa.Table | None = None):
        self.table = table.combine_chunks()
        self.fields = pa.table({}) if fields is None else fields.combine_chunks()
        self.ids = _numpy(self.table, "id")
        self.segment = _numpy(self.table, "segment")
        self.row = _numpy(self.table, "row")
        self.names = self.table["name"]

    def __len__(self) -> int:
        return len(self.ids)

    def position(self, number: int) -> int:
        """The line of an image.

        Raises:
          UserError: there is no image of this id.
        """
        at = int(np.searchsorted(self.ids, number))
        if at == len(self.ids) or self.ids[at] != number:
            last = (
                f"its {len(self):,} ids go up to {self.ids[-1]:,}" if len(self) else "it is empty"
            )
            raise UserError(f"the index has no image {number}; {last}")
        return at

    def name(self, number: int) -> str:
        """Name of the image of an id.

        Raises:
          UserError: there is none.
        """
        return self.names[self.position(number)].as_py()

    def number_of(self, name: str) -> int:
        """The id of the image of a name.

        Raises:
          UserError: there is none.
        """
        at = pc.index(self.names, pa.scalar(name, pa.string())).as_py()
        if at < 0:
            names = self.names.to_pylist() if len(self) <= _NAMES_COMPARED else []
            raise UserError(f"the index has no image {name!r}.{nearest(name, names)}")
        return int(self.ids[at])

    def known_of(self, number: int) -> dict[str, Any]:
        """Field -> value of an image, fields without a value left out.

        Raises:
          UserError: there is no image of this id.
        """
        at = self.position(number)
        found = ((name, self.fields[name][at].as_py()) for name in self.fields.column_names)
        return {name: value for name, value in found if value is not None}

    def write(self, path: Path) -> None:
        """Writes the file; whoever reads it does so through a generation, which is written last.

        Raises:
          OSError: the disk is full or fails.
        """
        whole = self.table
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
        return cls(whole.drop_columns(own).cast(SCHEMA), fields if own else None)

    @classmethod
    def empty(cls) -> "Catalogue":
        """That of no image."""
        return cls(SCHEMA.empty_table())


def _numpy(table: pa.Table, name: str) -> np.ndarray:
    return table[name].to_numpy()
