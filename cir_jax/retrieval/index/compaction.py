# SPDX-License-Identifier: Apache-2.0
"""Copies what is alive out of segments that are mostly dead, and many small ones into one.

Rows are copied as they are kept, so no score changes. The old segments stay until the next update,
for whoever reads them now.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cir_jax.retrieval.index import segments
from cir_jax.retrieval.index.segments import Segment

DEAD = 0.25  # share of its rows, above which a segment is copied
SMALL = 8  # segments that are smaller than half of the largest size, above which they are joined
_TOGETHER = 4096  # images copied at a time


def due(entries: Mapping[int, Mapping[str, Any]], alive: Mapping[int, int], most: int) -> list[int]:
    """The segments that are to be copied; [] for none.

    Args:
      entries: number -> its entry in the record of a generation.
      alive: number -> images of the catalogue that it has.
      most: images of a full segment.
    """
    rows = {number: int(entry["rows"]) for number, entry in entries.items()}
    mostly_dead = [n for n, count in rows.items() if count - alive.get(n, 0) > DEAD * count]
    small = [n for n, count in rows.items() if count < most / 2]
    chosen = {*mostly_dead, *(small if len(small) > SMALL else ())}
    return sorted(n for n in chosen if alive.get(n, 0))


def copy(
    folder: str | Path,
    old: Sequence[Segment],
    segment: NDArray[np.int32],
    row: NDArray[np.int64],
    shape: tuple[str, int, int],
    first: int,
    most: int,
) -> tuple[dict[int, dict[str, Any]], NDArray[np.int32], NDArray[np.int64]]:
    """Copies the images that lie in some segments.

    Args:
      folder: of the index.
      old: the segments.
      segment, row: where each image of the index lies.
      shape: (dtype, K, D).
      first: number of the first new segment.
      most: images of a segment.

    Returns:
      (entries of the new segments, `segment` and `row` as they are now).

    Raises:
      UserError: the disk is full.
    """
    by_number = {one.number: one for one in old}
    moved = np.flatnonzero(np.isin(segment, list(by_number)))
    segment, row = segment.copy(), row.copy()
    made: dict[int, dict[str, Any]] = {}
    for start in range(0, len(moved), most):
        writer = segments.Writer(folder, first + len(made), *shape)
        try:
            writer.start()
            for part in np.array_split(
                lines := moved[start : start + most], -(-len(lines) // _TOGETHER)
            ):
                for number in dict.fromkeys(segment[part].tolist()):
                    here = part[segment[part] == number]
                    places = np.arange(writer.rows, writer.rows + len(here))
                    writer.add_kept(*by_number[number].kept(row[here]))
                    segment[here], row[here] = writer.number, places
            made[writer.number] = writer.finish()
        finally:
            writer.close()
    return made, segment, row
