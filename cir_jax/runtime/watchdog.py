# SPDX-License-Identifier: Apache-2.0
"""Where the work of this process stands, for whoever watches it.

The main thread says what it does with `progress`; the watching thread (`supervision`) reads `now`
and ends a run that has stood still for too long. Free of jax, and cheap: a call takes microseconds.
"""

import time
from dataclasses import dataclass

# In the order in which a step passes them: of two processes at one step, who is in an earlier
# phase is the late one. Phases that are not here come first.
ORDER = ("read", "compile", "step", "save", "evaluation", "report", "end")


@dataclass(frozen=True)
class Place:
    """Where the main thread is.

    Attributes:
      phase: what it does: "start", "bank", one of `ORDER`, ...
      step: the step it is at; 0 before the loop.
      part: how often it has reported progress since the phase began.
      since: `time.monotonic()` of the last report.
    """

    phase: str = "start"
    step: int = 0
    part: int = 0
    since: float = 0.0

    def rank(self) -> tuple[int, int, int]:
        """Grows as a run goes on; processes that wait for each other are at the same one."""
        order = ORDER.index(self.phase) if self.phase in ORDER else -1
        return self.step, order, self.part

    def __str__(self) -> str:
        return f"in {self.phase!r} of step {self.step}" if self.step else f"in {self.phase!r}"


_now = Place(since=time.monotonic())


def progress(phase: str = "", step: int | None = None) -> None:
    """Says that the work goes on.

    Args:
      phase: what is done from here on; "" for more of the same.
      step: of the loop; None if it has not changed.
    """
    global _now
    before, same = _now, phase in ("", _now.phase) and step in (None, _now.step)
    _now = Place(
        phase or before.phase,
        before.step if step is None else step,
        before.part + 1 if same else 0,
        time.monotonic(),
    )


def now() -> Place:
    """The last report."""
    return _now


def forgive(seconds: float) -> None:
    """Time in which this process could not run, stopped or on a suspended machine, is no delay."""
    global _now
    place = _now
    _now = Place(place.phase, place.step, place.part, place.since + seconds)


def overdue(stuck: float, compiling: float) -> float:
    """Seconds without progress if they are more than the limit, else 0.

    Args:
      stuck: the limit, in seconds; 0 for none.
      compiling: the limit in the phase "compile".
    """
    place = _now
    limit = compiling if place.phase == "compile" else stuck
    still = time.monotonic() - place.since
    return still if 0 < limit < still else 0.0
