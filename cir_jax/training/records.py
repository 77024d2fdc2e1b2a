# SPDX-License-Identifier: Apache-2.0
"""What a run leaves in its folder: metrics, evaluations, checkpoints, and the report."""

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np

from cir_jax import files, progress
from cir_jax.config import to_json
from cir_jax.data import refusals
from cir_jax.evals.benchmark import Benchmark
from cir_jax.evals.reports import run_report
from cir_jax.retrieval import golden, load
from cir_jax.retrieval.retriever import Retriever
from cir_jax.runtime import (
    agreement,
    checkpoint,
    checksums,
    memory,
    metrics,
    optim,
    supervision,
    watchdog,
)  # fmt: skip
from cir_jax.runtime.lease import Lease
from cir_jax.training import adapters
from cir_jax.training.setup import Data, Setup
from cir_jax.training.state import State

# Evaluations follow the checkpoint of their step, so they are not in it.
EVALUATIONS = "checkpoints/evaluations.json"


class Records:
    """Writes the records of one run. Use it in a `with`: leaving it waits for what is written.

    Args:
      setup: of the run.
      data: its triplets.
      state: in which the run starts; it gets the evaluations that were made since its checkpoint.
        Metrics of later steps, of a run that was killed, are cut off.
      lease: of the run folder; it is looked at before each save.
    """

    def __init__(self, setup: Setup, data: Data, state: State, lease: Lease):
        self._setup, self._data, self._lease = setup, data, lease
        folder = Path(setup.config.workdir)
        self._evaluations = folder / EVALUATIONS
        self._recall(state)
        self._state = state
        self._logger = metrics.Logger(setup.config.workdir, state.step)
        self._last = checkpoint.Checkpoints(folder / checkpoint.LAST, setup.config.checkpoint.keep)
        self._best = checkpoint.Checkpoints(folder / checkpoint.BEST, keep=1)
        self._retriever: Retriever | None = None
        self._logged = state.step, state.seconds, state.waited
        self._watcher = supervision.current()

    def __enter__(self) -> "Records":
        if self._watcher is not None:
            self._watcher.counts(self._made)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None and self._watcher is not None:
            self._watcher.announce(error)  # closing would wait for the other processes
        with ExitStack() as stack:  # all are closed, also when one fails
            stack.callback(self._logger.close)
            stack.callback(self._best.close)
            stack.callback(self._last.close)

    def wait(self) -> None:
        """Waits until the checkpoint that is being written is complete."""
        self._last.wait()

    def log(self, state: State, values: dict[str, jax.Array]) -> None:
        """Notes the metrics of step `state.step`; the loss of each source, if there are several.

        Beside them, since the line before: `step_seconds` and `input_seconds`, the time of a step
        and what of it the devices waited for input; `examples_per_second`; `images_per_second`,
        those that are opened and encoded: two of a triplet in stage one, one of a caption, none in
        stage two (one with `loss.references=recompute`). `memory_bytes` is the most that was taken
        so far, see `memory.peak`.
        """
        found = {k: np.asarray(v) for k, v in values.items()}
        counts, sums = found.pop("source_count"), found.pop("source_loss")
        numbers = {k: float(v) for k, v in found.items()}
        for name, count, total in zip(self._data.triplets.sources, counts, sums, strict=True):
            numbers[f"count/{name}"] = float(count)
            if count:
                numbers[f"loss/{name}"] = float(total / count)
        numbers |= self._pace(state) | {"seconds": state.seconds}
        self._logger.write(state.step, numbers)

    def _pace(self, state: State) -> dict[str, float]:
        """The learning rate of this step, and the speed of the steps since the last line."""
        config, (step, seconds, waited) = self._setup.config, self._logged
        self._logged = state.step, state.seconds, state.waited
        rate = optim.rate(config.optim, self._data.steps, state.step)
        found = {
            "learning_rate": rate,
            "memory_bytes": float(memory.peak(self._setup.mesh.local_devices)),
        }
        if state.seconds > seconds:
            steps, seconds = state.step - step, state.seconds - seconds
            speed = config.batch * steps / seconds
            found |= {
                "step_seconds": seconds / steps,
                "input_seconds": (state.waited - waited) / steps,
                "examples_per_second": speed,
                "images_per_second": speed * self._data.images(self._setup.stage),
            }
        return found

    def due(self, step: int, over: bool) -> tuple[bool, bool]:
        """(a checkpoint, an evaluation) belongs to this step; `over`: it is the last one.

        A step is saved before it is evaluated, so that who is stopped in an evaluation loses none.
        """
        config = self._setup.config
        every = config.eval.every * self._data.steps_per_epoch or self._data.steps
        saves = config.checkpoint.every_steps or every
        evaluates = bool(self._setup.benchmark) and (step % every == 0 or over)
        return step % saves == 0 or over or evaluates, evaluates and step > 0

    def catch_up(self, state: State, over: bool) -> None:
        """Makes the evaluation of this step, if it is due and was not made before."""
        benchmark = self._setup.benchmark
        made = any(entry["step"] == state.step for entry in state.history)
        if benchmark is not None and self.due(state.step, over)[1] and not made:
            watchdog.progress("evaluation", state.step)
            self.evaluate(state, benchmark)

    def evaluate(self, state: State, benchmark: Benchmark) -> None:
        """Scores the model as it is, and keeps its parameters if it is the best so far."""
        result = benchmark.run(self._retriever_of(state))
        entry = {"step": state.step, "seconds": state.seconds, "score": result.score}
        state.history.append(entry | result.scores)
        self._log_once(state.step, {f"eval/{k}": v for k, v in result.scores.items()})
        epoch = state.step / self._data.steps_per_epoch
        progress.say(
            f"step {state.step} (epoch {epoch:.1f}): {result.selection} {result.score:.2f}"
        )
        if state.best is None or result.score > state.best:
            state.best = result.score
            self._lease.check()
            for later in (s for s in self._best.steps() if s >= state.step):
                self._best.forget(later)  # of a run that was killed and went on from before it
            # Two writers at once would wait at each other's barriers on several hosts.
            self._last.wait()
            self._best.save(state.step, self._tree(state), self._record(state))
            self._best.wait()
            self._keep_golden(state)
            run_report.keep(self._setup.config.workdir, result)
        if jax.process_index() == 0:  # last: an evaluation that is not in here is made again
            files.put(self._evaluations, checksums.sealed({"history": state.history}))

    def save(self, state: State) -> None:
        """Starts writing a checkpoint that the run can go on from."""
        watchdog.progress("save", state.step)
        self._lease.check()
        tree = self._tree(state) | {"optimizer": state.optimizer}
        self._last.save(state.step, tree, self._record(state))

    def report(self, state: State, bank_seconds: float, finished: bool) -> dict[str, Any]:
        """Writes results.json and report.html; the content of the former."""
        kept = golden.has(self._setup.config.workdir, state.step)  # of the best one, or a rerun
        if not all(agreement.tell("kept" * kept)) and finished:
            self._keep_golden(state)
        config, triplets = self._setup.config, self._data.triplets
        counts = np.bincount(triplets.source_of, minlength=len(triplets.sources))
        results = {
            "stage": config.stage,
            "model": f"{config.model.name} {config.model.tower}",
            "step": state.step,
            "finished": finished,
            "seconds": state.seconds,
            "bank_seconds": bank_seconds,
            "triplets": dict(zip(triplets.sources, counts.tolist(), strict=True)),
            "dropped": triplets.dropped,
            "unusable": refusals.summary(self._data.screen.found),
            "best": state.best,
            "history": state.history,
            "config": config.to_dict(),
        }
        return run_report.write(config.workdir, results)

    def _keep_golden(self, state: State) -> None:
        """Keeps what the model of this step makes of the golden inputs, see `retrieval.golden`."""
        setup = self._setup
        preprocess = load.preprocessing(setup.config, setup.functions)
        made = golden.of(self._retriever_of(state), preprocess)
        if jax.process_index() == 0:
            best = set(self._best.steps())
            golden.keep_with_run(setup.config.workdir, state.step, made, best)

    def _recall(self, state: State) -> None:
        """Adds the evaluations that were made after the checkpoint of their step was written."""
        found, reason = _evaluations_in(self._evaluations)
        # Process 0 moves what is damaged when all have read it.
        if reason := next(filter(None, agreement.tell(reason)), ""):
            said = agreement.first(
                lambda: files.set_aside(self._evaluations, reason), "could not move a damaged file"
            )
            progress.say(f"{said}: evaluations since the last checkpoint are made again")
            return
        for entry in found:
            if entry["step"] <= state.step and entry not in state.history:
                state.history.append(entry)
                if state.best is None or entry["score"] > state.best:
                    state.best = entry["score"]
        state.history.sort(key=lambda entry: entry["step"])

    def _log_once(self, step: int, values: dict[str, Any]) -> None:
        """Logs `values`, unless a run that was stopped right after doing so has left them."""
        lines = metrics.read(Path(self._setup.config.workdir) / metrics.FILE)
        if not any(line["step"] == step and values.keys() <= line.keys() for line in lines):
            self._logger.write(step, values)

    def _made(self) -> tuple[int, int]:
        """(step that was made, newest step that is complete on disk)."""
        return self._state.step, max(self._last.steps(), default=0)

    def _retriever_of(self, state: State) -> Retriever:
        setup = self._setup
        query = {**state.fixed, **state.trained}
        index = query if setup.stage.index_is_query else state.fixed
        if self._retriever is None:
            self._retriever = load.from_parameters(
                setup.config,
                setup.functions,
                setup.mesh,
                index,
                query,
                setup.pixels.part(again=True),
            )
        else:
            self._retriever.set_index(index)
            self._retriever.set_query(query)
        return self._retriever

    def _record(self, state: State) -> dict[str, Any]:
        setup = self._setup
        return {
            "config": to_json(setup.config),
            "git": checkpoint.git_hash(),
            "paths": {"fixed": sorted(state.fixed), "trained": sorted(state.trained)},
            "shapes": {p: list(s.shape) for p, s in setup.functions.abstract.items()},
            "index_is_query": setup.stage.index_is_query,
            "step": state.step,
            "seconds": state.seconds,
            "best": state.best,
            "history": state.history,
            "data": state.data,
            "fingerprints": self._data.fingerprints,
            "source": state.source,
            **adapters.record(setup.functions, state.base),
        }

    def _tree(self, state: State) -> dict[str, Any]:
        """The parameters of a checkpoint; those below adapters are in the run already."""
        if self._setup.functions.adapters is not None:
            return {"trained": state.trained}
        return {"fixed": state.fixed, "trained": state.trained}


def _evaluations_in(path: Path) -> tuple[list[dict[str, Any]], str]:
    """(the entries of the file, what is wrong with it or "")."""
    try:
        found = checksums.opened(path.read_bytes(), EVALUATIONS).get("history")
    except FileNotFoundError:
        return [], ""
    except (checksums.Damaged, OSError) as error:
        return [], str(error)
    if not isinstance(found, list) or not all(
        isinstance(entry, dict)
        and type(entry.get("step")) is int
        and type(entry.get("score")) in (int, float)
        for entry in found
    ):
        return [], "it holds no evaluations"
    return found, ""
