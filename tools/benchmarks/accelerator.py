# SPDX-License-Identifier: Apache-2.0
"""One GPU or TPU, in a single command of at most eight minutes: is it right, and how fast?

First correctness, then the steps of the published models, fed from the device, from the host and by
decoding, beside a loop that waits and beside PyTorch where it has CUDA; then what a config may
choose, and what reads large tables. It makes its own data and needs no network. Every part has a
number of seconds, and more where those before it took less; what does not fit into them, or into
the whole, is left out and named. With --only the rest can be measured by another command, in which
fewer parts have more time each. jax compiles everything, unless JAX_COMPILATION_CACHE_DIR names a
folder with the programs of an earlier command: then more fits. --dry-run walks all parts at tiny
sizes, also on a CPU, without a limit for each: its times say nothing.

A part that raises is named in `failed`, and so is a check that does not hold; the status is then 1.
"""

import argparse
import contextlib
import gc
import importlib.util
import json
import math
import os
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from cir_jax import files
from cir_jax.runtime import mesh as meshes
from tools.benchmarks import surroundings
from tools.benchmarks.on_device import (
    bench,
    cases,
    choices,
    correctness,
    large,
    made,
    peers,
    rates,
    report,
)
from tools.benchmarks.on_device.bench import Bench
from tools.benchmarks.on_device.blocks import Clock

HELP = "one GPU or TPU: correctness, rates, choices, beside PyTorch"
MINUTES = 8.0
_BEGIN, _END = 8.0, 4.0  # seconds: of importing, before the clock runs, and to print what there is
_LEAST = 0.5  # share of its seconds that a part needs to be started
# Of a dry run, whose programs run a few times: what costs is compiling them well. The last one
# takes the older, quicker way to kernels; jaxlib stops at it from 0.11 on.
_QUICK = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    + " --xla_cpu_use_fusion_emitters=false" * metadata.version("jaxlib").startswith("0.10.")
)
_SHARE = 0.5  # of the memory of a GPU for jax, where PyTorch runs beside it
_FRACTION = "XLA_PYTHON_CLIENT_MEM_FRACTION"


@dataclass(frozen=True)
class Part:
    """A part and its time.

    Attributes:
      seconds: it may take; a step that is being compiled is waited for.
      run: (where, its clock) -> what it has found.
    """

    seconds: float
    run: Callable[[Bench, Clock], dict[str, Any]]


def _rate(seconds: float, case: cases.Case) -> dict[str, Part]:
    return {case.name: Part(seconds, partial(rates.run, case))}


# In this order: what matters most comes first, should the time run out.
PARTS: dict[str, Part] = {
    "correctness": Part(45, correctness.run),
    **_rate(65, cases.VIT_L1),
    **_rate(61, cases.RN2),
    "choices": Part(45, choices.run),
    **_rate(35, cases.VIT_B1),
    **_rate(30, cases.SPRC2),
    **_rate(30, cases.RN1),
    **_rate(25, cases.BLIP1),
    **_rate(30, cases.SPRC1),
    **_rate(15, cases.BLIP2),
    "bank loss": Part(25, large.bank_loss),
    **_rate(12, cases.VIT_L2),
    **_rate(12, cases.VIT_B2),
    "bank build": Part(10, large.building),
    "evaluation": Part(10, large.evaluation),
    "search": Part(8, large.searching),
    "starting": Part(10, choices.starting),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What, and for how long."""
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes, also on a CPU")
    parser.add_argument(
        "--only", nargs="+", choices=tuple(PARTS), metavar="PART", help=f"of {', '.join(PARTS)}"
    )
    parser.add_argument(
        "--minutes", type=float, default=MINUTES, help=f"after which it ends ({MINUTES:g})"
    )
    parser.add_argument("--peak", type=float, default=0.0, help="TFLOP/s of bfloat16 products")
    parser.add_argument("--out", type=Path, help="a file that gets the JSON after every part")


def prepare(args: argparse.Namespace) -> None:
    """What has to be said before the first use of a device."""
    asked = jax.config.jax_platforms or ""
    if asked and "cpu" not in asked.split(","):  # the CPU is what the device is compared with
        jax.config.update("jax_platforms", f"{asked},cpu")
    if importlib.util.find_spec("torch"):
        os.environ.setdefault(_FRACTION, str(_SHARE))
    if args.dry_run:
        os.environ["XLA_FLAGS"] = f"{_QUICK} {os.environ.get('XLA_FLAGS', '')}".strip()


@dataclass
class _Run:
    """What was found so far.

    Attributes:
      args: of the command line.
      about: of the device.
      parts: name -> what it has found.
      left_out: name -> why.
      failed: parts that raised, and checks that do not hold.
      now: the part that runs.
    """

    args: argparse.Namespace
    about: dict[str, Any]
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    now: str = ""

    def result(self) -> dict[str, Any]:
        """What bench.py prints."""
        parts = dict(self.parts)
        left_out = self.left_out | report.left_out(parts)
        return {**self.about, "parts": parts, "left_out": left_out, "failed": list(self.failed)}

    def keep(self) -> None:
        """Writes it where it was asked for."""
        if self.args.out:
            with files.whole(self.args.out) as file:
                file.write(json.dumps(self.result()).encode())


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Runs the parts, one after the other."""
    device = jax.devices()[0]
    if device.platform == "cpu" and not args.dry_run:
        raise SystemExit(
            "bench.py accelerator: this process has no GPU and no TPU (jax sees "
            f"{device.device_kind!r}). --dry-run walks all parts at tiny sizes; bench.py all "
            "measures what a CPU can"
        )
    chip = bench.chip_of(device.device_kind)
    peak = 1e12 * args.peak or (chip.peak if chip else 0.0)
    about = {
        "device": device.device_kind,
        "dry_run": args.dry_run,
        "minutes": args.minutes,
        "peak_tflop_per_s": peak / 1e12,
        "programs_read_from": jax.config.jax_compilation_cache_dir,
        "seconds_of_parts": {name: part.seconds for name, part in PARTS.items()},
    }
    found, end = _Run(args, about), time.monotonic() + 60 * args.minutes - _BEGIN - _END
    if not peak and not args.dry_run:
        found.left_out["MFU"] = f"the peak of {device.device_kind!r} is not known; give --peak"
    made_in = tempfile.TemporaryDirectory(prefix="bench-accelerator-")
    with made_in as name, _CutOff(found, end, name):
        folder, scale = Path(name), cases.DRY if args.dry_run else cases.REAL
        where = Bench(
            device,
            jax.devices("cpu")[0],
            meshes.make(1, 1, [device]),
            scale,
            made.write(folder / "data", scale.images, scale.triplets),
            folder,
            peak,
            chip.bandwidth if chip else 0.0,
        )
        chosen = [part for part in PARTS if not args.only or part in args.only]
        if args.dry_run and not about["programs_read_from"]:
            choices.keep_programs(folder / "programs")  # several parts are the same, so small
        for number, part in enumerate(chosen):
            seconds = math.inf if args.dry_run else _share(chosen[number:], end - time.monotonic())
            _run_part(part, seconds, where, found, end)
    result = found.result()
    report.show(found.parts, result["left_out"])
    return result


def _share(parts: list[str], left: float) -> float:
    """Seconds for the first of the parts that are still to run: more than its own, if they are left
    over by those before it."""
    return PARTS[parts[0]].seconds * max(left / sum(PARTS[name].seconds for name in parts), 1.0)


def _run_part(name: str, seconds: float, where: Bench, found: _Run, end: float) -> None:
    """Runs a part, for so many seconds, where there is the time that it needs at least."""
    part, left = PARTS[name], end - time.monotonic()
    if left < _LEAST * part.seconds:
        found.left_out[name] = f"{max(left, 0):.0f} s were left, and it has {part.seconds:g}"
        return
    print(f"{name}: up to {min(seconds, left):.0f} s", file=sys.stderr, flush=True)
    found.now, began, watch = name, time.monotonic(), surroundings.Watch()
    try:
        with contextlib.redirect_stdout(sys.stderr):  # the last line of stdout is the result
            one = part.run(where, Clock(min(seconds, left)))
        took = round(time.monotonic() - began, 1)
        found.parts[name] = one | {"seconds": took, "surroundings": watch.end()}
        found.failed += [f"{name}: {check}" for check in one.get("wrong", [])]
    except Exception as error:  # the other parts can still be measured
        traceback.print_exc(file=sys.stderr)
        said = (str(error).strip().splitlines() or [""])[0]
        found.failed.append(f"{name}: {type(error).__name__}: {said[:300]}")
    found.now = ""
    gc.collect()
    peers.free()
    if where.device.platform != "cpu":
        jax.clear_caches()  # programs hold memory of the device
    found.keep()


class _CutOff:
    """Ends the process when the time is over, with what there is by then.

    A step that is being compiled, or a device that does not answer, has no other way to be stopped.
    """

    def __init__(self, found: _Run, end: float, folder: str):
        self._found, self._watch = found, surroundings.Watch()
        self._out = sys.stdout  # a part that runs has sent it elsewhere
        self._folder = folder  # is removed
        self._ends = threading.Lock()  # held for good by whoever prints the result
        self._timer = threading.Timer(max(end + _END / 2 - time.monotonic(), 0.0), self._end)
        self._timer.daemon = True

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *error: object) -> None:
        self._ends.acquire()  # where the time is over now, this waits for the end of the process
        self._timer.cancel()

    def _end(self) -> None:
        if self._ends.acquire(blocking=False):
            try:
                self._print()
            finally:
                self._ends.release()

    def _print(self) -> None:
        found = self._found
        found.left_out[found.now or "the end"] = "cut off: the time of the whole was over"
        result = found.result()
        report.show(found.parts, result["left_out"])
        print(
            json.dumps(
                {
                    "benchmark": "accelerator",
                    "platform": jax.default_backend(),
                    **result,
                    "machine": surroundings.machine(),
                    "surroundings": self._watch.end(),
                }
            ),
            file=self._out,
            flush=True,
        )
        found.keep()
        sys.stderr.flush()
        shutil.rmtree(self._folder, ignore_errors=True)
        os._exit(1 if found.failed else 0)
