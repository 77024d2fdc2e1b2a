# SPDX-License-Identifier: Apache-2.0
"""The device mesh, and how batches fit it. Axes: "data" (batch rows, bank rows) and "model"
(parameters, bank rows).

Sizes of batches are numbers over all devices. One that does not fit them is refused where it
changes what is trained, and made larger, with a message, where it does not.
"""

import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from cir_jax import progress
from cir_jax.errors import UserError
from cir_jax.runtime import programs

DATA = "data"
MODEL = "model"
AXES = (DATA, MODEL)
FEW = 8  # fewer rows of a batch on a device leave most of it idle
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
    compile_anew(devices)
    # Auto: the compiler places collectives. The default of jax >= 0.7, Explicit, makes every
    # contraction over a sharded dimension an error that the model would have to annotate.
    return Mesh(_arranged(slices, data, model), AXES, axis_types=(AxisType.Auto,) * 2)


def compile_anew(devices: Sequence[jax.Device]) -> None:
    """Leaves jax's cache of compiled programs alone where a program from it could do harm.

    On several devices of the CPU its collectives are no longer kept one after the other (jaxlib
    0.10.2). Devices of one process then wait for each other for ever, now and then; two processes
    train on each other's numbers, or abort.

    Of several processes the first alone writes, into a folder of its host. In the next run it would
    read what the others compile, and those of GPUs compile together: each tries a share of the
    kernels and waits for what the others have found. A folder that the user names is taken for one
    that all processes see.
    """
    if _may_harm(devices):
        jax.config.update("jax_enable_compilation_cache", False)
        compilation_cache.reset_cache()  # it has noted that it is used


def _may_harm(devices: Sequence[jax.Device]) -> bool:
    processes = len({device.process_index for device in devices})
    of_cpu = len(devices) > 1 and devices[0].platform == "cpu"
    return of_cpu or (processes > 1 and programs.kept())


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
        choice = " or ".join(map(str, _around(batch, devices)))
        raise UserError(
            f"{key} {batch} does not divide over {devices} devices of axis {DATA!r}; use {choice}"
            f"{_narrower(batch, mesh)}"
        )


def fitting_chunk(batch: int, chunk: int, mesh: Mesh) -> int:
    """Rows of a chunk, the least from `chunk` on that splits the batch and divides over "data".

    Chunks change what a device holds at a time and not the loss, so one that splits the batch but
    is too small for the devices is made larger, with a message. No device then holds more rows of
    a chunk than where `chunk` itself divides over the devices.

    Args:
      batch: rows of a global batch.
      chunk: rows of a chunk over all devices; 0 for no chunks.
      mesh: the device mesh.

    Raises:
      UserError: the batch does not divide over the devices, or does not split into such chunks.
        The message names pairs of both that go together.
    """
    devices = mesh.shape[DATA]
    if not chunk:
        return 0
    if batch % devices == 0 and batch % chunk == 0:
        fitting = next(n for n in _chunks(batch, devices) if n >= chunk)
        if fitting != chunk:
            _say_once(
                f"loss.chunk={chunk} is rounded up to {fitting}, which divides over {devices} "
                f"devices of axis {DATA!r}; the loss is the same"
            )
        return fitting
    if batch % devices:
        problem = f"batch {batch} does not divide over {devices} devices of axis {DATA!r}"
    elif chunk % devices:
        problem = f"loss.chunk {chunk} does not divide over {devices} devices of axis {DATA!r}"
    else:
        problem = f"batch {batch} does not split into chunks of loss.chunk={chunk}"
    choices = []
    for size in _around(batch, devices):
        sizes = _chunks(size, devices)
        near = [n for n in sizes if n <= chunk][-1:] + [n for n in sizes if n > chunk][:1]
        choices.append(f"batch={size} with loss.chunk={' or '.join(map(str, near))}")
    raise UserError(f"{problem}; use {', or '.join(choices)}{_narrower(batch, mesh)}")


def rounded(batch: int, mesh: Mesh, key: str) -> int:
    """Rows of an encoding batch, rounded up to a multiple of axis "data".

    What is encoded does not depend on it, so this is no error; it is said once, and so is a batch
    of which a device gets very few rows.

    Args:
      batch: rows over all devices.
      mesh: the device mesh.
      key: what the message calls `batch`.

    Raises:
      UserError: the batch is below 1.
    """
    if batch < 1:
        raise UserError(f"{key}={batch} is below 1; the default is 128")
    devices = mesh.shape[DATA]
    each = -(-batch // devices)
    size = each * devices
    if size != batch or (devices > 1 and each < FEW):
        said = f"{key}={batch}" + (f" is rounded up to {size}" if size != batch else "")
        said += f": {share(size, mesh)}"
        if each < FEW:
            said += f"; they are faster with more, {key}={FEW * devices} gives them {FEW}"
        _say_once(said)
    return size


def share(batch: int, mesh: Mesh) -> str:
    """What a device gets of a batch that divides over axis "data", in words; "" for one device."""
    devices = mesh.shape[DATA]
    each = batch // devices
    rows = f"{each:,} row{'s' * (each > 1)} on each of {devices} devices of axis {DATA!r}"
    return "" if devices == 1 else rows


def _narrower(batch: int, mesh: Mesh) -> str:
    """The smallest "model" axis that leaves "data" few enough devices for the batch, as advice."""
    devices = mesh.shape[DATA]
    for times in (2, 4, 8):
        fewer, left = divmod(devices, times)
        if batch > 0 and batch % devices and not left and fewer > 1 and batch % fewer == 0:
            model = mesh.shape[MODEL] * times
            return f", or mesh.model={model}, with which {fewer} devices share the batch"
    return ""


def _around(number: int, unit: int) -> list[int]:
    """The multiples of `unit` next to `number`: itself, or the one below, if any, and above."""
    below = number // unit * unit
    if below == number and number > 0:
        return [number]
    return [n for n in (below, below + unit) if n > 0]


def _chunks(batch: int, devices: int) -> list[int]:
    """The sizes, ascending, that split a batch and divide over the devices."""
    share = batch // devices
    return [n * devices for n in range(1, share + 1) if share % n == 0]


@lru_cache(maxsize=64)
def _say_once(message: str) -> None:
    progress.say(message)
