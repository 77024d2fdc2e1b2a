# SPDX-License-Identifier: Apache-2.0
"""The device mesh. Axes: "data" (batch rows, bank rows) and "model" (parameters, bank rows)."""

import threading

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from cir_jax.errors import UserError

DATA = "data"
MODEL = "model"
AXES = (DATA, MODEL)
# Held while a program is started. Two that threads start at once could reach the devices in
# different orders, and then each waits in a collective for a device that the other one has.
LAUNCH = threading.Lock()


def make(data: int = -1, model: int = 1, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh of `data` x `model` devices; -1 means "all that are left".

    Args:
      data: devices along the batch.
      model: devices along the parameters.
      devices: the devices to use; all of every process if None.

    Raises:
      UserError: the product is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    if data == -1 and model > 0 and count % model == 0:
        data = count // model
    if data < 1 or model < 1 or data * model != count:
        divisors = [n for n in range(1, count + 1) if count % n == 0]
        raise UserError(
            f"mesh data={data} x model={model} does not use {count} devices; "
            f"set mesh.data=-1 and mesh.model to one of {divisors}"
        )
    # Auto: the compiler places collectives. The default of jax >= 0.7, Explicit, makes every
    # contraction over a sharded dimension an error that the model would have to annotate.
    return jax.make_mesh((data, model), AXES, devices=devices, axis_types=(AxisType.Auto,) * 2)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over "data"."""
    return NamedSharding(mesh, PartitionSpec(DATA))


def row_sharding(mesh: Mesh) -> NamedSharding:
    """Bank rows over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def check_batch(batch: int, mesh: Mesh, key: str = "batch") -> None:
    """Raises UserError unless `batch` divides over axis "data" of the mesh."""
    devices = mesh.shape[DATA]
    if batch < 1 or batch % devices:
        lower, upper = batch // devices * devices, (batch // devices + 1) * devices
        choice = f"{lower} or {upper}" if lower else f"{upper}"
        raise UserError(
            f"{key} {batch} does not divide over {devices} devices of axis {DATA!r}; use {choice}"
        )
