# SPDX-License-Identifier: Apache-2.0
"""The loop: restore, step, evaluate, save. It names no model, data set or stage.

The one visible path of the project is main -> train -> step -> tx.update.
"""

import time
from collections import deque
from contextlib import closing
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
from cir_jax.training.ahead import Ahead, Batch
from cir_jax.training.notices import Notices
from cir_jax.training.records import Records
from cir_jax.training.setup import Data, Setup
from cir_jax.training.state import State
from cir_jax.training.trace import Trace


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
        steps = _Steps(setup, data, state, update, bank, records)
        finished = _loop(steps, batches, stop)
        watchdog.progress("report")
    return records.report(state, bank_seconds, finished)


def _loop(steps: "_Steps", batches: DatasetIterator, stop: interrupts.StopRequest) -> bool:
    """Steps until the run is over (True) or is asked to stop (False)."""
    setup, data, state, records = steps.setup, steps.data, steps.state, steps.records
    config = setup.config
    over = state.step >= data.steps or _out_of_time(config, state)
    with (
        steps.bar,
        steps.trace,
        closing(Ahead(batches, lambda rows: _place(rows, setup.mesh, config.batch))) as inputs,
    ):
        steps.bar.update(state.step)
        stopping = stop.now(state.step)
        if not stopping:  # the run may have ended after saving this step
            records.catch_up(state, over)
        while not over and not stopping:
            sent = steps.send(inputs)
            steps.settle(leave=1)
            stopping = stop.now(sent)
            over = sent == data.steps or _out_of_time(config, state)
            if not (stopping or over or records.due(sent, over)[0]):
                continue
            steps.settle()  # what is saved is known to be good
            over = over or _out_of_time(config, state)
            if stopping or records.due(sent, over)[0]:
                records.save(state)
            if not stopping:
                records.catch_up(state, over)
    if stopping:
        left = "ends" if over else "resumes"
        progress.say(f"stopped at step {state.step}; the same command {left} {config.workdir}")
    return not stopping


class _Steps:
    """Starts steps, and reads what one gave while the next runs on the devices.

    The clock of the run goes while a step is on its way or waits for its input. It stands still
    while a program is compiled, and while the state is saved or evaluated.
    """

    def __init__(
        self,
        setup: Setup,
        data: Data,
        state: State,
        update: jax.stages.Wrapped,
        bank: Bank | None,
        records: Records,
    ):
        config = setup.config
        self.setup, self.data, self.state, self.records = setup, data, state, records
        self.bar = progress.bar(total=data.steps, title=f"stage {config.stage}")
        self.trace = Trace(config.workdir, state.step, data.steps, config.profile)
        self._update, self._bank = update, bank
        self._key = jax.random.key(config.seed)
        if jax.process_count() == 1:  # else every step would place it anew
            self._key = jax.device_put(self._key, meshes.replicated(setup.mesh))
        self._notices = Notices(setup, data, state)
        self._compiled: set[Any] = set()
        self._flight: deque[tuple[int, dict[str, jax.Array]]] = deque()
        self._since = 0.0  # when the clock was last read

    def send(self, inputs: Ahead) -> int:
        """Starts the next step; its number."""
        state, number = self.state, self.state.step + len(self._flight) + 1
        if self.trace.turns(number):
            self.settle()
            self.trace.turn(number)
        watchdog.progress("read", number)
        if not self._flight:
            self._since = time.monotonic()
        with self.trace.annotate(number):
            batch = self._take(inputs)
            self._notices.batch(number, batch.rows)
            arguments = (
                *(state.trained, state.optimizer, state.fixed, batch.placed, self._bank),
                *(self._key, np.int32(number - 1)),
            )
            shapes = tuple(x.shape for x in jax.tree.leaves(batch.placed))
            if shapes not in self._compiled:  # a longer text is another program
                self._compile(arguments)
                self._compiled.add(shapes)
            watchdog.progress("step")
            state.trained, state.optimizer, values = self._update(*arguments)
        state.data = batch.state
        self._flight.append((number, values))
        return number

    def settle(self, leave: int = 0) -> None:
        """Waits for the steps that are on their way, but for the last `leave`, and notes them.

        Raises:
          Diverged: the loss or the gradient of one is not finite. It and those after it are not
            saved.
        """
        state, records = self.state, self.records
        while len(self._flight) > leave:
            number, values = self._flight.popleft()
            finite = np.isfinite([float(values["loss"]), float(values["gradient_norm"])]).all()
            self._read_clock()
            state.step = number
            self.bar.update(1)
            if not finite:
                records.wait()  # for the checkpoint that may be on its way: it is a good one
                raise self._notices.diverged(number, values)
            self._notices.step(state, values)
            if number % self.setup.config.log_every == 0 or number == self.data.steps:
                records.log(state, values)

    def _take(self, inputs: Ahead) -> Batch:
        """The next batch; what the devices wait for it is noted."""
        if not inputs.ready():  # until they are idle nobody waits for input
            jax.block_until_ready([values for _, values in self._flight])
        began = time.monotonic()
        batch = inputs.take()
        self.state.waited += time.monotonic() - began
        return batch

    def _compile(self, arguments: tuple[Any, ...]) -> None:
        """Makes the program for arguments of these shapes, off the clock; calls then find it."""
        self._read_clock()
        self.settle()
        watchdog.progress("compile")
        self._notices.compiled(self._update.lower(*arguments).compile())
        self._since = time.monotonic()

    def _read_clock(self) -> None:
        now = time.monotonic()
        self.state.seconds += now - self._since
        self._since = now


def _place(rows: dict[str, Any], mesh: Mesh, batch: int) -> dict[str, Any]:
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
    abstract = {**setup.functions.abstract, **setup.functions.factors}
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
