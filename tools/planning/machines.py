# SPDX-License-Identifier: Apache-2.0
"""What `--on` names: the devices, their chip, and the hosts they are at."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from cir_jax.errors import UserError
from tools import slices
from tools.planning import chips
from tools.planning.chips import Chip


@dataclass(frozen=True)
class Machine:
    """Devices to plan for.

    Attributes:
      on: as it was given.
      chip: what each device is.
      devices: as jax has them there: with processes, and of TPUs with coordinates.
      hosts: number of hosts, or GPU nodes.
      processes: number of processes that train.
    """

    on: str
    chip: Chip
    devices: tuple[Any, ...]
    hosts: int
    processes: int

    @property
    def each(self) -> int:
        """Devices of a host."""
        return len(self.devices) // self.hosts

    @property
    def rented(self) -> float:
        """What a price is given for: chips."""
        return len(self.devices) / self.chip.per_chip


def find(on: str, process_per_gpu: bool = False, **values: float) -> Machine:
    """The machine that `on` names.

    Args:
      on: "v5e:4x4", "8xH100" or "2x8xH100".
      process_per_gpu: on one node of GPUs too.
      values: of the chip, see `chips.changed`.

    Raises:
      UserError: no such chip or slice.
    """
    kind = chip_name(on)
    chip = chips.changed(chips.find(kind), **values)
    if chip.tpu != slices.is_tpu(on):
        raise UserError(
            f"{on!r}: {chip.name} is a {'TPU' if chip.tpu else 'GPU'}; write "
            f"{f'{chip.name}:4x4' if chip.tpu else f'8x{chip.name}'}"
        )
    if chip.tpu:
        devices = slices.devices(on)
        hosts = processes = len({d.process_index for d in devices})
    else:
        hosts = len({d.slice_index for d in slices.devices(on)})
        # launch/slurm_gpu.sh starts a process for each GPU; launch/local_gpu.sh one, or as many.
        devices = slices.devices(on, processes_per_gpu=hosts > 1 or process_per_gpu)
        processes = len({d.process_index for d in devices})
    least, most = (f(Counter(d.process_index for d in devices).values()) for f in (min, max))
    assert least == most  # processes of one size: what follows divides by their number
    return Machine(on, chip, tuple(devices), hosts, processes)


def chip_name(on: str) -> str:
    """The name of the chip in `on`; whether there is such a chip is not looked at."""
    if ":" in on:
        return on.partition(":")[0]
    count, x, kind = on.rpartition("x")
    if x and kind and all(part.isdigit() for part in count.split("x")):
        return kind
    slices.is_tpu(on)  # raises and says how they are written
    raise AssertionError(on)
