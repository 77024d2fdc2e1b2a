# SPDX-License-Identifier: Apache-2.0
"""The devices of machines that are not here: TPU slices, and GPU nodes, described on a CPU.

libtpu, the library behind jax on a TPU, knows the layout of every slice and compiles for it on any
machine with x86-64 Linux. It must not lie on `sys.path` of other runs, which would look for a TPU
then. So the wheel that matches jax is unpacked into a cache folder, and only a process that was
started with `environment()` finds it there:

    subprocess.run([sys.executable, "program.py"], env=os.environ | slices.environment())

and, in that program, `slices.devices("v5e:4x4")`.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock

from cir_jax.errors import UserError

# How libtpu calls the smallest slices of one host, which a process must name to load it.
_ANY_SLICE = "v5litepod-8"
_TPU = re.compile(r"(?:([1-9]\d*)x)?((v4|v5e|v5p|v6e|tpu7x):\d+(?:x\d+){1,2})")
_GPU = re.compile(r"(?:([1-9]\d*)x)?([1-9]\d*)x([A-Za-z][\w-]*)")


@dataclass(frozen=True)
class FakeGPU:
    """What a mesh reads of a GPU. Nothing can be compiled for it, and nothing runs on it.

    Attributes:
      id: number over all nodes.
      process_index: of the process that has it; one process for each GPU.
      slice_index: its node: GPUs of a node are a slice to jax.
      device_kind: the name that was given, "H100".
    """

    id: int
    process_index: int
    slice_index: int
    device_kind: str
    platform: str = "gpu"


def is_tpu(on: str) -> bool:
    """Whether `on` names TPU slices, "v5e:4x4" or "2xv5e:4x4"; GPUs are "8xH100" or "2x8xH100".

    Raises:
      UserError: it is neither.
    """
    if _TPU.fullmatch(on):
        return True
    if _GPU.fullmatch(on):
        return False
    raise UserError(
        f"{on!r} is no set of devices; write a TPU slice by its chips, v5e:4x4, v6e:4x8, "
        "v5p:2x2x4, v4:2x2x4 or tpu7x:2x2x2, several as 2xv5e:4x4; or GPUs as 8xH100, and of "
        "several nodes 2x8xH100"
    )


def environment() -> dict[str, str]:
    """Environment variables of a process that describes TPU slices and compiles for them.

    Raises:
      UserError: there is no libtpu for this machine, or it cannot be had.
    """
    return {
        "JAX_PLATFORMS": "cpu",  # else jax would look for a TPU of this machine
        "TPU_SKIP_MDS_QUERY": "1",  # no question to the metadata server of Google Cloud
        "TPU_LIBRARY_PATH": str(_library()),
        "TPU_ACCELERATOR_TYPE": _ANY_SLICE,
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several processes at once; none has a TPU
        "JAX_ENABLE_COMPILATION_CACHE": "false",  # jax could not read such programs back
        "TPU_MIN_LOG_LEVEL": os.environ.get("TPU_MIN_LOG_LEVEL", "3"),
    }


def devices(on: str, processes_per_gpu: bool = True) -> list[Any]:
    """The devices of `on`, with the coordinates and processes that the real ones have.

    Args:
      on: as in `is_tpu`. TPU slices need a process with the variables of `environment`.
      processes_per_gpu: one process for each GPU, as Slurm starts them; else one for each node.

    Raises:
      UserError: there are no such devices.
    """
    if not is_tpu(on):
        return _gpus(on, processes_per_gpu)
    from jax.experimental import topologies

    if "TPU_LIBRARY_PATH" not in os.environ:
        raise UserError(
            f"{on} is described by libtpu, and this process has none; start it with the "
            "environment variables of tools.slices.environment()"
        )
    count, name = _TPU.fullmatch(on).groups()[:2]  # type: ignore[union-attr]
    options: dict[str, Any] = {"num_slices": int(count)} if count else {}
    if name.startswith("v4:"):
        # The two cores of a chip of v4 are one device of jax, as on the real machines.
        options["chip_config_name"] = "megacore"
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices
    except Exception as error:  # libtpu raises what jax has for any error of a runtime
        reason = str(error).strip().splitlines()[0][:200]
        raise UserError(
            f"libtpu knows no slice {on} ({reason}); v5e has 2x2, 2x4, 4x4, ... 16x16"
        ) from None


def _gpus(on: str, processes_per_gpu: bool) -> list[FakeGPU]:
    nodes, count, kind = _GPU.fullmatch(on).groups()  # type: ignore[union-attr]
    each = int(count)
    return [
        FakeGPU(i, i if processes_per_gpu else i // each, i // each, kind)
        for i in range(int(nodes or 1) * each)
    ]


def _library() -> Path:
    """libtpu.so of the version that this jax names; downloaded once."""
    wanted = _wanted()
    base = os.environ.get("CIR_JAX_CACHE") or Path.home() / ".cache" / "cir_jax"
    folder = Path(base) / "libtpu" / wanted.removeprefix("libtpu").strip("=.*")
    library = folder / "libtpu" / "libtpu.so"
    if library.is_file():
        return library
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not library.is_file():
            _download(wanted, folder)
    return library


def _wanted() -> str:
    for line in metadata.requires("jax") or ():
        requirement, _, marker = line.partition(";")
        if requirement.startswith("libtpu") and "tpu" in marker:
            return requirement.strip()
    raise UserError(f"jax {metadata.version('jax')} names no libtpu; install a released jax")


def _download(wanted: str, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent) as place:
        command = [sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "--target"]
        command += [f"{place}/unpacked", "--disable-pip-version-check", "--only-binary=:all:"]
        done = subprocess.run([*command, wanted], capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["pip says nothing"])[-1]
            raise UserError(
                f"{wanted} cannot be installed ({reason}); it exists for Linux on x86-64, and pip "
                "must reach a package index"
            )
        shutil.rmtree(folder, ignore_errors=True)
        Path(place, "unpacked").replace(folder)
