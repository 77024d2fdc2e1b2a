# SPDX-License-Identifier: Apache-2.0
"""Sequences behind each other that are not copied: of triplets, names and files of many sources."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")


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
