# SPDX-License-Identifier: Apache-2.0
"""How much memory a device has, what a program takes of it, and running out of it as a sentence."""

import contextlib
import os
import resource
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from cir_jax.errors import UserError

_MEMORY = Path("/proc/meminfo")
_GROUPS, _MOUNT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


class OutOfMemory(UserError, MemoryError):
    """Devices or host have no room for what is to be done; the message says what takes less."""


@contextlib.contextmanager
def guard(doing: str, advice: Callable[[], str]) -> Iterator[None]:
    """Turns "out of memory", of the host, of a device or of a compiler, into `OutOfMemory`.

    Args:
      doing: what the memory was wanted for, e.g. "encoding images".
      advice: what would take less of it; called where it is needed.
    """
    try:
        yield
    except OutOfMemory:
        raise
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not is_exhausted(error):
            raise
        raise OutOfMemory(f"out of memory while {doing} ({_first(error)}). {advice()}") from None


def is_exhausted(error: BaseException) -> bool:
    """Whether an error says that there was too little memory."""
    told = str(error)
    return isinstance(error, MemoryError) or (
        "RESOURCE_EXHAUSTED" in told or "out of memory" in told.lower()
    )


def _first(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def of_program(compiled: Any) -> int:
    """Bytes on each device while a compiled program runs, its arguments included; 0 if unknown."""
    try:
        analysis = compiled.memory_analysis()  # which not every backend has
    except (AttributeError, NotImplementedError, jax.errors.JaxRuntimeError):
        return 0
    if analysis is None:
        return 0
    held = analysis.argument_size_in_bytes + analysis.output_size_in_bytes
    return int(held - analysis.alias_size_in_bytes + analysis.temp_size_in_bytes)


def of_device(devices: Sequence[jax.Device]) -> int:
    """Bytes that each of these devices has for this process, the least of them; 0 if unknown.

    Devices of a CPU share the memory of the host.
    """
    mine = [d for d in devices if d.process_index == jax.process_index()]
    if not mine:
        return 0
    if mine[0].platform == "cpu":
        return of_host() // len(mine)
    limits = [int((d.memory_stats() or {}).get("bytes_limit", 0)) for d in mine]
    return min(limits)


def peak(devices: Sequence[jax.Device]) -> int:
    """Bytes that this process has taken at most so far: of each of these devices, the most of them;
    of the host, where they are devices of a CPU; 0 if unknown."""
    if devices[0].platform == "cpu":
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else 1024 * most
    return max(int((d.memory_stats() or {}).get("peak_bytes_in_use", 0)) for d in devices)


def of_host(groups: Path = _GROUPS, mount: Path = _MOUNT) -> int:
    """Bytes of memory of this host, or of the container that this process runs in.

    Args:
      groups: the file that names the control groups of this process.
      mount: where their limits are mounted.
    """
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([total, *_limits(groups, mount)])


def free_on_host() -> int:
    """Bytes of memory that this process may still take; 0 if unknown."""
    try:
        told = dict(line.split(":", 1) for line in _MEMORY.read_text().splitlines())
        available = int(told["MemAvailable"].split()[0]) * 1024
        used = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, LookupError):  # no Linux
        return 0
    return max(min(available, of_host() - used), 1)


def _limits(groups: Path, mount: Path) -> Iterator[int]:
    """The limits of the control groups of this process and of those around them."""
    try:
        lines = groups.read_text().splitlines()
    except OSError:  # no Linux
        return
    for line in lines:
        _, kinds, place = line.split(":", 2)
        if kinds == "":  # version 2
            root, name = mount, "memory.max"
        elif "memory" in kinds.split(","):
            root, name = mount / "memory", "memory.limit_in_bytes"
        else:
            continue
        folder = root / place.lstrip("/")
        for one in (folder, *folder.parents):
            if one != root and root not in one.parents:
                break
            with contextlib.suppress(OSError, ValueError):  # "max" is no limit
                yield int((one / name).read_text())
