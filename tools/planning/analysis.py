# SPDX-License-Identifier: Apache-2.0
"""A plan: what a run needs on a machine, and what it takes there."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jax.sharding import Mesh

from cir_jax.runtime import encode
from cir_jax.runtime import mesh as meshes
from tools.planning import compiled, datasets, floors, formulas, machines, memory, network, traced
from tools.planning import program as programs
from tools.planning.floors import Floors, Speeds
from tools.planning.hlo import Collective
from tools.planning.machines import Machine
from tools.planning.memory import Memory
from tools.planning.program import Program


@dataclass(frozen=True)
class Options:
    """What the command line says beside config and machine.

    Attributes:
      changes: "key=value" strings.
      triplets, images, queries, gallery: of the data; 0 is what is known.
      text: tokens of the longest text of a batch; 0 is the assumed one.
      chip: numbers of the chip that the user knows better, see `chips.changed`.
      speeds: of a host.
      process_per_gpu: as launch/local_gpu.sh has it.
      compiles: False counts a TPU by shapes too, which takes seconds.
    """

    changes: tuple[str, ...] = ()
    triplets: int = 0
    images: int = 0
    queries: int = 0
    gallery: int = 0
    text: int = 0
    chip: dict[str, float] = field(default_factory=dict)
    speeds: Speeds = field(default_factory=Speeds)
    process_per_gpu: bool = False
    compiles: bool = True


@dataclass(frozen=True)
class Plan:
    """The result.

    Attributes:
      spec: of the config.
      changes: to it.
      machine: what it runs on.
      program: its step.
      memory: of a device.
      refused: bytes that the compiler says the step needs at least, if it refused it.
      products: FLOP of one device in a step, by type.
      formula: FLOP of a step over all devices by formula; None for a model of the user's own.
      collectives: of a step, largest first.
      listed: whether they are those of the compiled program; else by shapes.
      loops: whose number of rounds the program does not say.
      floors: seconds.
      speeds: of a host.
    """

    spec: str
    changes: tuple[str, ...]
    machine: Machine
    program: Program
    memory: Memory
    refused: float
    products: dict[str, float]
    formula: float | None
    collectives: Sequence[Collective]
    listed: bool
    loops: Sequence[str]
    floors: Floors
    speeds: Speeds

    @property
    def rate(self) -> float:
        """Triplets per second, at most."""
        return self.program.setup.config.batch / self.floors.slowest

    @property
    def seconds(self) -> float:
        """Of the whole run, at least."""
        return self.floors.run(self.program.steps)

    def cost(self, price: float) -> float:
        """Of the whole run, at least, for the price of a chip and hour."""
        return self.seconds / 3600 * self.machine.rented * price


def make(spec: str, on: str, options: Options) -> Plan:
    """The plan of a config on a machine.

    Args:
      spec: of the config, "sprc:fashioniq,stage=1".
      on: the machine, "v5e:4x4" or "8xH100".
      options: see there.

    Raises:
      UserError: what does not exist, does not go together, or is not known.
    """
    machine = machines.find(on, options.process_per_gpu, **options.chip)
    program = build(spec, machine, options)
    done = None
    if machine.chip.tpu and options.compiles:
        done = compiled.compile_step(program, on)
    jaxpr = traced.whole(program.update, program.arguments)
    encoders = memory.encoders(program)
    found = memory.find(program, machine.chip, jaxpr, done, encoders)
    products = traced.products(jaxpr, program.setup.mesh.size)
    listed = done is not None and not done.refused
    collectives = list(done.collectives) if done and listed else network.by_shapes(program)
    encoding = {
        name: sum(traced.products(jaxpr, 1).values()) / _rows(jaxpr)
        for name, jaxpr in encoders.items()
    }
    times = floors.find(program, machine, found, products, collectives, encoding, options.speeds)
    return Plan(
        spec, options.changes, machine, program, found,
        done.refused if done else 0.0, products, formulas.step(program), collectives, listed,
        done.loops if done else (), times, options.speeds,
    )  # fmt: skip


def build(spec: str, machine: Machine, options: Options) -> Program:
    """The step of a config on a machine.

    Raises:
      UserError: see `make`.
    """
    config = programs.load(spec, list(options.changes))
    mesh = meshes.make(config.mesh.data, config.mesh.model, machine.devices)
    counts = datasets.find(
        config, options.triplets, options.images, options.queries, options.gallery
    )
    return programs.build(config, mesh, machine.chip, counts, options.text)


def host_rows(mesh: Mesh, batch: int) -> dict[int, list[tuple[int, int]]]:
    """{process: the rows of a batch that it loads, as (first, last) of what is adjacent}."""
    found = {}
    for process in sorted({d.process_index for d in mesh.devices.flat}):
        rows = np.asarray(encode.local_rows(batch, mesh, process))
        breaks = np.flatnonzero(np.diff(rows) != 1) + 1
        found[process] = [(int(r[0]), int(r[-1])) for r in np.split(rows, breaks)]
    return found


def _rows(jaxpr) -> int:
    """Rows of the batch of an encoding program: its last argument is a batch."""
    return math.prod(jaxpr.invars[-1].aval.shape[:1])
