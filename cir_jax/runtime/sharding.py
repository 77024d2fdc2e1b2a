# SPDX-License-Identifier: Apache-2.0
"""Where every array lives: parameters by the model's path rules, moments like theirs.

With `mesh.fsdp` the parameters are split over "data" as well (fully sharded data parallelism, stage
3 of Rajbhandari et al., "ZeRO", SC 2020): a device keeps its part of each, of the gradient and of
the moments. The compiler gathers a matrix, in the type it is used in, where a layer needs it, so
that one layer of a scan is whole at a time. Left alone it would sometimes move the rows of the
batch instead, which are more; `keep_rows` forbids that.
"""

import contextlib
import functools
import math
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cir_jax import rules
from cir_jax.errors import UserError
from cir_jax.params import ModelParams
from cir_jax.runtime import mesh as meshes

# Values that a parameter, or one layer of a stacked one, has at least if it is split over "data".
# What is smaller (biases, norms) is under 1 % of a model, and each would need its own collective.
LEAST = 2**16

_SPLIT: ContextVar[Mesh | None] = ContextVar("mesh of parameters that are split", default=None)
_BATCH: ContextVar[Mesh | None] = ContextVar("mesh over which a batch is split", default=None)
# A table has at least so many rows for each that a batch reads, if gradients cross devices as rows.
_FEW = 4


def parameter_shardings(model: ModelParams, mesh: Mesh) -> dict[str, NamedSharding]:
    """Parameter path -> sharding, from the rules of the model.

    Args:
      model: its rules, and the shapes of its parameters. With `fsdp` they are split over "data"
        too, where they have LEAST values and a dimension that divides.
      mesh: the device mesh.

    Raises:
      UserError: a parameter without a rule, an idle rule, a rule with more entries than the
        parameter has dimensions, or a dimension that does not divide over the mesh axis.
    """
    specs = rules.match(model.sharding_rules, model.abstract, "sharding rules")
    found = {}
    for path, entries in specs.items():
        shape = model.abstract[path].shape
        spec = _spec(path, shape, entries, mesh)
        if model.fsdp is not None:
            spec = _over_data(spec, shape, path in model.stacked, mesh)
        found[path] = NamedSharding(mesh, spec)
    return found


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


def _over_data(spec: PartitionSpec, shape: tuple, stacked: bool, mesh: Mesh) -> PartitionSpec:
    """`spec` with one more dimension split over "data": the largest that is whole and divides, or
    else the largest of which each part divides.

    The layer axis of a scan stays whole: each device would hold some of the layers, and all of them
    would be gathered before the first.
    """
    entries = [*spec, *[None] * (len(shape) - len(spec))]
    parts = [1 if axis is None else mesh.shape[axis] for axis in entries]
    first = int(stacked)
    devices = mesh.shape[meshes.DATA]
    fitting = [i for i in range(first, len(shape)) if shape[i] % (parts[i] * devices) == 0]
    if not fitting or math.prod(shape[first:]) < LEAST:
        return spec
    at = max(fitting, key=lambda i: (parts[i] == 1, shape[i]))
    entries[at] = meshes.DATA if parts[at] == 1 else (entries[at], meshes.DATA)
    return PartitionSpec(*entries)


@contextlib.contextmanager
def split_over(mesh: Mesh | None, batch: Mesh | None = None) -> Iterator[None]:
    """While a program is traced in it, `keep_rows` holds for `mesh` and `lookup` for `batch`; None
    changes nothing."""
    before = _SPLIT.set(mesh), _BATCH.set(batch)
    try:
        yield
    finally:
        _SPLIT.reset(before[0])
        _BATCH.reset(before[1])


def keep_rows(x: jax.Array) -> jax.Array:
    """`x` [B, ...], told to lie where the rows of its batch lie; nothing outside of `split_over`.

    Around a product of rows and a matrix that are both split over "data" it leaves the compiler one
    way, which is to gather the matrix. It changes no value.
    """
    mesh = _SPLIT.get()
    if mesh is None or not x.ndim or x.shape[0] % mesh.shape[meshes.DATA]:
        return x
    # Other dimensions stay as the rules over "model" make them.
    rest = [PartitionSpec.UNCONSTRAINED] * (x.ndim - 1)
    place = NamedSharding(mesh, PartitionSpec(meshes.DATA, *rest))
    return jax.lax.with_sharding_constraint(x, place)


def lookup(table: jax.Array, ids: jax.Array) -> jax.Array:
    """Rows of a table, [V, C] and [...] ids -> [..., C]; gradients cross devices as rows.

    Devices that hold a table alike would each add up the gradients of their own rows, and then sum
    whole tables: 126 MB in a step of CLIP RN50x4, of whose 49,408 rows a batch of 256 captions
    reads 4,000. Here the gradients of those rows go to all devices, 5 MB, and each device adds up
    all of them: the same sum in another order. Outside of `split_over`, on one device, and where a
    batch reads more than the table's rows over _FEW, it is `table[ids]`.
    """
    mesh = _BATCH.get()
    if mesh is None or not as_rows(len(table), ids.size, mesh):
        return table[ids]
    return _looked_up(mesh, len(table), table, ids)


def as_rows(rows: int, ids: int, mesh: Mesh) -> bool:
    """Whether gradients of a table of so many rows, of which a batch reads `ids`, cross as rows."""
    return mesh.shape[meshes.DATA] > 1 and _FEW * ids <= rows


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _looked_up(mesh: Mesh, rows: int, table: jax.Array, ids: jax.Array) -> jax.Array:
    return table[ids]


def _forward(mesh: Mesh, rows: int, table: jax.Array, ids: jax.Array) -> Any:
    return table[ids], ids


def _backward(mesh: Mesh, rows: int, ids: jax.Array, gradient: jax.Array) -> Any:
    # By shard_map, since a constraint on what is gathered spreads over the products before it:
    # on a v5e:2x4 the compiler then gathered activations and computed all rows on every device.
    batch = PartitionSpec(meshes.DATA)
    exchange = jax.shard_map(
        lambda *rows: [jax.lax.all_gather(x, meshes.DATA, tiled=True) for x in rows],
        mesh=mesh,
        in_specs=(batch, batch),
        out_specs=PartitionSpec(),
        axis_names={meshes.DATA},
        check_vma=False,
    )
    ids, gradient = exchange(ids, gradient)
    table = jnp.zeros((rows, gradient.shape[-1]), gradient.dtype)
    return table.at[ids].add(gradient), None


_looked_up.defvjp(_forward, _backward)


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
