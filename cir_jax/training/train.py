# SPDX-License-Identifier: Apache-2.0
"""The loop: restore, step, evaluate, save. It names no model, data set or stage.

The one visible path of the project is main -> train -> step -> tx.update.
"""

import time
from typing import Any

import jax
import numpy as np
from grain import DatasetIterator
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cir_jax import progress
from cir_jax.bank.bank import Bank
from cir_jax.runtime import distributed, encode, interrupts, optim, watchdog
from cir_jax.runtime import mesh as meshes
from cir_jax.runtime.limits import Limits
from cir_jax.training import agreement, diverged, step
from cir_jax.training import setup as setups
from cir_jax.training import state as states
from cir_jax.training.records import Records
from cir_jax.training.setup import Data, Setup
from cir_jax.training.state import State


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
    limits = Limits.of(config)
    distributed.join(limits)
    agreement.check("run", agreement.of_run(config))
    setup = setups.make(setups.resolve(config))
    watchdog.progress("data")
    data = setups.read_data(setup)
    agreement.check("data", agreement.of_data(data.triplets))
    watchdog.progress("restore")
    state, tx = states.start(setup, data.steps)
    progress.say(summary(setup, data, state))
    began = time.monotonic()
    watchdog.progress("bank")
    bank, store = setups.build_bank(setup, data, state.fixed)
    bank_seconds = time.monotonic() - began
    batches = setups.make_batches(setup, data, store)
    if state.data is not None:
        batches.set_state(state.data)
    places = jax.tree.map(lambda x: x.sharding, (state.trained, state.optimizer))
    update = step.make(setup.stage, setup.functions, tx, len(data.triplets.sources), places)
    with Records(setup, data, state) as records, interrupts.StopRequest(limits) as stop:
        finished = _loop(setup, data, state, update, batches, bank, records, stop)
        watchdog.progress("report")
    return records.report(state, bank_seconds, finished)


def _loop(
    setup: Setup,
    data: Data,
    state: State,
    update: jax.stages.Wrapped,
    batches: DatasetIterator,
    bank: Bank | None,
    records: Records,
    stop: interrupts.StopRequest,
) -> bool:
    """Steps until the run is over (True) or is asked to stop (False)."""
    config = setup.config
    key = jax.random.key(config.seed)
    evaluate_every = config.eval.every * data.steps_per_epoch or data.steps
    save_every = config.checkpoint.every_steps or evaluate_every
    programs: dict[Any, Any] = {}
    recent = diverged.Recent(setup, data)
    bar = progress.bar(total=data.steps, title=f"stage {config.stage}")
    bar.update(state.step)

    def over() -> bool:
        return state.step >= data.steps or _out_of_time(config, state)

    def evaluate() -> None:
        """Scores the step that was just saved, or that the run goes on from."""
        due = state.step % evaluate_every == 0 or over()
        if setup.benchmark and due and state.step and not records.evaluated(state):
            watchdog.progress("evaluation")
            records.evaluate(state, setup.benchmark)

    with bar:
        if stop.now(state.step):
            return _stopped(state, config, over())
        evaluate()  # if the run ended in the evaluation of this step
        while not over():
            watchdog.progress("read", state.step + 1)
            began = time.monotonic()
            rows = next(batches)
            recent.add(state.step + 1, rows)
            batch = _place(rows, setup.mesh, config.batch)
            arguments = (
                *(state.trained, state.optimizer, state.fixed, batch, bank),
                jax.random.fold_in(key, state.step),
            )
            shapes = tuple((name, x.shape) for name, x in batch.items())
            if shapes not in programs:  # compiled off the clock: a longer text is another program
                watchdog.progress("compile")
                paused = time.monotonic()
                programs[shapes] = update.lower(*arguments).compile()
                began += time.monotonic() - paused
            watchdog.progress("step")
            state.trained, state.optimizer, values = programs[shapes](*arguments)
            # Waiting here keeps the clock honest; the next batch is read in the background.
            loss, norm = float(values["loss"]), float(values["gradient_norm"])
            state.seconds += time.monotonic() - began
            state.step += 1
            bar.update(1)
            if not np.isfinite([loss, norm]).all():
                records.wait()  # for the checkpoint that may be on its way: it is a good one
                raise recent.diverged(loss, norm)
            if state.step % config.log_every == 0 or state.step == data.steps:
                records.log(state, values)
            stopping = stop.now(state.step)
            evaluating = setup.benchmark and state.step % evaluate_every == 0
            if state.step % save_every == 0 or evaluating or over() or stopping:
                watchdog.progress("save")
                state.data = batches.get_state()
                records.save(state)
            if stopping:
                return _stopped(state, config, over())
            evaluate()  # of a step that is saved: who is stopped here loses no step
    return True


def _stopped(state: State, config: ConfigDict, over: bool) -> bool:
    """Says so; False."""
    left = "evaluates it and writes the report" if over else "resumes"
    progress.say(f"stopped at step {state.step}; the same command {left}: {config.workdir}")
    return False


def _place(rows: dict[str, np.ndarray], mesh: Mesh, batch: int) -> dict[str, jax.Array]:
    sharding = meshes.batch_sharding(mesh)
    return {k: encode.place(v, sharding, batch) for k, v in rows.items()}


def _out_of_time(config: ConfigDict, state: State) -> bool:
    return 0 < config.max_seconds <= state.seconds


def summary(setup: Setup, data: Data, state: State) -> str:
    """What is about to be trained, in a few lines."""
    config, triplets = setup.config, data.triplets
    sources = ", ".join(
        f"{name} {int((triplets.source_of == i).sum()):,}"
        for i, name in enumerate(triplets.sources)
    )
    extra = triplets.images.unlabelled
    images = f"{len(triplets.images):,} images" + f", {extra:,} of them unlabelled" * bool(extra)
    abstract = setup.functions.abstract
    trained = {p: x for p, x in state.trained.items() if p in abstract}
    learned = f", and {', '.join(setup.stage.extra)}" if setup.stage.extra else ""
    return (
        f"{config.model.name} {config.model.tower}, stage {config.stage}: "
        f"{optim.size(trained):,} of {optim.size(abstract):,} parameters train{learned}\n"
        f"  triplets: {sources}; {images}\n"
        f"  {data.steps:,} steps of {config.batch}, {data.steps_per_epoch:,} per epoch, on "
        f"{setup.mesh.size} {jax.devices()[0].platform} device(s), {jax.process_count()} "
        f"process(es)\n"
        f"  workdir: {config.workdir}"
    )
