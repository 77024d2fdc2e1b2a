# SPDX-License-Identifier: Apache-2.0
"""The device mesh. Axes: "data" (batch rows, bank rows) and "model" (parameters, bank rows)."""

import threading
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from cir_jax.errors import UserError

DATA = "data"
MODEL = "model"
AXES = (DATA, MODEL)
# Held while a program is started. Two that threads start at once could reach the devices in
# different orders, and then each waits in a collective for a device that the other one has.
LAUNCH = threading.Lock()


def make(data: int = -1, model: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of `data` x `model` devices; -1 means "all that are left".

    Neighbours along "model" are neighbours in the network: they exchange parts of every layer, so
    that axis stays inside a slice (of a TPU, or the GPUs of one node, which jax calls a slice too)
    while "data", which exchanges gradients once a step, goes through all slices, one after the
    other. Within a slice of a TPU the order follows the torus, so the devices of a host need not be
    adjacent along "data": see `cir_jax.runtime.encode.local_rows`.

    Args:
      data: devices along the batch.
      model: devices along the parameters.
      devices: the devices to use; all of every process if None.

    Raises:
      UserError: the product is not the number of devices, "model" does not fit into a slice, slices
        of different sizes, or devices that are no box of a TPU's torus.
    """
    devices = jax.devices() if devices is None else list(devices)
    slices = _by_slice(devices)
    count, each = len(devices), len(slices[0])
    if data == -1 and model > 0 and count % model == 0:
        data = count // model
    fitting = [n for n in range(1, each + 1) if each % n == 0]
    if data < 1 or model < 1 or data * model != count:
        raise UserError(
            f"mesh data={data} x model={model} does not use {count} devices; "
            f"set mesh.data=-1 and mesh.model to one of {fitting}"
        )
    if each % model:
        raise UserError(
            f"mesh.model={model} does not fit into a {_name(devices)} of {each} devices, and "
            f"between the {len(slices)} of them the network is too slow for it; set mesh.data=-1 "
            f"and mesh.model to one of {fitting}"
        )
    # Auto: the compiler places collectives. The default of jax >= 0.7, Explicit, makes every
    # contraction over a sharded dimension an error that the model would have to annotate.
    return Mesh(_arranged(slices, data, model), AXES, axis_types=(AxisType.Auto,) * 2)


def _arranged(slices: list[list[jax.Device]], data: int, model: int) -> np.ndarray:
    """[data, model] devices."""
    # A "model" axis that is no whole axis of the torus takes a part of one.
    split: dict[str, Any] = {"allow_split_physical_axes": True}
    try:
        if len(slices) == 1:
            return mesh_utils.create_device_mesh((data, model), slices[0], **split)
        inside, devices = (data // len(slices), model), [d for part in slices for d in part]
        return mesh_utils.create_hybrid_device_mesh(inside, (len(slices), 1), devices, **split)
    except AssertionError as error:  # how jax says it
        raise UserError(
            f"{sum(map(len, slices))} devices, {slices[0][0]} the first, that are no box of the "
            f"TPU's torus with one device on each chip ({str(error)[:80]} ...); give all of "
            "jax.devices(), one of them, or a box"
        ) from None


def _by_slice(devices: Sequence[jax.Device]) -> list[list[jax.Device]]:
    """The devices of each slice, as many in each."""
    found: dict[int, list[jax.Device]] = {}
    for device in devices:  # those of a single process on a CPU have no slice
        found.setdefault(getattr(device, "slice_index", None) or 0, []).append(device)
    sizes = {index: len(part) for index, part in sorted(found.items())}
    if len(set(sizes.values())) > 1:
        raise UserError(
            f"the {_name(devices)}s have {', '.join(map(str, sizes.values()))} devices; use as "
            "many of each, or leave the odd one out"
        )
    return [found[index] for index in sizes]


def _name(devices: Sequence[jax.Device]) -> str:
    return "slice" if devices[0].platform == "tpu" else "node"


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
