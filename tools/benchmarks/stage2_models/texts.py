# SPDX-License-Identifier: Apache-2.0
"""Texts of the lengths of FashionIQ and CIRR, and how full they make packed batches."""

from dataclasses import dataclass

import numpy as np

from cir_jax.data import packing, tokens

# Tokens of two captions of FashionIQ in one text, and of a text of CIRR, start and end included:
# every length from the first to the last is as likely.
KINDS = {"FashionIQ": (8, 22), "CIRR": (10, 25)}
CONTEXT = 77
LENGTHS = (16, 24, 32, 48, 77)


@dataclass(frozen=True)
class Packed:
    """What batches of a data set come to.

    Attributes:
      real: tokens over positions that are computed.
      padded: the same, of batches that are padded to the smallest of LENGTHS that fits.
      shapes: (rows, length) of the batches: each is a program of its own.
    """

    real: float
    padded: float
    shapes: frozenset[tuple[int, int]]


def lengths(kind: str, count: int, seed: int = 0) -> np.ndarray:
    """int64 [count] tokens of texts of one of KINDS."""
    low, high = KINDS[kind]
    return np.random.default_rng(seed).integers(low, high + 1, count)


def sizes(kind: str, batch: int, shares: int) -> packing.Sizes:
    """Of a data set of such texts."""
    start = np.concatenate([[0], np.cumsum(lengths(kind, 2000))])
    every = tokens.TokenTable(np.zeros(start[-1], np.int32), start, CONTEXT, 0)
    return packing.Sizes.of(every, batch, shares, LENGTHS)


def packed(kind: str, batch: int, shares: int, batches: int = 40) -> Packed:
    """Packs random batches.

    Args:
      kind: one of KINDS.
      batch: texts of each.
      shares: devices along the batch.
      batches: their number.
    """
    chosen, drawn = sizes(kind, batch, shares), lengths(kind, batches * batch, seed=1)
    shapes, computed, padded = set(), 0, 0
    for each in drawn.reshape(batches, batch):
        found = packing.pack([np.ones(n, np.int32) for n in each], chosen, 0)
        shapes.add(found.tokens.shape)
        computed += found.tokens.size
        padded += batch * tokens.fit(int(each.max()), CONTEXT, LENGTHS)
    real = int(drawn.sum())
    return Packed(real / computed, real / padded, frozenset(shapes))
