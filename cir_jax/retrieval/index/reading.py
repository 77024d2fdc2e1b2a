# SPDX-License-Identifier: Apache-2.0
"""Reads the parts of a generation, and says what is wrong with them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cir_jax.errors import UserError
from cir_jax.retrieval import identity
from cir_jax.retrieval.index import records, segments
from cir_jax.retrieval.index.catalogue import Catalogue
from cir_jax.retrieval.index.segments import Segment
from cir_jax.runtime import checksums


def check_model(
    folder: str | Path, record: dict[str, Any], now: dict[str, Any], rows_alone: bool = False
) -> None:
    """Checks that a model is that of an index.

    Args:
      folder: of the index.
      record: its record.
      now: the identity of the model.
      rows_alone: one that makes the same rows will do.

    Raises:
      UserError: it is another one; the message names what differs.
    """
    differ = identity.differences(record["model"], now)
    if not differ or (rows_alone and set(differ) <= {*identity.QUERY_PARTS}):
        return
    said = identity.in_words(differ, record["model"], now)
    remedy = "make an index of it in another folder, --out OTHER"
    if set(differ) <= {*identity.QUERY_PARTS}:
        remedy = (
            f"`cir-jax index --model WEIGHTS --out {folder}` with its weights keeps all rows, as "
            "its image side is the same"
        )
    raise UserError(f"the index in {folder} is of another model: {said}; {remedy}")


def catalogue(folder: str | Path, state: records.Generation) -> Catalogue:
    """The images of a generation.

    Raises:
      FileNotFoundError: the file is not there (any more).
      UserError: it is damaged, or cannot be read.
    """
    if not state.number:
        return Catalogue.empty()
    path = Path(folder) / state.catalogue
    try:
        if checksums.of_file(path) != state.catalogue_sum:
            raise records.damaged(folder, f"{state.catalogue} is not what was written")
        return Catalogue.read(path)
    except FileNotFoundError:
        raise
    except pa.ArrowException as error:
        raise records.damaged(folder, f"{state.catalogue}: {error}") from None
    except OSError as error:
        raise records.unreadable(folder, error) from None


def rows(
    folder: str | Path,
    state: records.Generation,
    images: Catalogue,
    arrays: Mapping[str, tuple[tuple, str]],
    *,
    check: bool = True,
    known: Mapping[int, Segment] | None = None,
) -> tuple[list[Segment], NDArray[np.bool_]]:
    """The segments of a generation, and which of its images have damaged rows.

    Args:
      folder: of the index.
      state: the generation.
      images: of the generation.
      arrays: see `segments.shapes`.
      check: compare all rows with their checksums.
      known: segments that were read already; they never change.

    Returns:
      (segments, those without a whole file left out; bool [images]).

    Raises:
      UserError: a file cannot be read.
    """
    found, damaged = [], np.zeros(len(images), bool)
    for number, entry in state.segments.items():
        segment = (known or {}).get(number)
        if segment is None:
            segment, bad = _segment(folder, number, entry, arrays, check)
            here = images.segment == number
            damaged[here] = bad[images.row[here]]
        if segment is not None:
            found.append(segment)
    return found, damaged


def _segment(
    folder: str | Path, number: int, entry: dict[str, Any], arrays: Any, check: bool
) -> tuple[Segment | None, NDArray[np.bool_]]:
    """(segment, bool [n] its damaged rows); None where a whole file is missing or damaged."""
    try:
        found = segments.opened(folder, number, entry, arrays)
        if not check:
            return found, np.zeros(entry["rows"], bool)
        return found, segments.damaged_rows(folder, found, entry)
    except checksums.Damaged:
        return None, np.ones(entry["rows"], bool)
    except (KeyError, TypeError) as error:
        raise records.damaged(folder, f"segment {number}: {error}") from None
    except OSError as error:
        raise records.unreadable(folder, error) from None
