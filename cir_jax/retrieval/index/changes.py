# SPDX-License-Identifier: Apache-2.0
"""What has changed since an index was made: which images are new, changed, moved, or gone.

A file is the one that was encoded if its size and time are the same. Where they are not, its
content is compared: a file that was copied or touched keeps its rows, and so does one that is
called otherwise now. One whose content is another is another image, with an id of its own.
"""

import time
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from numpy.typing import NDArray

from cir_jax import files, progress
from cir_jax.data import picture_files
from cir_jax.errors import UserError
from cir_jax.retrieval.index.catalogue import SCHEMA
from cir_jax.retrieval.index.found import Found, in_threads

# A file that was written just now is compared once more by the next update, see `files.JUST_NOW`.
UNCERTAIN = -1  # time of such a file
_TOGETHER = 1024  # files that are compared between two moves of the bar


@dataclass(frozen=True, eq=False)
class Changes:
    """How what is there differs from what is known.

    Attributes:
      kept: lines of a catalogue whose rows are good, with the names, sizes and times of now.
      todo: places in what is there that are to be encoded, in their order.
      moved, touched, gone: how many images; moved and touched ones are kept. Files that were
        compared because they had just been written are not counted.
    """

    kept: pa.Table
    todo: NDArray[np.int64]
    moved: int
    touched: int
    gone: int


def compare(
    found: Found,
    known: pa.Table,
    damaged: NDArray[np.bool_],
    tried: Collection[str] = (),
    threads: int = 16,
) -> Changes:
    """Compares what is there with what is known.

    Args:
      found: what is there.
      known: lines of a catalogue.
      damaged: bool [lines], whose rows are not what was written, and are made again.
      tried: names that this update has found to be unreadable already.
      threads: files that are read at a time, where their content has to be compared.
    """
    names = pa.array(_text(found), pa.string())
    line = pc.index_in(names, value_set=known["name"])
    at = pc.fill_null(line, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    readable = np.ones(len(at), bool)
    readable[list(found.problems)] = False
    if tried:
        readable &= ~pc.is_in(names, value_set=pa.array(list(tried), pa.string())).to_numpy(False)
    known_name = (at >= 0) & readable
    sizes, times = known["size"].to_numpy(), known["time"].to_numpy()
    same = known_name.copy()
    same[known_name] = (found.size[known_name] == sizes[at[known_name]]) & (
        found.time[known_name] == times[at[known_name]]
    )
    touched = _equal(found, known, np.flatnonzero(known_name & ~same), at, threads)
    gone = np.ones(len(known), bool)
    gone[at[known_name]] = False
    moved, from_line = _moved(found, known, np.flatnonzero(readable & (at < 0)), gone, threads)
    at[moved] = from_line
    gone[from_line] = False
    good = same.copy()
    good[touched] = good[moved] = True
    whole = good.copy()
    whole[good] = ~damaged[at[good]]
    todo = np.flatnonzero(readable & ~whole)
    now = names.filter(pa.array(whole)), found.size[whole], found.time[whole]
    return Changes(
        _kept(known, at[whole], *now),
        todo,
        len(moved),
        int((times[at[touched]] != UNCERTAIN).sum()),
        int(gone.sum()),
    )


def certain(times: NDArray[np.int64]) -> NDArray[np.int64]:
    """Times of files, those of just now as UNCERTAIN."""
    return np.where(times > time.time_ns() - files.JUST_NOW, UNCERTAIN, times)


def content_of(file: str) -> bytes:
    """The checksum of a file by which it is known.

    Raises:
      UserError: it cannot be read.
    """
    return xxhash.xxh3_128_digest(picture_files.read(file))


def _kept(
    known: pa.Table,
    at: NDArray[np.int64],
    names: pa.Array,
    size: NDArray[np.int64],
    times: NDArray[np.int64],
) -> pa.Table:
    """Lines of a catalogue, by id."""
    kept = known.take(pa.array(at))
    for name, column in (("name", names), ("size", size), ("time", certain(times))):
        place = SCHEMA.get_field_index(name)
        field = SCHEMA.field(place)
        kept = kept.set_column(place, field, pa.array(column, field.type))
    return kept.sort_by("id")


def _equal(
    found: Found,
    known: pa.Table,
    suspects: NDArray[np.int64],
    at: NDArray[np.int64],
    threads: int,
) -> NDArray[np.int64]:
    """Those files of `suspects` whose content is the one that is known."""
    if not len(suspects):
        return suspects
    wanted = known["content"].take(pa.array(at[suspects])).to_pylist()
    now = _contents([found.files[place] for place in suspects], threads)
    return suspects[[one == other for one, other in zip(wanted, now, strict=True)]]


def _moved(
    found: Found,
    known: pa.Table,
    fresh: NDArray[np.int64],
    gone: NDArray[np.bool_],
    threads: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(places of files with new names, the lines of images that are gone and had their content)."""
    lines = np.flatnonzero(gone)
    sizes = known["size"].to_numpy()
    suspects = fresh[np.isin(found.size[fresh], sizes[lines])]
    if not len(lines) or not len(suspects):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    held: dict[bytes, list[int]] = {}
    for line, content in zip(
        lines.tolist(), known["content"].take(pa.array(lines)).to_pylist(), strict=True
    ):
        held.setdefault(content, []).insert(0, line)
    pairs = []
    contents = _contents([found.files[place] for place in suspects], threads)
    for place, content in zip(suspects.tolist(), contents, strict=True):
        if held.get(content):
            pairs.append((place, held[content].pop()))
    places = np.asarray(pairs, np.int64).reshape(-1, 2)
    return places[:, 0], places[:, 1]


def _contents(files: list[str], threads: int) -> list[bytes]:
    """The checksum of each file; b"" where it cannot be read, which encoding it finds out."""

    def one(file: str) -> bytes:
        try:
            return content_of(file)
        except UserError:
            return b""

    contents = []
    with progress.counter(len(files), "comparing files") as bar:
        for start in range(0, len(files), _TOGETHER):
            contents += in_threads(one, files[start : start + _TOGETHER], threads)
            bar.update(min(_TOGETHER, len(files) - start))
    return contents


def _text(found: Found) -> list[str]:
    """Names; those that no table can hold are of `problems`, and never known."""
    if not found.problems:
        return found.names
    return [name.encode(errors="replace").decode() for name in found.names]
