# SPDX-License-Identifier: Apache-2.0
"""What a run would do: its resolved config, its size on every device, its steps. Nothing trains."""

import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from cir_jax import keys
from cir_jax.bank.references import BYTES
from cir_jax.files import gigabytes
from cir_jax.runtime import checkpoint
from cir_jax.runtime import mesh as meshes
from cir_jax.training import from_scratch
from cir_jax.training import stage as stages
from cir_jax.training import state as states
from cir_jax.training.setup import Data, Setup


def describe(setup: Setup, data: Data) -> str:
    """The text that `cir-jax train --dry-run` prints.

    Args:
      setup: of the run.
      data: its triplets.

    Raises:
      UserError: a model of full size has no weights to start from.
    """
    config, triplets = setup.config, data.triplets
    paths = stages.trainable(setup.stage, setup.functions)
    known = {**setup.functions.abstract, **setup.functions.factors}
    total, trained = (
        sum(math.prod(x.shape) for x in found)
        for found in (known.values(), (known[p] for p in paths if p in known))
    )
    sources = ", ".join(
        f"{name} {int((triplets.source_of == i).sum()):,}"
        for i, name in enumerate(triplets.sources)
    )
    rows = [
        ("model", f"{config.model.name} {config.model.tower}"),
        ("starts from", _start(setup.config, total)),
        ("parameters", f"{total:,}, of which {trained:,} train"),
        ("triplets", f"{sources}; {len(triplets.images):,} images"),
        ("steps", f"{data.steps:,} of {config.batch}, {data.steps_per_epoch:,} per epoch"),
        ("batch", meshes.share(config.batch, setup.mesh) or f"{config.batch:,} rows"),
        ("devices", f"{setup.mesh.size} {jax.devices()[0].platform}, data={_axes(setup)}"),
        *(
            (what, f"{gigabytes(size)} on each device")
            for what, size in memory(setup, data.steps, *bank(data)).items()
        ),
    ]
    width = max(len(name) for name, _ in rows)
    values = "\n".join(f"  {key} = {value!r}" for key, value in keys.flat(config).items())
    facts = "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)
    return f"config\n{values}\n\nrun\n{facts}\n  (activations of a step are not counted)"


def _start(config: ConfigDict, size: int) -> str:
    """What the first parameters would be.

    Raises:
      UserError: a model of full size and no weights, as the run itself would raise.
    """
    if steps := checkpoint.Checkpoints(Path(config.workdir) / checkpoint.LAST).steps():
        return f"step {steps[-1]:,} of {config.workdir}, which it resumes"
    if config.init_from:
        return config.init_from
    from_scratch.check_size(config, size)
    return f"random parameters, seed {config.seed}"


def _axes(setup: Setup) -> str:
    """The mesh in words, e.g. "4 x model=2"."""
    shape = setup.mesh.shape
    return f"{shape[meshes.DATA]} x model={shape[meshes.MODEL]}"


def bank(data: Data) -> tuple[int, int, str]:
    """Images and references of the bank, and where these lie; of a stage without one none."""
    plan = data.references
    return (0, 0, "") if plan is None else (len(data.triplets.images), len(plan), data.place)


def memory(
    setup: Setup, steps: int, images: int = 0, references: int = 0, place: str = ""
) -> dict[str, float]:
    """What lies on each device all the time: part -> bytes.

    Args:
      setup: of the run; its devices may be elsewhere.
      steps: of the whole run.
      images: rows of the bank; 0 without one.
      references: their number.
      place: where they lie, see `cir_jax.bank.references`.
    """
    shapes, _ = states.abstract(setup, steps)
    trained = sum(map(_bytes, jax.tree.leaves(shapes["trained"])))
    found: dict[str, float] = {
        "parameters that stay": sum(map(_bytes, jax.tree.leaves(shapes["fixed"]))),
        "parameters that train": trained,
        "gradients": trained,
        "optimizer": sum(map(_bytes, jax.tree.leaves(shapes["optimizer"]))),
    }
    if images:
        number = math.prod(setup.functions.target_shape) * images
        kind = jnp.dtype(setup.config.loss.bank_dtype)
        found["bank"] = number * kind.itemsize / setup.mesh.size
    if place == "device":
        held = references * math.prod(setup.functions.reference_shape)
        found["references"] = held * BYTES["device"] / setup.mesh.size
    return found


def _bytes(x: Any) -> int:
    """Of one device."""
    return math.prod(x.sharding.shard_shape(x.shape)) * jnp.dtype(x.dtype).itemsize
