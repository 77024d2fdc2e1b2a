# SPDX-License-Identifier: Apache-2.0
"""Columns that lie beside a file and were not written here: whether they can be used at all.

A folder of data may be a stranger's, with what the stranger has put beside its files. Arrow reads
wherever the offsets in a file point to, and numbers of names are used as places of arrays. So they
are looked over in full before anything else reads them.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from cir_jax.data.beside import Damaged
from cir_jax.data.triplet_columns import batches

CONTROL = r"[\x00-\x1f\x7f]"  # of names
NO_TEXT = r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]"  # as `text_files.fault` has it


def checked(path: Path, schema: Any, empty: Collection[str] = ()) -> list[Any]:
    """The record batches of an Arrow file, each of which is sound.

    Args:
      path: the file.
      schema: that it has to have.
      empty: columns that may have empty cells.

    Raises:
      Damaged: it has another schema, points to where it has nothing, or lacks values.
    """
    import pyarrow as pa

    found = batches(path)
    for batch in found:
        try:
            if not batch.schema.equals(schema):
                raise Damaged(f"{path} has the columns {batch.schema}")
            batch.validate(full=True)
        except (pa.ArrowException, UnicodeDecodeError) as error:
            raise Damaged(f"{path}: {error}") from None
        for name in schema.names:
            if batch.column(name).null_count and name not in empty:
                raise Damaged(f"{path}: column {name} has empty cells")
    return found


def of_lists(column: Any) -> tuple[np.ndarray, Any]:
    """(how many values each list of a column has, Arrow array of all of them).

    Raises:
      Damaged: a value is empty, or an empty list has values.
    """
    counts, values = np.diff(column.offsets.to_numpy()), column.flatten()
    if values.null_count or counts.sum() != len(values):
        raise Damaged(f"lists of {int(counts.sum())} values have {len(values)}")
    return counts, values


def check_within(values: Any, end: int, start: int = 0) -> None:
    """Raises Damaged if any of some whole numbers is below `start`, or is `end` or more."""
    if len(values) and (np.min(values) < start or np.max(values) >= end):
        raise Damaged(f"numbers from {np.min(values)} to {np.max(values)}, not below {end}")


def check_text(strings: Any, wrong: str) -> None:
    """Raises Damaged if any of some Arrow strings has what matches an expression."""
    import pyarrow.compute as pc

    if pc.any(pc.match_substring_regex(strings, wrong)).as_py():
        raise Damaged("there are control characters in names or texts")
