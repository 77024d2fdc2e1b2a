# SPDX-License-Identifier: Apache-2.0
"""What has changed since an index was made: which images are new, changed, or gone.

A file is the one that was encoded if its size and time are the same. Where they are not, its
content is compared: a file that was copied or touched keeps its rows.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from numpy.typing import NDArray

from cir_jax.data import picture_files
from cir_jax.errors import UserError
from cir_jax.retrieval.index.found import Found, in_threads

# ns; a file that was written just now may change again without another time, where clocks are
# coarse: it is compared once more by the next update.
_JUST_NOW = 2_000_000_000
UNCERTAIN = -1  # time of such a file


@dataclass(frozen=True, eq=False)
class Changes:
    """How what is there differs from what is known.

    Attributes:
      kept: int64, lines of what is known whose rows are good, ascending.
      stamps: int64 [kept, 2] size and time of their files now.
      todo: places in what is there that are to be encoded, in their order.
      ids: int64 [todo] id that an image had; -1 for a new one.
      new, changed, gone, touched: how many images.
    """

    kept: NDArray[np.int64]
    stamps: NDArray[np.int64]
    todo: NDArray[np.int64]
    ids: NDArray[np.int64]
    new: int
    changed: int
    gone: int
    touched: int


def compare(
    found: Found,
    known: pa.Table,
    damaged: NDArray[np.bool_],
    unreadable: Sequence[str] = (),
    threads: int = 16,
) -> Changes:
    """Compares what is there with what is known.

    Args:
      found: what is there.
      known: lines of a catalogue.
      damaged: bool [lines], whose rows are not what was written, and are made again.
      unreadable: names that this update has already tried.
      threads: files that are read at a time, where their time has changed.
    """
    names = pa.array(_text(found), pa.string())
    line = pc.index_in(names, value_set=known["name"].combine_chunks())
    at = pc.fill_null(line, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    readable = np.ones(len(at), bool)
    readable[list(found.problems)] = False
    is_known = at >= 0
    size, stamp, ids = (known[name].to_numpy()[at] if len(known) else at for name in _COLUMNS)
    same = is_known & readable & (found.size == size) & (found.time == stamp)
    suspects = np.flatnonzero(is_known & readable & ~same)
    if len(suspects):
        digests = known["content"].take(pa.array(at[suspects])).to_pylist()
        pairs = list(zip(suspects.tolist(), digests, strict=True))
        equal = in_threads(lambda pair: _content(found.files[pair[0]]) == pair[1], pairs, threads)
        touched = suspects[np.asarray(equal, bool)]
    else:
        touched = suspects
    good = same.copy()
    good[touched] = True
    if len(known):
        good &= ~damaged[at] | ~is_known
    tried = np.zeros(len(at), bool)
    if unreadable:
        tried = pc.is_in(names, value_set=pa.array(list(unreadable), pa.string())).to_numpy(False)
    todo = np.flatnonzero(readable & ~good & ~tried)
    order = np.argsort(at[good], kind="stable")
    kept = at[good][order]
    stamps = np.stack([found.size[good], certain(found.time[good])], axis=1)[order]
    new = int((~is_known[todo]).sum())
    return Changes(
        kept,
        stamps,
        todo,
        np.where(is_known[todo], ids[todo], -1),
        new,
        len(todo) - new,
        len(known) - int((is_known & (good | readable)).sum()),
        len(touched),
    )


_COLUMNS = ("size", "time", "id")


def certain(times: NDArray[np.int64]) -> NDArray[np.int64]:
    """Times of files, those of just now as UNCERTAIN."""
    return np.where(times > time.time_ns() - _JUST_NOW, UNCERTAIN, times)


def _text(found: Found) -> list[str]:
    """Names; those that no table can hold are of `problems`, and never known."""
    if not found.problems:
        return found.names
    return [name.encode(errors="replace").decode() for name in found.names]


def _content(file: str) -> bytes:
    """The checksum of a file; b"" if it cannot be read, which is found out when it is encoded."""
    try:
        return xxhash.xxh3_128_digest(picture_files.read(file))
    except UserError:
        return b""
