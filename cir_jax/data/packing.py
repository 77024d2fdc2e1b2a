# SPDX-License-Identifier: Apache-2.0
"""Several texts in a row: the texts of a global batch without their padding.

A text tower computes every position of its input. Captions of 8 to 22 tokens that are padded to 24
leave 40 % of them empty. Here texts lie one behind the other in rows of at most `ROW` tokens; a
tower keeps them apart by a mask, starts their positions anew, and reads each at its end.

A batch is packed in shares, one for each device along the batch, of as many rows each. Which share
a text lies in is chosen so that all are about equally full: the texts of few rows of a batch differ
too much. So a text may lie on another device than its row of the batch; of its tower's output only
the feature at its end has to find its way back.

Everything follows from the texts of the global batch, so that processes that do not talk to each
other pack alike. This module must not import jax: worker processes import it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from cir_jax.data import tokens as token_tables
from cir_jax.data.tokens import TokenTable

ROW = 128  # most tokens of a row, if no text is longer: attention costs the square of it
STEP = 9, 8  # from one size to the next; smaller steps waste less and compile more programs


@dataclass(frozen=True)
class Packed:
    """B texts in P rows of L tokens, of D shares: P / D rows and B / D texts each.

    Attributes:
      tokens: int32 [P, L] ids.
      position: int32 [P, L] place of each token in its own text.
      segment: int32 [P, L] which text of its row a token belongs to; -1 for none.
      end: int32 [D, B / D] where each text of a share is read: at its first largest id, which is
        CLIP's end of text, counted in the tokens of the share.
      order: int32 [B] number of the batch's text in `end`, counted through all shares.
    """

    tokens: Any  # numpy, or what stands for it in a program
    position: Any
    segment: Any
    end: Any
    order: Any

    def of(self, shares: Sequence[int] | np.ndarray) -> "Packed":
        """These shares alone, in this order; of each its rows of the batch as well."""
        count = len(self.end)
        parts = {}
        for one in fields(self):
            whole = getattr(self, one.name)
            split = whole.reshape(count, -1, *whole.shape[1:])[shares]
            parts[one.name] = split.reshape(-1, *whole.shape[1:])
        return Packed(**parts)


@dataclass(frozen=True)
class Sizes:
    """The few sizes that packed batches of a run have.

    Attributes:
      shares: D.
      usual: tokens of a share, which nearly all batches fit into. Other sizes are by steps of STEP
        above and below it.
      row: most tokens of a row, if no text is longer.
      lengths: of rows with a longer text, and the context.
    """

    shares: int
    usual: int
    row: int
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, table: TokenTable, batch: int, shares: int, lengths: Sequence[int]) -> "Sizes":
        """Those of a data set: sums of `batch` texts vary by its texts' own deviation.

        Args:
          table: all texts.
          batch: B.
          shares: D, a divisor of it.
          lengths: as `tokens.fit` takes them.
        """
        # Whole numbers throughout: processors may not differ in a last bit.
        times = np.bincount(table.lengths).astype(np.int64)
        each, count = np.arange(len(times)), max(len(table), 1)
        total = int((times * each).sum())
        variance = count * int((times * each * each).sum()) - total * total
        usual = -(-(batch * total + 2 * math.isqrt(batch * variance)) // (count * shares))
        return cls(shares, max(usual, 1), min(ROW, table.context), (*lengths, table.context))

    def next_above(self, size: int) -> int:
        """The next larger size."""
        return -(-size * STEP[0] // STEP[1])

    def least(self, tokens: int) -> int:
        """The smallest size of at least so many tokens."""
        size = self.usual
        while size < tokens:
            size = self.next_above(size)
        while (smaller := size * STEP[1] // STEP[0]) >= tokens and smaller < size:
            size = smaller
        return size

    def shape(self, size: int, longest: int) -> tuple[int, int]:
        """(rows of a share, their tokens), which hold `size` tokens and the longest text."""
        rows = -(-size // self.row)
        length = -(-size // rows)
        if length < longest:
            length = token_tables.fit(longest, self.lengths[-1], self.lengths)
            rows = -(-size // length)
        return rows, length


def pack(texts: Sequence[np.ndarray], sizes: Sizes, pad: int) -> Packed:
    """The texts of a global batch, packed.

    Args:
      texts: B of them, int32 [their tokens] each, a multiple of the shares.
      sizes: of the run.
      pad: id that fills up.
    """
    lengths = [len(text) for text in texts]
    shares = _deal(lengths, sizes.shares)
    size = sizes.least(max(sum(lengths[i] for i in share) for share in shares))
    while True:
        rows, length = sizes.shape(size, max(lengths))
        places = [_fill([lengths[i] for i in share], rows, length) for share in shares]
        if all(place is not None for place in places):
            break
        size = sizes.next_above(size)
    each = len(texts) // sizes.shares
    tokens = np.full((sizes.shares * rows, length), pad, np.int32)
    position, segment = np.zeros_like(tokens), np.full_like(tokens, -1)
    end, order = np.zeros((sizes.shares, each), np.int32), np.zeros(len(texts), np.int32)
    for number, (share, place) in enumerate(zip(shares, places, strict=True)):
        for j, (i, (row, first, before)) in enumerate(zip(share, place or (), strict=True)):
            where = number * rows + row, slice(first, first + lengths[i])
            tokens[where] = texts[i]
            position[where] = np.arange(lengths[i])
            segment[where] = before
            end[number, j] = row * length + first + int(np.argmax(texts[i]))
            order[i] = number * each + j
    return Packed(tokens, position, segment, end, order)


def _deal(lengths: Sequence[int], shares: int) -> list[list[int]]:
    """As many texts to each share, and about as many tokens: numbers of texts, longest first.

    In every round each share gets one text, the emptiest the longest.
    """
    falling = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    dealt: list[list[int]] = [[] for _ in range(shares)]
    load = [0] * shares
    for first in range(0, len(falling), shares):
        emptiest = sorted(range(shares), key=lambda share: (load[share], share))
        for share, i in zip(emptiest, falling[first : first + shares], strict=True):
            dealt[share].append(i)
            load[share] += lengths[i]
    return dealt


def _fill(lengths: Sequence[int], rows: int, length: int) -> list[tuple[int, int, int]] | None:
    """(row, first place in it, texts before it there) of each text; None if they do not fit.

    Each text, longest first as they come, goes where the least is left (best fit decreasing).
    """
    left: list[list[int]] = [[] for _ in range(length + 1)]  # room -> rows that have it
    left[length] = list(range(rows - 1, -1, -1))
    held = [0] * rows
    found = []
    for n in lengths:
        room = next((room for room in range(n, length + 1) if left[room]), None)
        if room is None:
            return None
        row = left[room].pop()
        found.append((row, length - room, held[row]))
        held[row] += 1
        left[room - n].append(row)
    return found
