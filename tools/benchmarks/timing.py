# SPDX-License-Identifier: Apache-2.0
"""Times programs against each other, in turns, so that what else runs on the machine hits all."""

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax


def alternate(programs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each program in each round; a round runs all of them once.

    One round goes unmeasured: it compiles and touches the memory. The order turns from round to
    round, so that none always runs behind the same other.
    """
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for turn in range(repeats + 1):
        order = list(programs) if turn % 2 else list(reversed(programs))
        for name in order:
            start = time.perf_counter()
            jax.block_until_ready(programs[name]())
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds: dict[str, list[float]], one: str, other: str) -> float:
    """Median over the rounds of `one` / `other`."""
    return statistics.median(a / b for a, b in zip(seconds[one], seconds[other], strict=True))


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Prints columns to stderr."""
    cells = [[f"{x:.3f}" if isinstance(x, float) else str(x) for x in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(header), *cells]) for i in range(len(header))]
    for row in [list(header), *cells]:
        line = "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        print(line, file=sys.stderr)
