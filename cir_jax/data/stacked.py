# SPDX-License-Identifier: Apache-2.0
"""Sequences behind each other that are not copied: of triplets, names and files of many sources."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")
_STEP = 1 << 18  # values that are compared at a time


class Stacked(Sequence[T]):
    """Some sequences, read as one.

    Attributes:
      parts: the sequences.
    """

    def __init__(self, parts: Sequence[Sequence[T]]):
        self.parts = tuple(parts)
        self._starts = np.cumsum([0, *map(len, self.parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return tuple(self[i] for i in range(*place.indices(len(self))))
        if not -len(self) <= place < len(self):
            raise IndexError(f"place {place} of {len(self)}")
        place = int(place) % len(self)
        part = int(np.searchsorted(self._starts, place, side="right")) - 1
        return self.parts[part][place - int(self._starts[part])]

    def __iter__(self) -> Iterator[T]:
        return itertools.chain.from_iterable(self.parts)


def stacked(parts: Sequence[Sequence[T]]) -> Sequence[T]:
    """Some sequences as one: a tuple where all of them are."""
    if all(isinstance(part, tuple) for part in parts):
        return tuple(itertools.chain.from_iterable(parts))
    return Stacked([one for part in parts for one in getattr(part, "parts", [part])])


def starts(lengths: Sequence[np.ndarray]) -> np.ndarray:
    """int64 [n + 1]: where each of n things begins, of these lengths, and where the last one ends.

    The arrays of lengths are taken one after the other, and nothing of the size of all is copied.
    """
    found = np.zeros(1 + sum(map(len, lengths)), np.int64)
    place = 1
    for some in lengths:
        found[place : place + len(some)] = some
        place += len(some)
    return np.cumsum(found, out=found)


def among(values: np.ndarray, some: np.ndarray) -> np.ndarray:
    """bool: whether each value is one of `some`, without a copy of all of them."""
    found = np.zeros(len(values), bool)
    ordered = np.sort(some)
    if len(ordered):
        for first in range(0, len(values), _STEP):
            part = values[first : first + _STEP]
            place = np.minimum(np.searchsorted(ordered, part), len(ordered) - 1)
            found[first : first + _STEP] = ordered[place] == part
    return found


def repeated(values: np.ndarray) -> np.ndarray:
    """The values that come more than once."""
    ordered = np.sort(values)
    return np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
