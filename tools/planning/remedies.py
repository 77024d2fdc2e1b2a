# SPDX-License-Identifier: Apache-2.0
"""What to change when a step does not fit: each change alone, with what it would take by shapes.

Those that leave the result as it is come first; another batch is another recipe.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from cir_jax import keys
from cir_jax.errors import UserError
from cir_jax.runtime import mesh as meshes
from tools.planning import analysis, memory
from tools.planning.analysis import Options, Plan


@dataclass(frozen=True)
class Remedy:
    """A change of the config.

    Attributes:
      changes: "key=value" strings, to be given together.
      needs: bytes of a step on one device, about.
      fits: whether that is within the limit.
    """

    changes: tuple[str, ...]
    needs: float
    fits: bool


def find(plan: Plan, options: Options) -> list[Remedy]:
    """Changes that make less of the memory of a step, those that fit first.

    Estimates are by shapes, and scaled by what the compiler took for the step as it is.
    """
    here = memory.by_shapes(plan.program, plan.machine.chip)
    now = plan.memory.parts["gradients"] + plan.memory.parts["activations"]
    scale = max(now / here, 1.0) if plan.memory.compiled else memory.MARGIN
    found = []
    for changes in candidates(plan):
        try:
            program = analysis.build(
                plan.spec,
                plan.machine,
                dataclasses.replace(options, changes=(*options.changes, *changes)),
            )
        except UserError:  # does not go with the mesh or with the other values
            continue
        parts = memory.find(program, plan.machine.chip).parts
        estimate = parts["gradients"] + parts["activations"]
        needs = sum(parts.values()) + (scale - 1) * estimate
        if needs < plan.memory.step:
            found.append(Remedy(changes, needs, needs <= plan.memory.limit))
    return sorted(found, key=lambda r: not r.fits)


def candidates(plan: Plan) -> Iterator[tuple[str, ...]]:
    """Changes that may help, whether they fit or not."""
    config, program = plan.program.setup.config, plan.program
    data = program.setup.mesh.shape[meshes.DATA]
    known = keys.flat(config)
    if program.place == "device":
        yield ("loss.references=disk",)
    if program.place and config.loss.bank_dtype == "float32":
        yield ("loss.bank_dtype=bfloat16",)
    shorter = [("model.remat=layers",)] if config.model.remat != "layers" else []
    split = [("mesh.fsdp=true",)] if known.get("mesh.fsdp") is False and data > 1 else []
    yield from (*shorter, *split)
    chunks = []
    if "loss.chunk" in known:
        now = config.loss.chunk or config.batch
        sizes = [now // n for n in (2, 4, 8, 16) if now % n == 0 and not now // n % data]
        chunks = [(f"loss.chunk={size}",) for size in sizes]
    yield from chunks
    if shorter and split:
        yield shorter[0] + split[0]
    if chunks and split:
        yield chunks[-1] + split[0]
    for size in (2, 4):
        if config.mesh.model == 1 and len(plan.machine.devices) % size == 0:
            yield (f"mesh.model={size}",)
    for part in (2, 4, 8):
        if config.batch % part == 0 and not config.batch // part % data:
            yield (f"batch={config.batch // part}",)
