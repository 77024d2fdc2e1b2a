# SPDX-License-Identifier: Apache-2.0
"""What a run says of itself once it trains: memory, pace, and steps that teach or are nothing."""

import os
from typing import Any

import jax
import numpy as np

from cir_jax import progress
from cir_jax.training import degenerate, diverged, memory
from cir_jax.training.setup import Data, Setup
from cir_jax.training.state import State

FIRST, MEASURED = 2, 8  # steps that warm up, and those after them of which the pace is taken
WINDOW = 20  # steps of which it is looked at how long they waited for input
WAITED = 0.05  # the share of their time from which on that is said


class Notices:
    """Lines for people, each once.

    Args:
      setup: of the run.
      data: its triplets.
      state: in which this process begins.
    """

    def __init__(self, setup: Setup, data: Data, state: State):
        self._setup, self._data = setup, data
        self._began, self._told = state.step, False
        self._marked: tuple[int, float] | None = None
        self._window: tuple[float, float] | None = None
        self._slow = False
        self._watch = degenerate.Watch(setup.config.batch)
        self._recent = diverged.Recent(setup, data)

    def compiled(self, program: Any) -> None:
        """Says what the first program takes, before it runs.

        Raises:
          OutOfMemory: more than a CPU has.
        """
        if not self._told:
            self._told = True
            progress.say(memory.told(self._setup, self._data, program))

    def batch(self, step: int, rows: dict[str, np.ndarray]) -> None:
        """Looks at the rows that this process has of the batch of `step`."""
        self._recent.add(step, rows)
        self._watch.batch(step, rows, self._setup.stage.needs_bank)

    def step(self, state: State, values: dict[str, jax.Array]) -> None:
        """Looks at a step that was made, with its metrics."""
        self._watch.step(state.step, values)
        made = state.step - self._began
        if made == FIRST:
            self._marked = state.step, state.seconds
        elif made == FIRST + MEASURED and self._marked is not None:
            seconds = (state.seconds - self._marked[1]) / MEASURED
            progress.say(pace(self._setup, self._data, state, seconds))
        if made >= FIRST and (made - FIRST) % WINDOW == 0:
            self._look_at_input(state)

    def _look_at_input(self, state: State) -> None:
        """Says, once, that the devices wait for input, and what makes them wait less."""
        before, self._window = self._window, (state.seconds, state.waited)
        if before is None or self._slow:
            return
        seconds, waited = state.seconds - before[0], state.waited - before[1]
        if waited > WAITED * seconds:
            self._slow = True
            progress.say(
                f"warning: in the last {WINDOW} steps the devices waited {waited / seconds:.0%} of "
                f"the time for input, {waited / WINDOW:.2g} of {seconds / WINDOW:.2g} s a step. "
                f"{quicker_input(self._setup, self._data)}"
            )

    def diverged(self, step: int, values: dict[str, jax.Array]) -> diverged.Diverged:
        """Of a step whose metrics are not finite: the exception to raise, on all processes."""
        return self._recent.diverged(step, values)


def pace(setup: Setup, data: Data, state: State, seconds: float) -> str:
    """The speed of steps, and how long an epoch and the whole run take.

    Args:
      setup: of the run.
      data: its triplets.
      state: in which it is.
      seconds: a step takes.
    """
    config = setup.config
    left = seconds * (data.steps - state.step)
    whole = state.seconds + left
    if 0 < config.max_seconds < whole:
        whole, left = config.max_seconds, max(config.max_seconds - state.seconds, 0.0)
    speed = config.batch / seconds
    images = data.images(setup.stage)
    return (
        f"{seconds:.3g} s a step, {speed:,.3g} examples "
        f"{f'and {speed * images:,.3g} images ' if images else ''}per second: "
        f"{duration(seconds * data.steps_per_epoch)} an epoch, {duration(whole)} the whole run, of "
        f"which {duration(left)} are left (evaluations and compiling are not counted)"
    )


def quicker_input(setup: Setup, data: Data) -> str:
    """What makes batches come sooner, with the present values; only what this run has."""
    config, cores = setup.config, os.cpu_count() or 1
    fields, choices = data.fields(setup.stage), []
    if data.images(setup.stage):
        if config.data.pixels != "memory":
            choices.append(
                f"data.pixels=memory or disk (now {config.data.pixels}), where there is room: each "
                "image is decoded once"
            )
        if config.data.threads < cores:
            choices.append(f"data.threads={cores} (now {config.data.threads}), one for each core")
        devices = jax.local_devices()
        if len(devices) > 1 and devices[0].platform == "gpu":
            # Threads share the interpreter's lock: together they decode some 1,900 images a second.
            choices.append(
                f"a process for each of the {len(devices)} GPUs (launch/local_gpu.sh "
                "--process-per-gpu), so that more than one interpreter reads images"
            )
    if "reference" in fields:
        choices.append("loss.references=device (now disk), or a faster disk")
    choices.append(
        f"a larger batch (now batch={config.batch}), where a step is so short that drawing its "
        "batch takes as long"
    )
    return "What takes less: " + "; ".join(choices)


def duration(seconds: float) -> str:
    """A time for people: "45 s", "12 min", "3.5 h", "4.2 days"."""
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.{0 if seconds >= 10 * unit else 1}f} {name}"
    return f"{seconds / 86_400:,.1f} days"
