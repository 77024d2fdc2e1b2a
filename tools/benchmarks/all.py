# SPDX-License-Identifier: Apache-2.0
"""Every benchmark in turn, each in a process of its own, on the CPU: one table and one JSON.

The sizes are for two quiet cores, where all of them take about an hour. A benchmark that fails is
named, the others run, and the status is 1. `accelerator` is left to a machine that has one.
"""

import argparse
import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.benchmarks import timing

HELP = "every benchmark on the CPU, one after the other"
DEVICES = False
BENCH = Path(__file__).parents[1] / "bench.py"
_SMALL_TABLE = {
    "program": "bank loss", "entries": 4096, "per_row": 1, "width": 128, "dtype": "float32",
    "batch": 8,
}  # fmt: skip
Figures = Callable[[dict[str, Any]], dict[str, float]]


@dataclass(frozen=True)
class Run:
    """A benchmark and its options.

    Attributes:
      name: in the table.
      options: of bench.py, the name of the benchmark first.
      quick: sizes of `--quick`, in their place.
      figures: result -> what the table shows of it.
    """

    name: str
    options: tuple[str, ...]
    quick: tuple[str, ...]
    figures: Figures


def _bank(result: dict[str, Any]) -> dict[str, float]:
    return {
        "time of blockwise / plain, worst": result["worst_time_ratio"],
        "growth of blockwise memory": result["blockwise_memory_growth"],
    }


def _tables(result: dict[str, Any]) -> dict[str, float]:
    return {"most bytes beside a table, MB": max(c["temporaries"] for c in result["cases"]) / 1e6}


def _stage2(result: dict[str, Any]) -> dict[str, float]:
    return {
        "time of released / ours": result["times_faster"],
        "the same, all padded": result["times_faster_padded"],
        "tokens in packed batches": result["real_tokens"],
    }


def _positives(result: dict[str, Any]) -> dict[str, float]:
    return {
        "share of decoding": result["dedupe"]["share_in_decoder"],
        "time of pairing / products": result["pair"]["time_ratio"],
    }


def _convert(result: dict[str, Any]) -> dict[str, float]:
    return {
        "memory of an import / parameters": result["worst_import_ratio"],
        "memory of an export, MiB": result["worst_export_mib"],
    }


def _loop(result: dict[str, Any]) -> dict[str, float]:
    return {
        "time of a step / update alone": result["loop_ratio"],
        "CPU of a warm / cold start": result["start_ratio"],
        "CPU of importing / libraries": result["import_ratio"],
    }


def _index(result: dict[str, Any]) -> dict[str, float]:
    return {
        "CPU of decoding / indexing": result["processor_ratio"],
        "s to compare unchanged files": result["again_s"],
    }


def _search(result: dict[str, Any]) -> dict[str, float]:
    exact = [one["time_ratio"] for one in result["results"] if one["engine"] == "float32"]
    return {"time of exact search / product, worst": max(exact)}


def _pixels(result: dict[str, Any]) -> dict[str, float]:
    return {
        "time of epoch two / one": result["second_epoch_of_first"],
        "time of a row / decoding": result["row_of_decoding"],
    }


def _triplets(result: dict[str, Any]) -> dict[str, float]:
    later = result["starts"]["later"]
    return {
        "CPU us a triplet": later["us_a_triplet"],
        "bytes a triplet": later["bytes_a_triplet"],
        "CPU in memory / in columns": result["cpu_ratio"],
    }


_TINY_BANK = ("--rows=63", "--width=8", "--batch=4", "--block=16", "--repeats=1")
RUNS = (
    Run("bank", ("bank",), ("bank", *_TINY_BANK), _bank),
    Run("bank, two devices", ("bank", "--devices=2"), ("bank", "--devices=2", *_TINY_BANK), _bank),
    Run("tables", ("tables",), ("tables", f"--cases={json.dumps([_SMALL_TABLE])}"), _tables),
    Run(
        "stage2", ("stage2",),
        ("stage2", "--tower=tiny-vit", "--batch=4", "--rows=64", "--repeats=1"), _stage2,
    ),
    Run(
        "stage2, sprc", ("stage2", "--model=sprc", "--repeats=5"),
        ("stage2", "--model=sprc", "--tower=eva-32-16-w32-l1-h2_qformer-w32-l2-h2-q32_d16",
         "--batch=4", "--rows=64", "--repeats=1"), _stage2,
    ),
    Run(
        "positives", ("positives", "--repeats=3"),
        ("positives", "--images=40", "--side=32", "--features=300", "--width=8", "--window", "100",
         "200", "--rows=64", "--block=16", "--repeats=1"), _positives,
    ),
    Run(
        "convert", ("convert", "--repeats=3"),
        ("convert", "--tower=vit-32-16-w64-l2-h1_text-w64-l2-h1_d32", "--formats", "spn:float32",
         "--repeats=1"), _convert,
    ),
    Run(
        "evaluate", ("evaluate",),
        ("evaluate", "--queries=20", "--candidates=33", "--width=8", "--repeats=1"),
        lambda result: {"time of ranking / product": result["time_ratio"]},
    ),
    Run(
        "loop", ("loop",),
        ("loop", "--tower=vit-32-16-w32-l1-h1_text-w32-l1-h1_d16", "--steps=2", "--batch=8",
         "--starts=1", "--repeats=1"), _loop,
    ),
    Run(
        "index", ("index", "--repeats=3"),
        ("index", "--images=3", "--side=40", "--threads=2", "--files=1200", "--repeats=1"), _index,
    ),
    Run(
        "search", ("search",),
        ("search", "--sizes", "300x1x16", "--batches", "1", "3", "--repeats=1"), _search,
    ),
    Run(
        "pixels", ("pixels",),
        ("pixels", "--images=6", "--size=16", "--threads=2", "--repeats=1"), _pixels,
    ),
    Run(
        "triplets", ("triplets", "--in-memory=50000", "--repeats=3"),
        ("triplets", "--triplets=70", "--in-memory=40", "--images=12", "--batch=8", "--repeats=1"),
        _triplets,
    ),
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which, how large, and how long."""
    names = [run.name for run in RUNS]
    parser.add_argument("--quick", action="store_true", help="at tiny sizes: does it all run?")
    parser.add_argument(
        "--only", nargs="+", choices=names, metavar="RUN", help=f"of {', '.join(names)}"
    )
    parser.add_argument(
        "--most", type=float, default=30.0, help="minutes, after which one is ended (30)"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Runs them; what one prints to stderr is seen as it comes."""
    found = [_measured(one, args) for one in RUNS if not args.only or one.name in args.only]
    rows = [
        (one["run"], _state(one), name, value)
        for one in found
        for name, value in one.get("figures", {"": ""}).items()
    ]
    timing.table(("benchmark", "taken", "what", "figure"), rows)
    return {
        "quick": args.quick,
        "runs": found,
        "failed": [one["run"] for one in found if "failed" in one],
    }


def _state(one: dict[str, Any]) -> str:
    if "failed" in one:
        return f"FAILED: {one['failed']}"
    disturbed = one["result"]["surroundings"]["beside_other_work"]
    return "beside other work" if disturbed else "on a quiet machine"


def _measured(one: Run, args: argparse.Namespace) -> dict[str, Any]:
    options = one.quick if args.quick else one.options
    command = [sys.executable, str(BENCH), *options]
    noted = {"run": one.name, "command": shlex.join(("python", "tools/bench.py", *options))}
    print(f"\n{noted['command']}", file=sys.stderr, flush=True)
    began = time.perf_counter()
    status, out = _ended(command, 60 * args.most)
    noted["seconds"] = round(time.perf_counter() - began, 1)
    if status is None:
        return {**noted, "failed": f"no end after {args.most:g} minutes (--most)"}
    if status:
        return {**noted, "failed": f"status {status}; it says why above"}
    try:
        result = json.loads(out.splitlines()[-1])
        return {**noted, "figures": one.figures(result), "result": result}
    except (ValueError, LookupError) as error:
        return {**noted, "failed": f"no result that can be read ({error!r})"}


def _ended(command: list[str], seconds: float) -> tuple[int | None, str]:
    """(status, stdout) of a process on the CPU; None where it was ended, with all it started."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            out, _ = process.communicate(timeout=seconds)
            return process.returncode, out
        except subprocess.TimeoutExpired:
            return None, ""
        finally:  # a Ctrl-C does not reach a session of its own
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
