# SPDX-License-Identifier: Apache-2.0
"""What a run would do: its resolved config, its size on every device, its steps. Nothing trains."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from cir_jax import keys
from cir_jax.bank.references import BYTES, gigabytes
from cir_jax.runtime import mesh as meshes
from cir_jax.runtime import optim, sharding
from cir_jax.training import stage as stages
from cir_jax.training.setup import Data, Setup


def describe(setup: Setup, data: Data) -> str:
    """The text that `cir-jax train --dry-run` prints.

    Args:
      setup: of the run.
      data: its triplets.
    """
    config, triplets = setup.config, data.triplets
    paths = stages.trainable(setup.stage, setup.functions)
    total, trained = (
        sum(math.prod(x.shape) for x in found)
        for found in (
            setup.functions.abstract.values(),
            (setup.functions.abstract[p] for p in paths if p in setup.functions.abstract),
        )
    )
    sources = ", ".join(
        f"{name} {int((triplets.source_of == i).sum()):,}"
        for i, name in enumerate(triplets.sources)
    )
    rows = [
        ("model", f"{config.model.name} {config.model.tower}"),
        ("parameters", f"{total:,}, of which {trained:,} train"),
        ("triplets", f"{sources}; {len(triplets.images):,} images"),
        ("steps", f"{data.steps:,} of {config.batch}, {data.steps_per_epoch:,} per epoch"),
        ("batch", meshes.share(config.batch, setup.mesh) or f"{config.batch:,} rows"),
        ("devices", f"{setup.mesh.size} {jax.devices()[0].platform}, data={_axes(setup)}"),
        *(
            (what, f"{gigabytes(size)} on each device")
            for what, size in memory(setup, data).items()
        ),
    ]
    width = max(len(name) for name, _ in rows)
    values = "\n".join(f"  {key} = {value!r}" for key, value in keys.flat(config).items())
    facts = "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)
    return f"config\n{values}\n\nrun\n{facts}\n  (activations of a step are not counted)"


def _axes(setup: Setup) -> str:
    """The mesh in words, e.g. "4 x model=2"."""
    shape = setup.mesh.shape
    return f"{shape[meshes.DATA]} x model={shape[meshes.MODEL]}"


def memory(setup: Setup, data: Data) -> dict[str, float]:
    """What lies on each device all the time: part -> bytes.

    Args:
      setup: of the run.
      data: its triplets.
    """
    abstract, mesh = setup.functions.abstract, setup.mesh
    scalar = jax.ShapeDtypeStruct((), jnp.float32)
    paths = stages.trainable(setup.stage, setup.functions)
    trained = {p: abstract.get(p, scalar) for p in paths}
    optimizer = optim.build(setup.config.optim, paths, max(data.steps, 1))
    moments = jax.tree.leaves(jax.eval_shape(optimizer.init, trained))
    places = jax.tree.leaves(
        sharding.optimizer_shardings(optimizer, trained, setup.shardings, mesh)
    )
    default = meshes.replicated(mesh)
    fixed = {p: x for p, x in abstract.items() if not (setup.stage.index_is_query and p in trained)}
    on_device = {p: setup.shardings.get(p, default) for p in {**fixed, **trained}}
    found: dict[str, float] = {
        "parameters that stay": sum(_bytes(x, on_device[p]) for p, x in fixed.items()),
        "parameters that train": sum(_bytes(x, on_device[p]) for p, x in trained.items()),
        "gradients": sum(_bytes(x, on_device[p]) for p, x in trained.items()),
        "optimizer": sum(map(_bytes, moments, places)),
    }
    if data.references is not None:
        number = math.prod(setup.functions.target_shape) * len(data.triplets.images)
        found["bank"] = number * jnp.dtype(setup.config.loss.bank_dtype).itemsize / mesh.size
        if data.place == "device":
            held = len(data.references) * math.prod(setup.functions.reference_shape)
            found["references"] = held * BYTES["device"] / mesh.size
    return found


def _bytes(x: Any, place: jax.sharding.NamedSharding) -> int:
    return math.prod(place.shard_shape(x.shape)) * jnp.dtype(x.dtype).itemsize
