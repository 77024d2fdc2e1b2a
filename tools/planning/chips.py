# SPDX-License-Identifier: Apache-2.0
"""What is known of each accelerator: memory, speed, links, and the host it comes with.

Peaks are those of the makers, without sparsity, and no program reaches them: a time that follows
from them is a floor. The source of each chip is named beside it, and in every plan.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from cir_jax.errors import UserError, nearest

GB, GIB, TERA = 1e9, 2.0**30, 1e12
# A program of jax takes at most this share of the memory of a GPU, unless
# XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise (docs.jax.dev, "GPU memory allocation").
GPU_SHARE = 0.75
CLOUD = "docs.cloud.google.com/tpu/docs, the page of the version"
BOOK = '"How To Scale Your Model", jax-ml.github.io/scaling-book, on TPUs'


@dataclass(frozen=True)
class Chip:
    """A device as jax counts them; of TPU7x that is half a chip.

    Attributes:
      name: as in `--on`.
      memory: bytes that a program may take.
      peak: FLOP/s of bfloat16 products.
      float32: FLOP/s of float32 products at jax's default precision: one pass of bfloat16 on a
        TPU, TF32 on a GPU.
      highest: FLOP/s of float32 products at precision "highest".
      bandwidth: bytes/s of its memory.
      link: bytes/s that it sends to others of its slice or node, over all links.
      network: bytes/s that a host sends to other hosts outside of the links.
      pcie: bytes/s from the host to the device.
      cores: processor cores of a host, for each device; two vCPUs are one.
      source: where the numbers are from.
      per_chip: devices of what is rented as one.
      tpu: a TPU, which the compiler can be asked about on any machine.
    """

    name: str
    memory: float
    peak: float
    float32: float
    highest: float
    bandwidth: float
    link: float
    network: float
    pcie: float
    cores: float
    source: str
    per_chip: int = 1
    tpu: bool = False


def _tpu(
    name: str,
    gib: float,
    tera: float,
    gigabytes: float,
    link: float,
    vcpus: int,
    dcn: float,
    pcie: float,
    per_chip: int = 1,
    source: str = f"{CLOUD}; links: half of the bidirectional bandwidth",
) -> Chip:
    """A TPU, from the numbers of a chip.

    Args:
      name: as in `--on`.
      gib: memory of a device that the compiler lays programs out in; said by its error message.
      tera: peak TFLOP/s.
      gigabytes: GB/s of the memory.
      link: GB/s over all links, one way.
      vcpus: of a host of four chips.
      dcn: Gbit/s of a host.
      pcie: GB/s to a chip.
      per_chip: devices.
      source: of the peak, the memory and the links.
    """
    peak = tera * TERA / per_chip
    return Chip(
        name,
        memory=gib * GIB,
        peak=peak,
        float32=peak,
        highest=peak / 6,  # six passes of bfloat16
        bandwidth=gigabytes * GB / per_chip,
        link=link * GB / per_chip,
        network=dcn * GB / 8,
        pcie=pcie * GB / per_chip,
        cores=vcpus / 2 / (4 * per_chip),
        source=f"{source}; usable memory: what libtpu's compiler allows; host: that of four chips; "
        f"PCIe: {BOOK}",
        per_chip=per_chip,
        tpu=True,
    )


def _gpu(
    name: str,
    gigabytes: float,
    tera: float,
    float32: float,
    bandwidth: float,
    link: float,
    machine: tuple[str, int, int, float],
    pcie: float,
    tf32: float = 0.0,
) -> Chip:
    """A GPU.

    Args:
      name: as in `--on`.
      gigabytes: GiB on the card.
      tera: peak TFLOP/s of bfloat16 with sums in float32, dense.
      float32: TFLOP/s without tensor cores.
      bandwidth: GB/s of the memory.
      link: GB/s to others of its node, one way.
      machine: name, GPUs, vCPUs and Gbit/s of the machine that cores and network are of.
      pcie: GB/s, one way.
      tf32: TFLOP/s; 0 is half of bfloat16.
    """
    vm, gpus, vcpus, network = machine
    return Chip(
        name,
        memory=gigabytes * GIB * GPU_SHARE,
        peak=tera * TERA,
        float32=(tf32 or tera / 2) * TERA,
        highest=float32 * TERA,
        bandwidth=bandwidth * GB,
        link=link * GB,
        network=network * GB / 8,
        pcie=pcie * GB,
        cores=vcpus / 2 / gpus,
        source=f"NVIDIA's data sheet; usable memory: {GPU_SHARE:.0%} of the card, jax's default; "
        f"host: {vm}",
    )


CHIPS = {
    chip.name: chip
    for chip in (
        _tpu(
            "v4",
            30.75,
            275,
            1228,
            270,
            240,
            200,
            16,
            source=f"{CLOUD}; links: {BOOK}, 6 of 45 GB/s",
        ),
        _tpu("v5e", 15.75, 197, 819, 200, 112, 200, 16),
        _tpu("v5p", 95.74, 459, 2765, 600, 208, 200, 16),
        _tpu("v6e", 31.25, 918, 1638, 400, 180, 400, 32),
        _tpu("tpu7x", 94.75, 2307, 7380, 600, 224, 400, 32, per_chip=2),
        _gpu("A100-40", 40, 312, 19.5, 1555, 300, ("a2-highgpu-8g", 8, 96, 100), 32),
        _gpu("A100-80", 80, 312, 19.5, 2039, 300, ("p4de.24xlarge", 8, 96, 400), 32),
        _gpu("H100", 80, 989, 67, 3350, 450, ("p5.48xlarge", 8, 192, 3200), 64),
        _gpu("H200", 141, 989, 67, 4800, 450, ("p5en.48xlarge", 8, 192, 3200), 64),
        _gpu("B200", 180, 2250, 75, 7700, 900, ("p6-b200.48xlarge", 8, 192, 3200), 64),
        _gpu("L4", 24, 121, 30.3, 300, 32, ("g2-standard-96", 8, 96, 100), 32),
        _gpu("L40S", 48, 362, 91.6, 864, 32, ("g6e.48xlarge", 8, 192, 400), 32),
        _gpu("A10G", 24, 70, 31.2, 600, 32, ("g5.48xlarge", 8, 192, 100), 32),
        _gpu("RTX4090", 24, 165.2, 82.6, 1008, 32, ("desktop of 16 cores", 1, 32, 10), 32, 82.6),
    )
}


def find(name: str) -> Chip:
    """The chip called `name`, in either case.

    Raises:
      UserError: no such chip; what exists is listed, the nearest named.
    """
    known = {n.lower(): chip for n, chip in CHIPS.items()}
    if name.lower() in known:
        return known[name.lower()]
    close = nearest(name.lower(), known)
    for plain, chip in known.items():
        close = close.replace(f"{plain!r}", f"{chip.name!r}")
    raise UserError(
        f"no accelerator {name!r} is known; there are: {', '.join(CHIPS)}.{close} One more is a "
        "line in tools/planning/chips.py"
    )


def changed(chip: Chip, **values: Any) -> Chip:
    """The chip with the numbers that a user knows better; 0 leaves one as it is."""
    known = {key: value for key, value in values.items() if value}
    if not known:
        return chip
    source = f"{chip.source}; from the command line: {', '.join(sorted(known))}"
    return dataclasses.replace(chip, **known, source=source)
