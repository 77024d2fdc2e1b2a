# SPDX-License-Identifier: Apache-2.0
"""Near duplicates: perceptual hashes of 128 bits that differ in a few bits.

Of d + 1 bands of a hash, d changed bits leave one as it was. So two hashes that differ in d bits at
most agree in a band, and only hashes that agree in one are compared: nothing is lost, and of a
million images and d = 8 one comparison in 2,000 is left. From d = 22 on there are so many bands,
each so narrow, that this leaves more than half of all comparisons; then, and where the images are
so alike that bands hardly tell them apart, all are compared in blocks.

Axis letters: N hashes, P pairs.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import numpy as np
from numpy.typing import NDArray

from cir_jax import progress

_BITS = 128
_TILE = 256  # hashes that are compared with as many others at a time: what fits into a cache
_FEW = 32  # hashes that agree in a band: up to so many are compared by a list of their pairs
_LIST = 2**18  # pairs of such a list
_WORTH = 0.5  # of all comparisons: a longer list of pairs takes as long as comparing all
_JOINED = 2**20  # pairs that are gathered before groups are joined

Hashes = NDArray[np.uint64]  # [N, 2]
Pairs = NDArray[np.int64]  # [P, 2]


def join_near_duplicates(
    groups: Sequence[Sequence[str]], hashes: Mapping[str, bytes], distance: int
) -> list[list[str]]:
    """Joins groups whose first members' perceptual hashes differ in `distance` bits at most.

    Likeness is passed on: if a is near b and b near c, all three are one group. Pictures without
    any edge have an empty hash, which says nothing, and are joined with none.

    Args:
      groups: of names.
      hashes: name of the first member -> 16 bytes.
      distance: bits, 0 to 127.

    Returns:
      The groups, in the order of their first members, each in the order of `groups`.
    """
    joined = b"".join(hashes[group[0]] for group in groups)
    bits = np.frombuffer(joined, np.uint64).reshape(len(groups), 2)
    some = np.flatnonzero(bits.any(axis=1))
    # Equal hashes are one to all others: a thousand copies would make half a million pairs.
    first, which = _distinct(bits[some])
    parts = _Parts(len(groups))
    parts.join(np.stack([some[first[which]], some], axis=1))
    distinct, held = some[first], 0
    waiting: list[Pairs] = []
    for pairs in pairs_within(bits[distinct], distance):
        waiting.append(distinct[pairs])
        held += len(pairs)
        if held >= _JOINED:
            parts.join(np.concatenate(waiting))
            waiting, held = [], 0
    if waiting:
        parts.join(np.concatenate(waiting))
    found: dict[int, list[str]] = {}
    for part, group in zip(parts.firsts().tolist(), groups, strict=True):
        found.setdefault(part, []).extend(group)
    return list(found.values())


def pairs_within(hashes: Hashes, distance: int) -> Iterator[Pairs]:
    """Pairs of hashes that differ in `distance` bits at most, some at a time.

    Args:
      hashes: [N, 2] uint64, the two halves of each.
      distance: bits, 0 to 127.

    Yields:
      [P, 2] numbers i < j of hashes; each pair once, in no order.
    """
    count = len(hashes)
    bands = distance + 1
    masks = _masks(bands)
    everything = count * (count - 1) // 2
    total = _left(hashes, masks, everything)
    if total <= _WORTH * everything:
        tasks = _in_bands(hashes, masks, distance)
    else:
        if count > 4 * _TILE:
            progress.say(
                f"{bands} bands of the hash, which near duplicates of {distance} bits need, leave "
                f"over {_WORTH:.0%} of the comparisons of {count:,} images: all of them are "
                "compared, in blocks. A smaller dedupe.near takes less time"
            )
        tasks, total = _tiles(hashes, np.arange(count), masks[:0], distance), everything
    with progress.counter(total, "near duplicates") as bar:
        for compared, pairs in _in_turn(tasks):
            bar.update(compared)
            if len(pairs):
                yield pairs


class _Parts:
    """Which of N things belong together; each part is named by its first."""

    def __init__(self, count: int):
        self._above = np.arange(count)

    def firsts(self) -> NDArray[np.int64]:
        """[N]: the first of the part that each is in."""
        while True:
            above = self._above[self._above]
            if np.array_equal(above, self._above):
                return self._above
            self._above = above

    def join(self, pairs: Pairs) -> None:
        """Makes both of each pair one part."""
        both = self.firsts()[pairs]
        apart = both[both[:, 0] != both[:, 1]]
        if not len(apart):
            return
        above = {i: i for i in np.unique(apart).tolist()}

        def first(i: int) -> int:
            while above[i] != i:
                above[i] = above[above[i]]
                i = above[i]
            return i

        for i, j in apart.tolist():
            a, b = first(i), first(j)
            above[max(a, b)] = min(a, b)
        self._above[list(above.keys())] = list(above.values())


def _distinct(hashes: Hashes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(the first of each distinct hash, for each hash its place among those)."""
    order = np.lexsort((hashes[:, 1], hashes[:, 0]))  # stable: the first of equal ones comes first
    ordered = hashes[order]
    new = np.ones(len(order), bool)
    new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    which = np.empty(len(order), np.int64)
    which[order] = np.cumsum(new) - 1
    return order[new], which


def _masks(bands: int) -> Hashes:
    """[bands, 2]: the bits of each band, as far apart as there are bands: neighbours depend on each
    other, so that a band of neighbours would have few values."""
    mine = np.arange(_BITS)[None] % bands == np.arange(bands)[:, None]
    return np.packbits(mine, axis=1, bitorder="little").view(np.uint64)


def _keys(hashes: Hashes, mask: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """[N]: equal for hashes that agree in a band. Others may meet by chance, which does no harm."""
    factors = np.asarray([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F], np.uint64)
    return ((hashes & mask) * factors).sum(axis=1, dtype=np.uint64)


def _left(hashes: Hashes, masks: Hashes, everything: int) -> int:
    """Comparisons that the bands leave, at least; not counted to the end where they are many."""
    # Fewer are never left than of hashes that are spread evenly over the values of their bands.
    width = _BITS / len(masks)
    least = len(masks) * len(hashes) * (len(hashes) / 2**width - 1) / 2
    if least > _WORTH * everything:
        return int(least)
    left = 0
    for mask in masks:
        keys = np.sort(_keys(hashes, mask))
        sizes = np.diff(np.flatnonzero(_changes(keys)), append=len(keys))
        left += int((sizes * (sizes - 1) // 2).sum())
        if left > _WORTH * everything:
            break
    return left


def _changes(ordered: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """[N]: whether a value is the first of its kind."""
    new = np.ones(len(ordered), bool)
    new[1:] = ordered[1:] != ordered[:-1]
    return new


Task = Callable[[], tuple[int, Pairs]]  # -> (comparisons made, pairs found)


def _in_bands(hashes: Hashes, masks: Hashes, distance: int) -> Iterator[Task]:
    """Comparisons of hashes that agree in a band.

    A pair is found in the first band in which it agrees, so it is found once.
    """
    for band, mask in enumerate(masks):
        keys = _keys(hashes, mask)
        order = np.argsort(keys, kind="stable")
        starts = np.flatnonzero(_changes(keys[order]))
        sizes = np.diff(starts, append=len(keys))
        upto = masks[: band + 1]
        few = (sizes > 1) & (sizes <= _FEW)
        # How many others with its key stand behind each.
        behind = np.repeat(np.where(few, starts + sizes, 0), sizes) - np.arange(len(keys)) - 1
        for step in range(1, _FEW):
            places = np.flatnonzero(behind >= step)
            for start in range(0, len(places), _LIST):
                one = places[start : start + _LIST]
                yield partial(_list, hashes, order[one], order[one + step], upto, distance)
        for number in np.flatnonzero(sizes > _FEW):
            members = order[starts[number] : starts[number] + sizes[number]]
            yield from _tiles(hashes, members, upto, distance)


def _list(
    hashes: Hashes, first: NDArray[np.int64], second: NDArray[np.int64], bands: Hashes, most: int
) -> tuple[int, Pairs]:
    """Compares pairs one by one."""
    changed = hashes[first] ^ hashes[second]
    near = np.bitwise_count(changed).sum(axis=1) <= most
    pairs = np.stack([first[near], second[near]], axis=1)
    return len(first), pairs[_found_here(changed[near], bands)]


def _tiles(hashes: Hashes, members: NDArray[np.int64], bands: Hashes, most: int) -> Iterator[Task]:
    """Comparisons of each member with all behind it."""
    for top in range(0, len(members), _TILE):
        for left in range(top, len(members), _TILE):
            rows, columns = members[top : top + _TILE], members[left : left + _TILE]
            yield partial(_tile, hashes, rows, columns, bands, most, top == left)


def _tile(
    hashes: Hashes,
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    bands: Hashes,
    most: int,
    same: bool,
) -> tuple[int, Pairs]:
    """Compares rows with columns; with those behind them, if both are the `same`."""
    one, other = hashes[rows], hashes[columns]
    bits = np.bitwise_count(one[:, None, 0] ^ other[None, :, 0])
    bits += np.bitwise_count(one[:, None, 1] ^ other[None, :, 1])
    near = bits <= most
    i, j = np.nonzero(np.triu(near, 1) if same else near)
    pairs = np.stack([rows[i], columns[j]], axis=1)
    compared = len(rows) * (len(rows) - 1) // 2 if same else len(rows) * len(columns)
    return compared, pairs[_found_here(one[i] ^ other[j], bands)]


def _found_here(changed: Hashes, bands: Hashes) -> NDArray[np.bool_]:
    """[P]: whether the last of some bands is the first that pairs agree in, by their changed bits.

    Everything is found where there are no bands.
    """
    found = np.ones(len(changed), bool)
    for number, mask in enumerate(bands):
        agree = ~(changed & mask).any(axis=1)
        found &= agree if number == len(bands) - 1 else ~agree
    return found


def _in_turn(tasks: Iterable[Task]) -> Iterator[tuple[int, Pairs]]:
    """Results of tasks in their order, on all cores, with a few tasks per core under way."""
    cores = os.cpu_count() or 1
    with ThreadPoolExecutor(cores) as workers:
        ahead: deque[Future[tuple[int, Pairs]]] = deque()
        try:
            for task in tasks:
                ahead.append(workers.submit(task))
                if len(ahead) > 4 * cores:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for waiting in ahead:
                waiting.cancel()
