# SPDX-License-Identifier: Apache-2.0
"""The parameters of a run that never change, written once: what lies below its adapters.

    checkpoints/base/0    as a checkpoint, with the checksum of the matrices that have adapters

Each checkpoint of such a run names that checksum, so that adapters are never put on another base.
"""

from pathlib import Path
from typing import Any

from cir_jax.errors import UserError
from cir_jax.params import Params
from cir_jax.runtime import agreement
from cir_jax.runtime.checkpoint import Checkpoints

BASE = "checkpoints/base"
_STEP = 0
_PART = "fixed"


def write(workdir: str | Path, params: Params, checksum: str) -> None:
    """Writes the base of a new run; one that an earlier start has left is replaced.

    Every process calls this.

    Args:
      workdir: the run folder.
      params: path -> array on the devices.
      checksum: of the matrices that have adapters.

    Raises:
      UserError: the disk is full.
    """
    checkpoints = Checkpoints(Path(workdir) / BASE, keep=1, chunk_gb=1)
    there = agreement.first(lambda: str(checkpoints.steps()), "could not look for a base")
    if there != "[]":
        checkpoints.forget(_STEP)
    checkpoints.save(_STEP, {_PART: params}, {"base": checksum, "paths": sorted(params)})
    checkpoints.close()


def read(workdir: str | Path, abstract: Params, checksum: str) -> Params:
    """The base of a run, placed as the shardings in `abstract` say.

    Args:
      workdir: the run folder.
      abstract: path -> jax.ShapeDtypeStruct with a sharding.
      checksum: as the checkpoint with the adapters names it.

    Raises:
      UserError: it is missing, damaged, or another one.
    """
    checkpoints = Checkpoints(Path(workdir) / BASE, keep=1)
    if _STEP not in checkpoints.steps():
        raise UserError(
            f"{workdir} holds adapters (LoRA), which are differences to a base, and {_STEP} in "
            f"{checkpoints.folder}, which is that base, is missing or incomplete. Restore it from "
            "a copy of the run, or train again"
        )
    found: Any = checkpoints.record(_STEP)
    if found.get("base") != checksum:
        raise UserError(
            f"{checkpoints.folder} is not the base of the adapters in {workdir}: its checksum is "
            f"{found.get('base')}, and they were trained on {checksum}. Bring that one back"
        )
    tree = checkpoints.restore(_STEP, {_PART: abstract})
    checkpoints.close()
    return tree[_PART]
