# SPDX-License-Identifier: Apache-2.0
"""Bytes on each device: what lies there all the time, what a step and an evaluation add."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from cir_jax.runtime import mesh as meshes
from cir_jax.training import dry_run
from tools.planning import program as programs
from tools.planning import traced
from tools.planning.chips import Chip
from tools.planning.compiled import Compiled
from tools.planning.program import Program

# An estimate of temporaries by shapes, against those of programs that were compiled for v5e: they
# took 0.9 to 1.7 times as much, see "Plans" of tools/README.md. So a step for which there is no
# compiler here fits if it does with so many times the estimate.
MARGIN = 1.7
HELD = 6  # batches on the host: Grain's buffer of four, and one in each of its two threads
_BLOCK = 2**27  # bytes of the scores of an evaluation, over all devices; see retrieval/ranking.py


@dataclass(frozen=True)
class Memory:
    """Bytes on one device.

    Attributes:
      parts: what -> bytes, in the order of the page.
      step: of all of them while a step runs.
      evaluation: of an evaluation, with what stays.
      limit: what a program may take.
      compiled: from the compiler of this chip; False: counted by shapes.
      host: bytes of the batches that wait in the memory of the host, for each device.
    """

    parts: dict[str, float]
    step: float
    evaluation: float
    limit: float
    compiled: bool
    host: float

    @property
    def step_fits(self) -> str:
        """ "yes", "no", or "perhaps" for an estimate whose margin goes over the limit."""
        if self.step > self.limit:
            return "no"
        spread = 0.0 if self.compiled else (MARGIN - 1) * self.parts["activations"]
        return "yes" if self.step + spread <= self.limit else "perhaps"

    @property
    def fits(self) -> str:
        """Likewise, of steps and evaluations."""
        return "no" if self.evaluation > self.limit else self.step_fits


def find(
    program: Program,
    chip: Chip,
    jaxpr: Any = None,
    done: Compiled | None = None,
    encoding: dict[str, Any] | None = None,
) -> Memory:
    """The memory of a run.

    Args:
      program: its step.
      chip: what a device has.
      jaxpr: the step, as `traced.whole` gives it; needed with `done`.
      done: the step as it was compiled; None: by shapes.
      encoding: what `encoders` gives; None leaves an evaluation out.
    """
    resident = dry_run.memory(
        program.setup,
        program.steps,
        program.counts.images if program.place else 0,
        program.references,
        program.place,
    )
    gradients = resident.pop("gradients")
    batch = sum(map(_on_device, jax.tree.leaves(program.arguments[3])))
    parts: dict[str, float] = {**resident, "batch": batch, "next batch": batch}
    stays = sum(resident.values())
    if done is None or done.refused:
        temporaries = by_shapes(program, chip)
        if done and done.refused:
            temporaries = max(temporaries, done.refused - stays - batch)
    else:
        temporaries = done.temporaries + done.results
        read = zip(jax.tree.leaves(program.arguments), traced.reads(jaxpr), strict=True)
        padding = done.arguments - sum(_on_device(x) for x, needed in read if needed)
        if padding > 1e6:
            parts["padding of layouts"] = padding
    parts["gradients"] = min(gradients, temporaries)
    parts["activations"] = temporaries - parts["gradients"]
    return Memory(
        parts,
        step=sum(parts.values()),
        evaluation=stays
        + parts.get("padding of layouts", 0.0)
        + _evaluation(program, encoding or {}),
        limit=chip.memory,
        compiled=done is not None,
        host=HELD * batch,
    )


def by_shapes(program: Program, chip: Chip) -> float:
    """Bytes of the temporaries of a step on one device, gradients included; an estimate."""
    alone = programs.on_one_device(program, chip)
    jaxpr = traced.whole(alone.update, alone.arguments)
    found = traced.waiting(jaxpr, len(jax.tree.leaves(alone.arguments[:2])))
    setup = program.setup
    # Gradients are whole in a program of one device.
    whole = sum(_bytes(x) for x in jax.tree.leaves(program.arguments[0]))
    split = sum(map(_on_device, jax.tree.leaves(program.arguments[0])))
    others = setup.config.batch - alone.setup.config.batch
    rows, width = setup.functions.target_shape
    across = others * rows * width * 4  # targets, or queries, of other devices' rows
    if program.place:
        across = others * (3 * programs.block(setup) + 3 * width) * 4
    return max(found - (whole - split), split) + across


def _evaluation(program: Program, encoding: dict[str, Any]) -> float:
    """Bytes of the gallery and of the encoding of a batch; 0 without an evaluation."""
    counts, setup = program.counts, program.setup
    if not counts.gallery or not encoding:
        return 0.0
    size = setup.mesh.size
    gallery = counts.gallery * math.prod(setup.functions.target_shape) * 4 / size
    return gallery + _BLOCK / size + max(map(traced.waiting, encoding.values()))


def encoders(program: Program) -> dict[str, Any]:
    """{"image", "query"}: the programs of an evaluation on one device, as jaxprs."""
    setup = program.setup
    functions, side = setup.functions, setup.functions.image_size
    rows = -(-setup.config.eval.batch // setup.mesh.shape[meshes.DATA])
    pixels = jax.ShapeDtypeStruct((rows, side, side, 3), jnp.uint8)
    text = jax.ShapeDtypeStruct((rows, program.text), jnp.int32)

    def query(params: Any, pixels: jax.Array, text: jax.Array) -> jax.Array:
        return functions.compose(params, functions.reference(params, pixels, text), text)

    image = jax.make_jaxpr(functions.target)(functions.abstract, pixels)
    both = jax.make_jaxpr(query)(functions.abstract, pixels, text)
    return {"image": image.jaxpr, "query": both.jaxpr}


def _bytes(x: Any) -> float:
    return math.prod(x.shape) * x.dtype.itemsize


def _on_device(x: Any) -> float:
    return math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize  # of a key too
