# SPDX-License-Identifier: Apache-2.0
"""Programs that read a table of rows, as the TPU's compiler makes them: no TPU is needed.

Of each: the table's part on one device, all arguments, what the program holds beside them, what it
copies of the table, and what its collectives move. Nothing is timed. The compiler is downloaded
once (170 MB); a case takes up to half a minute.
"""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tools import slices
from tools.benchmarks import timing
from tools.planning.tables import PROGRAMS, Case

HELP = "what the TPU's compiler copies of a bank, of references and of a gallery"
_ROOT = Path(__file__).parents[2]
_FLOAT, _SMALL = "float32", "bfloat16"
# Banks of real shapes: CLIP RN50x4, SPRC and a million images; references of BLIP, SPRC and CLIP.
CASES = (
    *(Case("bank loss", 1_000_000, 1, 640, kind) for kind in (_FLOAT, _SMALL)),
    Case("bank loss", 10_000_000, 1, 256, _SMALL, 128),
    *(Case("bank loss", 25_136, 32, 256, kind, 128) for kind in (_FLOAT, _SMALL)),
    *(Case("bank loss", 250_000, 32, 256, kind, 128) for kind in (_FLOAT, _SMALL)),
    *(Case("sampled loss", 1_000_000, 1, 640, kind) for kind in (_FLOAT, _SMALL)),
    *(Case("sampled loss", 250_000, 32, 256, kind, 128) for kind in (_FLOAT, _SMALL)),
    Case("lookup", 12_800, 577, 768, batch=128),
    Case("lookup", 72_000, 32, 768, batch=64),
    Case("lookup", 1_000_000, 1, 640),
    *(Case(name, 1_000_000, 1, 512, batch=33) for name in ("ranks", "top")),
    *(Case(name, 123_408, 32, 256, batch=8) for name in ("ranks", "top")),
    *(Case("search", 2**20, 1, 512, kind, 64) for kind in (_FLOAT, "float16", "int8")),
    *(Case("search", 2**15, 32, 256, kind, 64) for kind in (_FLOAT, "float16", "int8")),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which of the cases, or one of your own."""
    parser.add_argument("--on", default="v5e:2x4", help="a TPU slice, by its chips")
    parser.add_argument("--only", choices=tuple(PROGRAMS), action="append", help="of the programs")
    parser.add_argument(
        "--cases", default="", metavar="JSON",
        help="instead: a list of objects with program, entries, per_row, width, dtype and batch",
    )  # fmt: skip


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Compiles every case, in a process that has the compiler."""
    cases = [Case(**one) for one in json.loads(args.cases)] if args.cases else CASES
    cases = [case for case in cases if not args.only or case.program in args.only]
    done = subprocess.run(
        [sys.executable, "-m", "tools.planning.tables", args.on,
         json.dumps([asdict(case) for case in cases])],
        env=os.environ | slices.environment() | {"PYTHONPATH": str(_ROOT)},
        cwd=_ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"bench.py tables: compiling for {args.on} failed; it says why above")
    found = json.loads(done.stdout.splitlines()[-1])
    names = ("program", "entries", "per_row", "width", "dtype", "batch")
    sizes = ("table", "arguments", "temporaries")
    timing.table(
        (*names, *(f"{name} MB" for name in sizes), "copies MB", "collectives MB"),
        [
            [one[name] for name in names]
            + [one[name] / 1e6 for name in sizes]
            + [_listed(one["copies"]), _listed(one["collectives"])]
            for one in found
        ],
    )
    return {"on": args.on, "cases": found}


def _listed(sizes: dict[str, float]) -> str:
    return ", ".join(f"{kind} {size / 1e6:.1f}" for kind, size in sizes.items()) or "none"
