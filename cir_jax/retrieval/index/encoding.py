# SPDX-License-Identifier: Apache-2.0
"""Encodes files batch by batch: threads decode ahead of the devices, and rows come out in order.

An image that cannot be read keeps its place in its batch, so that which images share a batch, and
with it every bit of their rows, does not depend on where an earlier run was stopped.
"""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray

from cir_jax.data import picture_files, unusable
from cir_jax.data.unusable import Problem, Stamp
from cir_jax.errors import ServerError, UserError
from cir_jax.retrieval.index.changes import certain
from cir_jax.retrieval.index.found import Found
from cir_jax.retrieval.retriever import Retriever

_SMALL = 8  # what is left over is encoded as a whole batch if it is more than an eighth of one


@dataclass(frozen=True)
class Read:
    """What became of one file.

    Attributes:
      place: in the list of what is there.
      stamp: size and time of the file, as they were before it was read.
      content: its checksum.
      problem: why it cannot be read; None if it can.
    """

    place: int
    stamp: tuple[int, int]
    content: bytes = b""
    problem: Problem | None = None


class Encoder:
    """Encodes images that are there.

    Args:
      retriever: of the model.
      size: side of its input, in pixels.
      found: what is there.
    """

    def __init__(self, retriever: Retriever, size: int, found: Found):
        self._retriever, self._found = retriever, found
        self._blank = np.zeros((size, size, 3), np.uint8)
        self._read: dict[int, Read] = {}
        self._lock = threading.Lock()

    def batches(self, todo: NDArray[np.int64]) -> Iterator[tuple[list[Read], NDArray[np.float32]]]:
        """(what became of the files of a batch, their rows [n, K, D]), in the order of `todo`.

        Args:
          todo: places in the list of what is there.

        Raises:
          UserError: the model gives no finite numbers.
        """
        batch = self._retriever.batch
        rest = len(todo) % batch
        whole = len(todo) if rest * _SMALL > batch else len(todo) - rest
        parts = (todo[:whole], batch), (todo[whole:], 1 << (rest - 1).bit_length() if rest else 0)
        for part, least in parts:
            if not len(part):
                continue
            items = part.tolist()
            stream = self._retriever.stream(items, self._load, least, self._prepare)
            for start, rows in stream:
                reads = [self._read.pop(item) for item in items[start : start + len(rows)]]
                good = np.asarray([read.problem is None for read in reads], bool)
                if not np.isfinite(rows[good]).all():
                    raise UserError(
                        "the model gives rows that are no finite numbers; its weights are damaged, "
                        "or of another type of computation: give --compute float32"
                    )
                yield reads, rows

    def problem(self, place: int) -> Problem | None:
        """Why the file at a place cannot be read; None if it can."""
        return self._opened(place)[1].problem

    def _prepare(self, items: Sequence[int]) -> None:
        self._retriever.prepare([self._found.files[item] for item in items])

    def _load(self, item: int) -> dict[str, np.ndarray]:
        pixels, read = self._opened(item)
        with self._lock:
            self._read[item] = read
        return {"pixels": pixels}

    def _opened(self, item: int) -> tuple[np.ndarray, Read]:
        file = self._found.files[item]
        stamp = unusable.stamp(file)
        if isinstance(stamp, Problem):
            return self._blank, Read(item, (-1, -1), problem=stamp)
        kept = _kept(stamp)
        try:
            content = picture_files.read(file)
            pixels = self._retriever.preprocess(picture_files.Content(content, file))
        except ServerError:
            raise
        except UserError as error:
            return self._blank, Read(item, kept, problem=unusable.problem(file, error))
        return pixels, Read(item, kept, xxhash.xxh3_128_digest(content))


def _kept(stamp: Stamp) -> tuple[int, int]:
    return stamp.size, int(certain(np.asarray(stamp.time, np.int64)))
