# SPDX-License-Identifier: Apache-2.0
"""Images that are nearly the same are one result.

Two images are nearly the same if their files hold the same bytes, or if

    1 - likeness <= min(0.01, far / 50),

where the likeness is the mean over K of the products of their rows (the cosine where K is 1), and
nine of ten pairs of a sample of the index are within 1 - likeness = far. The second bound is there
because models differ: in a small or a young one any two images may be as near as 0.99.

A ranking is read from its best image on. An image that is nearly the same as one that is shown is
folded under it, the best one if there are several; any other is shown. So the first n results are
the same however far it is read, and a second page goes on after the first.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

NEAREST = 0.01  # 1 - likeness of two images that are nearly the same, at most
FARTHER = 50  # and so many times nearer than pairs of images that are far
FAR = 90  # per cent of the pairs that are nearer than these
SAMPLE = 64  # images of whose pairs that is taken
_BLOCK = 256  # images compared with those that are shown at a time


def radius(rows: NDArray[np.float32]) -> float:
    """Largest 1 - likeness of two images that are nearly the same, of a sample [n, K, D]."""
    if len(rows) < 2:
        return NEAREST
    flat = _flat(rows)
    apart = 1 - (flat @ flat.T)[np.triu_indices(len(flat), 1)]
    return min(NEAREST, max(0.0, float(np.percentile(apart, FAR))) / FARTHER)


def fold(rows: NDArray[np.float32], contents: Sequence[bytes], within: float) -> list[list[int]]:
    """The groups of a ranking.

    Args:
      rows: [n, K, D] of the images, best first.
      contents: hashes of their files.
      within: see `radius`.

    Returns:
      For each image that is shown, in order: its place, and then those of the images under it.
    """
    flat = _flat(rows)
    first: dict[bytes, int] = {}  # content -> the group that has it
    shown: list[int] = []
    groups: list[list[int]] = []
    for start in range(0, len(flat), _BLOCK):
        block = flat[start : start + _BLOCK]
        before = len(shown)
        earlier = _first(1 - block @ flat[shown].T <= within)
        near = 1 - block @ block.T <= within
        inside: list[int] = []  # places in the block of those that it shows
        for i, place in enumerate(range(start, start + len(block))):
            found = [first[contents[place]]] if contents[place] in first else []
            if earlier[i] >= 0:
                found.append(int(earlier[i]))
            elif near[i, inside].any():
                found.append(before + int(near[i, inside].argmax()))
            if not found:
                found = [len(groups)]
                groups.append([])
                shown.append(place)
                inside.append(i)
            group = min(found)
            groups[group].append(place)
            first.setdefault(contents[place], group)
    return groups


def _first(near: NDArray[np.bool_]) -> NDArray[np.int64]:
    """[b, n] -> [b]: the first column that is true, or -1."""
    if not near.shape[1]:
        return np.full(len(near), -1)
    return np.where(near.any(axis=1), near.argmax(axis=1), -1)


def _flat(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """[n, K, D] -> [n, K D] of length 1: a product of two is the mean of those of their rows."""
    flat = rows.reshape(len(rows), -1)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)
