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

from cir_jax import progress, trust
from cir_jax.bank.bank import Bank
from cir_jax.runtime import distributed, encode, interrupts, optim, watchdog
from cir_jax.runtime import lease as leases
from cir_jax.runtime import mesh as meshes
from cir_jax.runtime.lease import Lease
from cir_jax.runtime.limits import Limits
from cir_jax.training import comparison, memory, step
from cir_jax.training import setup as setups
from cir_jax.training import state as states
from cir_jax.training.notices import Notices
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
      UserError: input that cannot be used; nothing is written over. `OutOfMemory` of it says what
        takes less.
    """
    distributed.join(Limits.of(config))
    comparison.check("run", comparison.of_run(config))
    trust.remember(config)
    with setups.gathered(config), memory.reading(config):
        setup = setups.make(setups.resolve(config))
        watchdog.progress("data")
        data = setups.read_data(setup)
    comparison.check("data", {f"data {k}": v for k, v in data.fingerprints.items()})
    with (
        leases.hold(config.workdir, config.checkpoint.lease_seconds) as lease,
        memory.guard(setup, data.place),
    ):
        memory.check(setup, data)
        return _train(setup, data, lease)


def _train(setup: Setup, data: Data, lease: Lease) -> dict[str, Any]:
    """Trains while nobody else does so in the run folder."""
    watchdog.progress("restore")
    state, tx = states.start(setup, data)
    progress.say(summary(setup, data, state))
    began = time.monotonic()
    watchdog.progress("bank")
    with memory.guard(setup, data.place, "building the bank"):
        bank, store = setups.build_bank(setup, data, state.fixed)
    bank_seconds = time.monotonic() - began
    batches = setups.make_batches(setup, data, store)
    if state.data is not None:
        batches.set_state(state.data)
    places = jax.tree.map(lambda x: x.sharding, (state.trained, state.optimizer))
    update = step.make(setup.stage, setup.functions, tx, len(data.triplets.sources), places)
    with Records(setup, data, state, lease) as records, interrupts.StopRequest() as stop:
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
    programs: dict[Any, Any] = {}
    notices = Notices(setup, data, state)
    over = state.step >= data.steps or _out_of_time(config, state)
    with progress.bar(total=data.steps, title=f"stage {config.stage}") as bar:
        bar.update(state.step)
        stopping = stop.now(state.step)
        if not stopping:  # the run may have ended after saving this step
            records.catch_up(state, over)
        while not over and not stopping:
            watchdog.progress("read", state.step + 1)
            began = time.monotonic()
            rows = next(batches)
            notices.batch(state.step + 1, rows)
            batch = _place(rows, setup.mesh, config.batch)
            arguments = (
                *(state.trained, state.optimizer, state.fixed, batch, bank),
                jax.random.fold_in(key, state.step),
            )
            shapes = tuple(x.shape for x in jax.tree.leaves(batch))
            if shapes not in programs:  # compiled off the clock: a longer text is another program
                programs[shapes], paused = _compiled(update, arguments, notices)
                began += paused
            watchdog.progress("step")
            state.trained, state.optimizer, values = programs[shapes](*arguments)
            # Waiting here keeps the clock honest; the next batch is read in the background.
            finite = np.isfinite([float(values["loss"]), float(values["gradient_norm"])]).all()
            state.seconds += time.monotonic() - began
            state.step += 1
            bar.update(1)
            if not finite:
                records.wait()  # for the checkpoint that may be on its way: it is a good one
                raise notices.diverged(values)
            notices.step(state, values)
            if state.step % config.log_every == 0 or state.step == data.steps:
                records.log(state, values)
            stopping = stop.now(state.step)
            over = state.step == data.steps or _out_of_time(config, state)
            if records.due(state, over)[0] or stopping:
                state.data = batches.get_state()
                records.save(state)
            if not stopping:
                records.catch_up(state, over)
    if stopping:
        left = "ends" if over else "resumes"
        progress.say(f"stopped at step {state.step}; the same command {left} {config.workdir}")
    return not stopping


def _compiled(
    update: jax.stages.Wrapped, arguments: tuple[Any, ...], notices: Notices
) -> tuple[Any, float]:
    """(the program for arguments of these shapes, seconds that it took to make)."""
    watchdog.progress("compile")
    began = time.monotonic()
    program = update.lower(*arguments).compile()
    notices.compiled(program)
    return program, time.monotonic() - began


def _place(rows: dict[str, np.ndarray], mesh: Mesh, batch: int) -> dict[str, jax.Array]:
    return encode.place_batch(rows, meshes.batch_sharding(mesh), batch)


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
    share = meshes.share(config.batch, setup.mesh)
    return (
        f"{config.model.name} {config.model.tower}, stage {config.stage}: "
        f"{optim.size(trained):,} of {optim.size(abstract):,} parameters train{learned}\n"
        f"  triplets: {sources}; {images}\n"
        f"  {data.steps:,} steps of {config.batch}, {data.steps_per_epoch:,} per epoch, on "
        f"{setup.mesh.size} {jax.devices()[0].platform} device(s), {jax.process_count()} "
        f"process(es){share and f'; {share}'}\n"
        f"  workdir: {config.workdir}"
    )
