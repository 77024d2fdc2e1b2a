# SPDX-License-Identifier: Apache-2.0
"""The loop: build, restore, step, evaluate, save. It names no model, data set or stage.

The one visible path of the project is main -> train.train -> step -> tx.update.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from cir_jax import progress
from cir_jax.config import to_json
from cir_jax.evals.reports import run_report
from cir_jax.params import Params
from cir_jax.runtime import checkpoint, encode, interrupts, metrics
from cir_jax.runtime import mesh as meshes
from cir_jax.training import setup, step
from cir_jax.training import state as start


@dataclass
class State:
    """What changes while training: the arrays of a checkpoint, and its record."""

    fixed: Params
    trained: Params
    optimizer: Any
    step: int = 0
    seconds: float = 0.0  # in training steps; compiling, evaluation, saving, bank left out
    best: float | None = None
    history: list[dict[str, Any]] = field(default_factory=list)  # one entry per evaluation
    data: dict[str, Any] | None = None  # position of the input pipeline
    source: dict[str, Any] | None = None  # files, or run, that the first parameters came from


def train(config: ConfigDict) -> dict[str, Any]:
    """Trains one stage, from where its run folder stands to the end, and evaluates it.

    Args:
      config: a locked config, see configs/base.py.

    Returns:
      What `results.json` in the run folder holds: {"workdir", "stage", "step", "seconds",
      "bank_seconds", "finished", "best", "scores", "protocol", "history", ...}.

    Raises:
      UserError: input that cannot be used; nothing is written over.
    """
    run = setup.run(config)
    state, optimizer = start.state(run, State)
    progress.say(setup.summary(run, state))
    began = time.monotonic()
    bank = setup.bank(run, state) if run.stage.needs_bank else None
    bank_seconds = time.monotonic() - began
    logger = metrics.Logger(config.workdir, state.step)
    last = checkpoint.Checkpoints(Path(config.workdir) / checkpoint.LAST, config.checkpoint.keep)
    best = checkpoint.Checkpoints(Path(config.workdir) / checkpoint.BEST, keep=1)
    try:
        finished = _loop(run, state, optimizer, bank, logger, last, best)
    finally:
        last.close()
        best.close()
        logger.close()
    return run_report.write(run, state, bank_seconds, finished)


def _loop(
    run: setup.Run, state: State, optimizer: Any, bank: Any, logger: Any, last: Any, best: Any
) -> bool:
    """Steps until the run is over (True) or is asked to stop (False)."""
    config = run.config
    places = jax.tree.map(lambda x: x.sharding, (state.trained, state.optimizer))
    update = step.make(run.stage, run.functions, optimizer, len(run.data.sources), places)
    batches = setup.batches(run)
    if state.data is not None:
        batches.set_state(state.data)
    key = jax.random.key(config.seed)
    evaluate_every = config.eval.every * run.steps_per_epoch or run.steps
    save_every = config.checkpoint.every_steps or evaluate_every
    retriever, programs = None, {}
    bar = progress.bar(total=run.steps, title=f"stage {config.stage}")
    bar.update(state.step)
    with interrupts.StopRequest() as stop, bar:
        while state.step < run.steps and not _out_of_time(config, state):
            began = time.monotonic()
            batch = _place(next(batches), run)
            arguments = (
                *(state.trained, state.optimizer, state.fixed, batch, bank),
                jax.random.fold_in(key, state.step),
            )
            shapes = tuple((name, x.shape) for name, x in batch.items())
            if shapes not in programs:  # compiled off the clock: a longer text is another program
                paused = time.monotonic()
                programs[shapes] = update.lower(*arguments).compile()
                began += time.monotonic() - paused
            state.trained, state.optimizer, values = programs[shapes](*arguments)
            # Waiting here keeps the clock honest; the next batch is read in the background.
            loss = float(values["loss"])
            state.seconds += time.monotonic() - began
            state.step += 1
            bar.update(1)
            _check_finite(loss, state, config)
            if state.step % config.log_every == 0 or state.step == run.steps:
                logger.write(state.step, _readable(values, run) | {"seconds": state.seconds})
            stopping = stop.now(state.step)
            over = state.step == run.steps or _out_of_time(config, state)
            if run.benchmark and (state.step % evaluate_every == 0 or over):
                retriever = _evaluate(run, state, retriever, logger, best)
            if state.step % save_every == 0 or over or stopping:
                state.data = batches.get_state()
                last.save(state.step, _tree(state, optimizer=True), _record(run, state))
            if stopping and not over:
                progress.say(
                    f"stopped at step {state.step}; the same command resumes {config.workdir}"
                )
                return False
    return True


def _place(rows: dict[str, np.ndarray], run: setup.Run) -> dict[str, jax.Array]:
    sharding = meshes.batch_sharding(run.mesh)
    return {k: encode.place(v, sharding, run.config.batch) for k, v in rows.items()}


def _out_of_time(config: ConfigDict, state: State) -> bool:
    return 0 < config.max_seconds <= state.seconds


def _evaluate(run: setup.Run, state: State, retriever: Any, logger: Any, best: Any) -> Any:
    """Scores the model as it is, notes it, and keeps its parameters if it is the best so far."""
    query = {**state.fixed, **state.trained}
    index = query if run.stage.index_is_query else state.fixed
    if retriever is None:
        retriever = setup.retriever(run, index, query)
    else:
        retriever.set_index(index)
        retriever.set_query(query)
    result = run.benchmark.run(retriever)
    entry = {"step": state.step, "seconds": state.seconds, "score": result.score, **result.scores}
    state.history.append(entry)
    logger.write(state.step, {f"eval/{k}": v for k, v in result.scores.items()})
    epoch = state.step / run.steps_per_epoch
    progress.say(f"step {state.step} (epoch {epoch:.1f}): score {result.score:.2f}")
    if state.best is None or result.score > state.best:
        state.best = result.score
        for later in (s for s in best.steps() if s >= state.step):
            best.forget(later)  # of a run that was killed and went on from before it
        best.save(state.step, _tree(state, optimizer=False), _record(run, state))
        best.wait()  # two writers at once would wait at each other's barriers on several hosts
        run_report.keep(run, result)
    return retriever


def _tree(state: State, optimizer: bool) -> dict[str, Any]:
    tree = {"fixed": state.fixed, "trained": state.trained}
    return tree | ({"optimizer": state.optimizer} if optimizer else {})


def _record(run: setup.Run, state: State) -> dict[str, Any]:
    shapes = {p: list(s.shape) for p, s in run.functions.abstract.items()}
    return {
        "config": to_json(run.config),
        "git": checkpoint.git_hash(),
        "paths": {"fixed": sorted(state.fixed), "trained": sorted(state.trained)},
        "shapes": shapes,
        "index_is_query": run.stage.index_is_query,
        "step": state.step,
        "seconds": state.seconds,
        "best": state.best,
        "history": state.history,
        "data": state.data,
        "source": state.source,
    }


def _readable(values: dict[str, jax.Array], run: setup.Run) -> dict[str, float]:
    """Metrics of a step as numbers; the loss of each source, where there are several."""
    values = {k: np.asarray(v) for k, v in values.items()}
    counts, sums = values.pop("source_count"), values.pop("source_loss")
    numbers = {k: float(v) for k, v in values.items()}
    for name, count, total in zip(run.data.sources, counts, sums, strict=True):
        numbers[f"count/{name}"] = float(count)
        if count:
            numbers[f"loss/{name}"] = float(total / count)
    return numbers


def _check_finite(loss: float, state: State, config: ConfigDict) -> None:
    if not np.isfinite(loss):
        raise FloatingPointError(
            f"loss {loss} at step {state.step}; the checkpoints before it are kept. Lower "
            f"optim.learning_rate={config.optim.learning_rate}, raise loss.temperature="
            f"{config.loss.temperature}, or set optim.clip_norm"
        )
