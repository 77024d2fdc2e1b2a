# SPDX-License-Identifier: Apache-2.0
"""Programs that take turns, many steps at a time, until their part of the time is over."""

import statistics
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

# Steps -> seconds that they took, until the device had done them all.
Program = Callable[[int], float]


class Clock:
    """What is left of the seconds that a part may take."""

    def __init__(self, seconds: float):
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds; below 0 when they are over."""
        return self._end - time.monotonic()


@dataclass
class Turns:
    """What a round of turns has found.

    Attributes:
      steps: between two waits for the device.
      seconds: program -> of a step, in each of its blocks.
      left_out: program -> why it was not measured.
    """

    steps: int
    seconds: dict[str, list[float]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def summary(self) -> dict[str, dict[str, float]]:
        """Program -> milliseconds of a step (median), their spread and the number of blocks.

        The spread is that from the fastest to the slowest block, as a share of the median.
        """
        found = {}
        for name, each in self.seconds.items():
            middle = statistics.median(each)
            found[name] = {
                "step_ms": 1e3 * middle,
                "spread": (max(each) - min(each)) / middle,
                "blocks": len(each),
            }
        return found

    def median(self, name: str) -> float | None:
        """Seconds of a step; None of a program that was left out."""
        return statistics.median(self.seconds[name]) if self.seconds.get(name) else None


def in_turns(
    programs: dict[str, Program],
    steps: int,
    blocks: int,
    clock: Clock,
    certain: Collection[str] = (),
    may_fail: Collection[str] = (),
    first: Mapping[str, float] | None = None,
) -> Turns:
    """Blocks of every program, one after the other, in an order that turns from round to round.

    Two steps of each go unmeasured: they compile, and tell how long a block will take. A program
    whose first block does not fit into the time is left out; rounds end when the time does.

    Args:
      programs: name -> what makes steps.
      steps: of a block.
      blocks: of each program, at most.
      clock: of the part.
      certain: programs that have one block even if the time is over.
      may_fail: programs that are left out if they raise; an error of any other is raised.
      first: program -> seconds that its first step takes, about; it is made ready only where they
        are left.
    """
    turns = Turns(steps)
    need = _warm(programs, turns, clock, certain, may_fail, first or {})
    for name in sorted(need, key=lambda name: (name not in certain, need[name])):
        left = max(clock.left() - sum(need[one] for one in turns.seconds), 0.0)
        if need[name] > left and name not in certain:
            turns.left_out[name] = (
                f"a block of {steps} steps takes about {need[name]:.1f} s; {left:.0f} s are left"
            )
        else:
            turns.seconds[name] = []
    order = [name for name in programs if name in turns.seconds]
    for turn in range(blocks):
        for name in order if turn % 2 else reversed(order):
            if name not in turns.seconds or (turn and need[name] > clock.left()):
                continue
            try:
                turns.seconds[name].append(programs[name](steps) / steps)
            except Exception as error:
                if name not in may_fail:
                    raise
                turns.left_out[name] = _failure(error)
                del turns.seconds[name]
    return turns


def _warm(
    programs: dict[str, Program],
    turns: Turns,
    clock: Clock,
    certain: Collection[str],
    may_fail: Collection[str],
    first: Mapping[str, float],
) -> dict[str, float]:
    """Program -> seconds of a block, about; what cannot be made ready is noted in `turns`."""
    need: dict[str, float] = {}
    for name, program in programs.items():
        left = clock.left()  # for what one block of each takes that will have one
        left -= sum(each for other, each in need.items() if other in certain or each < left)
        if name not in certain and left < first.get(name, 0.0):
            turns.left_out[name] = (
                f"its first step takes about {first[name]:.0f} s; {max(left, 0.0):.0f} s are left"
                if name in first
                else "no time was left to make it ready"
            )
            continue
        try:
            program(1)
            need[name] = turns.steps * program(1)
        except Exception as error:  # whatever another library raises, out of memory among it
            if name not in may_fail:
                raise
            turns.left_out[name] = _failure(error)
    return need


def _failure(error: Exception) -> str:
    first = (str(error).strip().splitlines() or [""])[0]
    return f"it failed: {type(error).__name__}: {first[:300]}"


def timed(step: Callable[[], Any], wait: Callable[[Any], Any]) -> Program:
    """A program of steps that are started one after the other.

    Args:
      step: starts one, and returns what it will give.
      wait: returns when that is there.
    """

    def program(steps: int) -> float:
        began, given = time.perf_counter(), None
        for _ in range(steps):
            given = step()
        wait(given)
        return time.perf_counter() - began

    return program
