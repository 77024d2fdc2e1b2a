# SPDX-License-Identifier: Apache-2.0
"""The step of a config as the trainer builds it, on one device, and the ways to feed it.

All parts are the trainer's own: setup, data, state, batches, placing and update. Only the bank is
drawn, on the device: building one of a real size would take the time of everything else.
"""

import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cir_jax import config as configs
from cir_jax.bank.bank import Bank
from cir_jax.data import kept_pixels
from cir_jax.data.packing import Packed
from cir_jax.runtime import encode, memory
from cir_jax.runtime import mesh as meshes
from cir_jax.training import setup as setups
from cir_jax.training import state as states
from cir_jax.training import step
from cir_jax.training.ahead import Ahead
from tools.benchmarks.on_device.blocks import Program, timed
from tools.planning import formulas, program
from tools.planning.datasets import Counts

DEVICE, HOST, DECODED = "batch on the device", "batch on the host", "real input"
KEPT = "real input, pixels kept"
SYNCHRONOUS = "real input, each step waited for"
# Batches that are read by the time that a block begins: four wait in Grain (`data.pipeline`), and
# two threads have one each. A block that was given them would time less reading than it takes.
_READ = 6


class Workload:
    """A run that is ready to make its first step.

    Args:
      config: of the run; its data is read.
      mesh: of one device.
      rows: images in the bank; 0 without one.
    """

    def __init__(self, config: ConfigDict, mesh: Mesh, rows: int = 0):
        with contextlib.redirect_stdout(sys.stderr):
            self.setup = setups.assemble(setups.resolve(config), mesh)
            self.data = setups.read_data(self.setup)
            self.state, tx = states.start(self.setup, self.data)
        self.mesh, self.batch, self.rows = mesh, config.batch, rows
        state, stage, functions = self.state, self.setup.stage, self.setup.functions
        places = jax.tree.map(lambda x: x.sharding, (state.trained, state.optimizer))
        sources = len(self.data.triplets.sources)
        self.update = step.make(stage, functions, tx, sources, places)
        self.key = jax.device_put(jax.random.key(config.seed), meshes.replicated(mesh))
        self.bank = self._bank() if stage.needs_bank else None
        self.batches = setups.make_batches(self.setup, self.data, None)
        self.host = next(self.batches)
        self.placed = self.place(self.host)
        self.made = 0  # steps

    def place(self, rows: dict[str, Any]) -> dict[str, Any]:
        """A batch on the device, as the trainer puts it there."""
        return encode.place_batch(rows, meshes.batch_sharding(self.mesh), self.batch)

    def compile(self) -> tuple[float, int]:
        """Compiles the step for the first batch: (seconds, bytes that it takes on the device)."""
        began = time.perf_counter()
        compiled = self.lowered().compile()
        return time.perf_counter() - began, memory.of_program(compiled)

    def lowered(self) -> Any:
        """The step before it is compiled."""
        return self.update.lower(*self._arguments(self.placed))

    def warm(self, batches: int) -> int:
        """Makes a step of each size that so many batches have, and returns the number of sizes.

        Packed texts have two or three; a program that is compiled within a block would be timed.
        """
        if self.data.images(self.setup.stage):  # their texts have one length, and images take long
            return 1
        sizes = {_shapes(self.host)}
        for _ in range(batches):
            rows = next(self.batches)
            if (shapes := _shapes(rows)) not in sizes:
                sizes.add(shapes)
                jax.block_until_ready(self.step(self.place(rows)))
        return len(sizes)

    def step(self, placed: dict[str, Any]) -> dict[str, jax.Array]:
        """Starts a step, and returns what it will give."""
        state = self.state
        state.trained, state.optimizer, values = self.update(*self._arguments(placed))
        self.made += 1
        return values

    def losses(self, steps: int) -> list[float]:
        """The losses of so many steps on real input."""
        found = []
        for _ in range(steps):
            found.append(float(self.step(self.place(next(self.batches)))["loss"]))
        return found

    def on_device(self) -> Program:
        """Steps on one batch that lies on the device."""
        return timed(lambda: self.step(self.placed), jax.block_until_ready)

    def programs(self, cache: Path) -> dict[str, Program]:
        """The ways to feed the step.

        Args:
          cache: a folder, in which nothing is kept but what is noted of it.
        """
        kept = {}
        if self.data.images(self.setup.stage):
            batches = self._kept(cache)
            kept[KEPT] = self._fed(lambda: batches)
        return {
            DEVICE: self.on_device(),
            HOST: self._fed(lambda: _Again(self.host)),
            DECODED: self._fed(lambda: self.batches),
            **kept,
            SYNCHRONOUS: self._waiting(),
        }

    def _kept(self, cache: Path) -> Any:
        """The trainer's batches, all of whose images have been decoded and are kept in memory."""
        images = self.data.triplets.images.paths
        with mock.patch.dict(os.environ, {"CIR_JAX_CACHE": str(cache)}):
            pixels = kept_pixels.KeptPixels(kept_pixels.MEMORY, self.setup.preprocess)
            part = pixels.part(again=True)
            part.expect(images)
        with ThreadPoolExecutor(self.setup.config.data.threads) as pool:
            for _ in pool.map(part, images):
                pass
        return setups.make_batches(dataclasses.replace(self.setup, pixels=pixels), self.data, None)

    def _fed(self, batches: Callable[[], Any]) -> Program:
        """Steps on what a thread has read and placed ahead, as in the trainer's loop."""

        def measured(steps: int) -> float:
            with contextlib.closing(Ahead(batches(), self.place)) as inputs:
                for _ in range(_READ):
                    inputs.take()
                jax.block_until_ready(self.step(inputs.take().placed))
                began, values = time.perf_counter(), None
                for _ in range(steps):
                    before, values = values, self.step(inputs.take().placed)
                    if before is not None:  # the loop reads what a step gave one step later
                        float(before["loss"])
                jax.block_until_ready(values)
                return time.perf_counter() - began

        return measured

    def _waiting(self) -> Program:
        """Steps on real input, each of which is waited for before the next batch is asked for."""

        def measured(steps: int) -> float:
            for _ in range(_READ):
                next(self.batches)
            return one_by_one(steps)

        one_by_one = timed(
            lambda: float(self.step(self.place(next(self.batches)))["loss"]), lambda loss: None
        )
        return measured

    def _arguments(self, placed: dict[str, Any]) -> tuple[Any, ...]:
        state = self.state
        run = (state.trained, state.optimizer, state.fixed, placed, self.bank, self.key)
        return (*run, np.int32(self.made))

    def _bank(self) -> Bank:
        """Unit rows, and references for all that the data has, drawn on the device."""
        functions, each = self.setup.functions, self.mesh.size
        (per_row, width), (r, c) = functions.target_shape, functions.reference_shape
        plan = self.data.references
        assert plan is not None and self.rows >= len(self.data.triplets.images)
        shapes = [((self.rows + -self.rows % each) * per_row, width)]
        shapes.append((len(plan) + -len(plan) % each, r * c))
        dtype = jnp.dtype(self.setup.config.loss.bank_dtype)

        def draw(key: jax.Array) -> tuple[jax.Array, jax.Array]:
            first, second = jax.random.split(key)
            rows = jax.random.normal(first, shapes[0], jnp.float32)
            rows = rows / jnp.linalg.norm(rows, axis=-1, keepdims=True)
            return rows.astype(dtype), jax.random.normal(second, shapes[1], jnp.float32)

        place = meshes.row_sharding(self.mesh)
        targets, references = jax.jit(draw, out_shardings=(place, place))(jax.random.key(1))
        return Bank(targets, references, self.rows)

    def tokens(self) -> float:
        """Tokens of a text, in the mean over the first batch, without padding."""
        text = self.host["text"]
        real = (text.segment >= 0).sum() if isinstance(text, Packed) else (text != 0).sum()
        return float(real) / self.batch

    def flop(self) -> float | None:
        """Of a step, by formula; padding of texts and what is computed again are not counted."""
        config = self.setup.config.copy_and_resolve_references()
        once = configs.override(config, ["model.remat=none"])
        setup = dataclasses.replace(self.setup, config=once)
        triplets, plan = self.data.triplets, self.data.references
        count, images = len(triplets.triplets), self.rows or len(triplets.images)
        references = 0 if plan is None else len(plan)
        counts = Counts(count, images, references, 1, 0, 0, "made")
        place, text = self.data.place, round(self.tokens())
        return formulas.step(
            program.Program(
                setup, counts, place, references, text, self.data.steps, self.update, ()
            )
        )


def _shapes(rows: dict[str, Any]) -> tuple[tuple[int, ...], ...]:
    return tuple(x.shape for x in jax.tree.leaves(rows))


class _Again:
    """One batch again and again, as an iterator of the trainer's input."""

    def __init__(self, rows: dict[str, Any]):
        self._rows = rows

    def __next__(self) -> dict[str, Any]:
        return self._rows

    def get_state(self) -> dict[str, Any]:
        return {}
