# SPDX-License-Identifier: Apache-2.0
"""Where every array lives: parameters by the model's path rules, moments like theirs."""

from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cir_jax import rules
from cir_jax.errors import UserError
from cir_jax.params import ModelParams
from cir_jax.runtime import mesh as meshes


def parameter_shardings(model: ModelParams, mesh: Mesh) -> dict[str, NamedSharding]:
    """Parameter path -> sharding, from the rules of the model.

    Raises:
      UserError: a parameter without a rule, an idle rule, a rule with more entries than the
        parameter has dimensions, or a dimension that does not divide over the mesh axis.
    """
    specs = rules.match(model.sharding_rules, model.abstract, "sharding rules")
    return {
        path: NamedSharding(mesh, _spec(path, model.abstract[path].shape, entries, mesh))
        for path, entries in specs.items()
    }


def _spec(path: str, shape: tuple, entries: tuple, mesh: Mesh) -> PartitionSpec:
    if len(entries) > len(shape):
        raise UserError(f"sharding rule {entries} has more entries than {path} has axes: {shape}")
    for size, axis in zip(shape, entries, strict=False):
        if axis and size % mesh.shape[axis]:
            divisors = [n for n in range(1, mesh.size + 1) if size % n == 0 and mesh.size % n == 0]
            raise UserError(
                f"{path}: {size} does not divide over {mesh.shape[axis]} devices of axis {axis!r}; "
                f"set mesh.{axis} to one of {divisors}"
            )
    return PartitionSpec(*entries)


def place(params: dict[str, Any], shardings: dict[str, NamedSharding]) -> dict[str, jax.Array]:
    """Moves a flat parameter dict to its place; every process holds the same host values.

    A path without an entry in `shardings` (a leaf that a stage added) is replicated.
    """
    default = NamedSharding(next(iter(shardings.values())).mesh, PartitionSpec())
    return {path: _put(x, shardings.get(path, default)) for path, x in params.items()}


def _put(x: Any, sharding: NamedSharding) -> jax.Array:
    if jax.process_count() == 1 or (isinstance(x, jax.Array) and not x.is_fully_addressable):
        return jax.device_put(x, sharding)
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def optimizer_shardings(
    optimizer: optax.GradientTransformation,
    trained: dict[str, Any],
    shardings: dict[str, NamedSharding],
    mesh: Mesh,
) -> Any:
    """Shardings of the optimizer's state: moments lie where their parameter lies."""
    state = jax.eval_shape(optimizer.init, trained)
    default = meshes.replicated(mesh)
    return optax.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        state,
        {path: shardings.get(path, default) for path in trained},
        transform_non_params=lambda _: default,
    )
