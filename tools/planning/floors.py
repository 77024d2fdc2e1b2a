# SPDX-License-Identifier: Apache-2.0
"""How long a step takes at least: five floors, of which the largest is the bound.

Each is what one part of the machine needs if the others are not waited for. Real steps take longer
than the largest: large products reach 40 to 70 % of a peak, collectives do not overlap in full.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cir_jax.data import kept_pixels
from tools.planning import traced
from tools.planning.hlo import Collective
from tools.planning.machines import Machine
from tools.planning.memory import Memory
from tools.planning.program import Program

# Measured by this project on two cores; see "Speed and memory" of tools/README.md.
DECODE = 3.5e-3  # seconds of one core for a JPEG of 500 x 400, decoded and resized to 224
LOCKED = 1900  # images/s of one process: the interpreter is locked for 15.6 % of that work
LOOP = 6e-3  # seconds of the loop around the update
DISK = 1e9  # bytes/s that a host reads from its disk; an assumption
LIGHT = 2**16  # bytes of a reference that an evaluation keeps; see retrieval/retriever.py
COMPUTE, MEMORY, NETWORK, DECODING, HOST = "compute", "memory", "network", "decoding", "host"


@dataclass(frozen=True)
class Speeds:
    """Of a host, where the user knows better.

    Attributes:
      decode: seconds of a core for one image.
      disk: bytes/s.
    """

    decode: float = DECODE
    disk: float = DISK


@dataclass(frozen=True)
class Floors:
    """Seconds.

    Attributes:
      step: what -> seconds of a step.
      bank: of building the bank; 0 without one.
      evaluation: of the first evaluation; 0 without one.
      later: of each later one.
      evaluations: number of them in the run.
    """

    step: dict[str, float]
    bank: float
    evaluation: float
    later: float
    evaluations: int

    @property
    def bound(self) -> str:
        """The part that a step waits for."""
        return max(self.step, key=lambda name: self.step[name])

    def run(self, steps: int) -> float:
        """Seconds of a whole run: its bank, its steps and its evaluations."""
        evaluating = self.evaluation + max(self.evaluations - 1, 0) * self.later
        return self.bank + steps * self.slowest + bool(self.evaluations) * evaluating

    @property
    def slowest(self) -> float:
        """Seconds of a step."""
        return self.step[self.bound]


def find(
    program: Program,
    machine: Machine,
    memory: Memory,
    products: dict[str, float],
    collectives: Sequence[Collective],
    encoding: dict[str, float],
    speeds: Speeds,
) -> Floors:
    """The floors of a run.

    Args:
      program: its step.
      machine: what it runs on.
      memory: of a device.
      products: FLOP of one device in a step, by type.
      collectives: of a step.
      encoding: FLOP of an image and of a query, {"image", "query"}.
      speeds: of a host.
    """
    chip, setup = machine.chip, program.setup
    parts = memory.parts
    opened = sum("pixels" in name for name in program.arguments[3])
    images = opened * setup.config.batch
    if setup.config.data.pixels in (kept_pixels.MEMORY, kept_pixels.DISK):
        images = 0
    # Read in the forward pass and, what trains, in the backward pass; then gradients are written
    # and read, the optimizer and what trains are read and written, activations written and read.
    moved = parts["parameters that stay"] + 4 * parts["parameters that train"]
    moved += 2 * (parts["gradients"] + parts["optimizer"] + parts["activations"])
    moved += parts.get("bank", 0.0) + parts["batch"]
    step = {
        COMPUTE: seconds_of(products, machine),
        MEMORY: moved / chip.bandwidth,
        NETWORK: crossing(collectives, machine),
        DECODING: decoding(images, program, machine, speeds) + _disk(program, machine, speeds),
        HOST: LOOP + parts["batch"] / chip.pcie,
    }
    first, later = _evaluations(program, machine, encoding, speeds)
    return Floors(step, _bank(program, machine, encoding, speeds), first, later, _number(program))


def _bank(program: Program, machine: Machine, encoding: dict[str, float], speeds: Speeds) -> float:
    """Seconds of building the bank: each image is opened and encoded once."""
    if not program.place:
        return 0.0
    counts = program.counts
    flop = counts.images * encoding["image"]
    if program.setup.functions.per_triplet and program.place != "recompute":
        flop += program.references * max(encoding["query"] - encoding["image"], 0.0)
    opening = decoding(counts.images, program, machine, speeds)
    return max(opening, flop / len(machine.devices) / machine.chip.peak)


def _evaluations(
    program: Program, machine: Machine, encoding: dict[str, float], speeds: Speeds
) -> tuple[float, float]:
    """Seconds of the first evaluation, and of each later one.

    The gallery is encoded again while the index trains. References of a few values are kept with
    it; others are encoded for each query.
    """
    counts, functions = program.counts, program.setup.functions
    if not counts.gallery:
        return 0.0, 0.0
    light = not functions.per_triplet and math.prod(functions.reference_shape) * 4 <= LIGHT
    asked = 0 if light else counts.queries
    ask = encoding["query"] - light * encoding["image"]

    def seconds(gallery: int) -> float:
        flop = gallery * encoding["image"] + counts.queries * ask
        opening = decoding(gallery + asked, program, machine, speeds)
        return max(opening, flop / len(machine.devices) / machine.chip.peak)

    again = counts.gallery if program.setup.stage.index_is_query else 0
    return seconds(counts.gallery), seconds(again)


def _number(program: Program) -> int:
    """Evaluations of a run: one at the end, and one after every so many epochs."""
    config, counts = program.setup.config, program.counts
    if not counts.gallery:
        return 0
    every = config.eval.every * (counts.triplets // config.batch) or program.steps
    return -(-program.steps // every)


def seconds_of(products: dict[str, float], machine: Machine) -> float:
    """Seconds of products on one device at its peaks."""
    rates = {
        traced.BFLOAT16: machine.chip.peak,
        traced.FLOAT32: machine.chip.float32,
        traced.HIGHEST: machine.chip.highest,
    }
    return sum(flop / rates[kind] for kind, flop in products.items())


def crossing(collectives: Sequence[Collective], machine: Machine) -> float:
    """Seconds of collectives: over the links of a slice or node, and over the network of nodes.

    Each node then sends what one device would send in a ring of nodes: inside, the sums are split.
    """
    chip = machine.chip
    inside = sum(c.sent for c in collectives) / chip.link if chip.link else 0.0
    if chip.tpu or machine.hosts == 1:
        return inside
    hosts = machine.hosts
    shares = {"all-reduce": 2.0}
    outside = sum(
        shares.get(c.kind, 1.0) * (hosts - 1) / hosts * c.bytes
        for c in collectives
        if c.devices > machine.each or c.devices == len(machine.devices)
    )
    return max(inside, outside / chip.network)


def decoding(images: float, program: Program, machine: Machine, speeds: Speeds) -> float:
    """Seconds in which all hosts open so many images."""
    if not images:
        return 0.0
    cores = machine.chip.cores * machine.each
    each = machine.processes / machine.hosts
    busy = min(cores, program.setup.config.data.threads * each)
    by_cores = images / machine.hosts * speeds.decode / busy
    return max(by_cores, images / machine.processes / LOCKED)


def _disk(program: Program, machine: Machine, speeds: Speeds) -> float:
    """Seconds in which a host reads the references of its rows."""
    if program.place != "disk":
        return 0.0
    rows = program.arguments[3]["reference"]
    size = 2.0
    for n in rows.shape:
        size *= n
    return size / machine.hosts / speeds.disk
