# SPDX-License-Identifier: Apache-2.0
"""What a figure was taken on: the machine, its versions, the date, and what else ran there.

Other work is what the processors of this process did for others while it ran, by the counters of
Linux; the load, which the system averages over a minute, is printed beside it. Where there are no
such counters, the load before the figure was taken has to do.
"""

import os
import platform
import resource
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from cir_jax.runtime import memory

# Share of the processors from which on others disturb a figure, and the load that stands for it.
OTHERS, LOAD = 0.05, 0.5
MARK = "TAKEN BESIDE OTHER WORK"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "pillow",
            "torch", "libtpu")  # fmt: skip
_STAT, _CPU = Path("/proc/stat"), Path("/proc/cpuinfo")
_BUSY = (0, 1, 2, 5, 6, 7)  # user, nice, system, irq, softirq, steal


class Watch:
    """Notes how busy the machine is, from here to `end`.

    Args:
      stat: the counters of Linux.
    """

    def __init__(self, stat: Path = _STAT):
        self._stat = stat
        self.before = load()
        self._busy, self._own, self._clock = busy(stat), _own(), time.perf_counter()

    def end(self) -> dict[str, Any]:
        """What else ran since the start.

        Returns:
          {"load_before", "load_after": averages over 1, 5 and 15 minutes, None where the system
          has none; "cores"; "others": processors that others kept busy, in the mean, None where
          that is not known; "beside_other_work": whether that makes figures doubtful}.
        """
        seconds, others, count = time.perf_counter() - self._clock, None, cores()
        now = busy(self._stat)
        if self._busy is not None and now is not None and seconds > 0:
            others = max(now - self._busy - (_own() - self._own), 0.0) / seconds
        return {
            "load_before": self.before,
            "load_after": load(),
            "cores": count,
            "others": others,
            "beside_other_work": _disturbed(others, self.before, count),
        }


def _disturbed(others: float | None, before: Sequence[float] | None, count: int) -> bool:
    if others is not None:
        return others > OTHERS * count
    return before is None or before[0] > LOAD


def machine() -> dict[str, Any]:
    """Date, processor, memory, and the versions of what figures depend on; starts no device."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "system": f"{platform.system()} {platform.release()}",
        "processor": processor(),
        "cores": cores(),
        "memory_gb": round(memory.of_host() / 1e9, 1),
        "versions": {"python": platform.python_version(), **versions()},
    }


def cores() -> int:
    """Processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load() -> list[float] | None:
    """Averages over 1, 5 and 15 minutes."""
    try:
        return [round(x, 2) for x in os.getloadavg()]
    except (AttributeError, OSError):
        return None


def processor(info: Path = _CPU) -> str:
    """The name of the processor.

    Args:
      info: the file in which Linux describes it.
    """
    try:
        lines = info.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    named = dict(part.split(":", 1) for part in reversed(lines) if ":" in part)
    names = {key.strip(): value.strip() for key, value in named.items()}
    return names.get("model name") or platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Of PACKAGES, those that are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def busy(stat: Path = _STAT) -> float | None:
    """Seconds that the processors of this process have worked, for whomever; None if unknown."""
    try:
        lines = stat.read_text().splitlines()
    except OSError:
        return None
    mine = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    total = 0
    for line in lines:
        name, *ticks = line.split()
        if name.removeprefix("cpu").isdigit() and int(name.removeprefix("cpu")) in mine:
            total += sum(int(ticks[i]) for i in _BUSY if i < len(ticks))
    return total / os.sysconf("SC_CLK_TCK") if total else None


def say(about: dict[str, Any]) -> None:
    """Prints `machine()` to stderr."""
    named = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    print(
        f"{about['date']}; {about['cores']} cores, {about['processor']}, "
        f"{about['memory_gb']} GB; {about['system']}; {named}",
        file=sys.stderr,
    )


def sentence(around: dict[str, Any]) -> str:
    """What `Watch.end` has found, in words."""
    before, after = (_first(around[name]) for name in ("load_before", "load_after"))
    others = around["others"]
    used = "what others used is not known"
    if others is not None:
        used = f"others kept {others:.2f} of {around['cores']} cores busy"
    said = f"load {before} before and {after} after; {used}"
    return f"{said}: {MARK}" if around["beside_other_work"] else said


def _first(averages: Sequence[float] | None) -> str:
    return "unknown" if averages is None else f"{averages[0]:.2f}"


def _own() -> float:
    """Seconds of this process and of those that it has started, whether they have ended or not."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used) + _of_living()


def _of_living() -> float:
    """Seconds of the processes below this one, which it has not waited for yet, as Linux has it."""
    ticks: dict[int, int] = {}
    below: dict[int, list[int]] = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = file.read_text().rpartition(")")[2].split()  # a name may have spaces
            parent, own = int(fields[1]), sum(map(int, fields[11:15]))
        except (OSError, ValueError, LookupError):  # it has just ended
            continue
        ticks[int(file.parent.name)] = own
        below.setdefault(parent, []).append(int(file.parent.name))
    total, left = 0, list(below.get(os.getpid(), ()))
    while left:
        one = left.pop()
        total += ticks[one]
        left += below.get(one, ())
    return total / os.sysconf("SC_CLK_TCK")
