# SPDX-License-Identifier: Apache-2.0
"""Where the parts run: the device, its peak, the made data."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from tools.benchmarks.on_device.cases import Scale
from tools.planning.chips import CHIPS, Chip

# How a device calls itself -> how tools/planning/chips.py calls it. Of GPUs the first that is a
# part of the name: "NVIDIA H100 80GB HBM3".
_TPUS = {"TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5e": "v5e", "TPU v5": "v5p", "TPU v5p": "v5p",
         "TPU v6 lite": "v6e", "TPU v6e": "v6e", "TPU7x": "tpu7x"}  # fmt: skip
_GPUS = {"A100-SXM4-80GB": "A100-80", "A100 80GB": "A100-80", "A100": "A100-40", "H100": "H100",
         "H200": "H200", "B200": "B200", "L40S": "L40S", "L4": "L4", "A10G": "A10G",
         "RTX 4090": "RTX4090"}  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """What every part is given.

    Attributes:
      device: the one that is measured.
      other: a device of the CPU, in the same process.
      mesh: of `device`.
      scale: how much is measured.
      data: folder of the made data set.
      folder: for what parts write.
      peak: FLOP/s of bfloat16 products, as its maker says; 0 if unknown.
      bandwidth: bytes/s of its memory; 0 if unknown.
      walked: (config, tower) -> what a dry run has found: its ViT-B/16 is as small as its ViT-L/14.
    """

    device: jax.Device
    other: jax.Device
    mesh: Mesh
    scale: Scale
    data: Path
    folder: Path
    peak: float = 0.0
    bandwidth: float = 0.0
    walked: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)


def chip_of(kind: str) -> Chip | None:
    """What is known of a device, by the name it gives itself."""
    if kind in _TPUS:
        return CHIPS[_TPUS[kind]]
    for part, name in _GPUS.items():
        if part in kind:
            return CHIPS[name]
    return None
