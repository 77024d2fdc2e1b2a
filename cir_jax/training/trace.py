# SPDX-License-Identifier: Apache-2.0
"""A trace of a few steps in the run folder: what device and host did when, for TensorBoard and
Perfetto."""

import contextlib
from pathlib import Path
from types import TracebackType

import jax

from cir_jax import progress
from cir_jax.errors import UserError

STEPS = 5  # that are traced
SKIPPED = 3  # steps before them, which compile and warm up
FOLDER = "tensorboard"  # of the run; where its scalars are as well


class Trace:
    """Traces `STEPS` steps of a run, on process 0. Use it in a `with`: leaving it ends the trace.

    Args:
      workdir: the run folder.
      step: after which this process begins.
      steps: of the whole run.
      wanted: False traces nothing.
    """

    def __init__(self, workdir: str | Path, step: int, steps: int, wanted: bool):
        self._folder, self._wanted = Path(workdir) / FOLDER, wanted
        self._first = max(step + 1, min(step + 1 + SKIPPED, steps + 1 - STEPS))
        self._last = self._first + STEPS - 1
        self._traced: list[int] = []
        self._runs = False

    def __enter__(self) -> "Trace":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._runs:
            self._end()
        elif self._wanted and error is None:
            progress.say("profile: no step was traced, since this run made none to trace")

    def turns(self, step: int) -> bool:
        """Whether the trace begins or ends before `step`: no step may be on its way then."""
        return self._wanted and step in (self._first, self._last + 1)

    def turn(self, step: int) -> None:
        """Begins or ends the trace before `step`.

        Raises:
          UserError: the program that called the trainer traces already.
        """
        if self._runs:
            self._end()
        elif step == self._first:
            self._begin()

    def annotate(self, step: int) -> contextlib.AbstractContextManager[None]:
        """A context for the host's part of `step`, which gives it its name in the trace."""
        if not self._runs:
            return contextlib.nullcontext()
        self._traced.append(step)
        return jax.profiler.StepTraceAnnotation("train", step_num=step)

    def _begin(self) -> None:
        self._runs = True
        if jax.process_index():
            return
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # each call of Python would hide the steps among them
        try:
            jax.profiler.start_trace(
                self._folder, create_perfetto_trace=True, profiler_options=options
            )
        except RuntimeError as error:
            self._runs = False
            raise UserError(
                f"profile=True, but no trace can be begun ({error}); end the trace that the "
                "program has begun, or set profile=False"
            ) from None

    def _end(self) -> None:
        self._runs = self._wanted = False
        if jax.process_index():
            return
        try:
            jax.profiler.stop_trace()
        except (OSError, ValueError, jax.errors.JaxRuntimeError) as error:
            progress.say(f"warning: the trace below {self._folder} could not be written ({error})")
            return
        steps = f"{self._traced[0]} to {self._traced[-1]}" if self._traced else "none"
        found = sorted(self._folder.glob("plugins/profile/*/perfetto_trace.json.gz"))
        progress.say(
            f"profile: steps {steps} are traced; https://ui.perfetto.dev opens {found[-1]}, and "
            f"TensorBoard with the plug-in xprof opens {self._folder}"
        )
