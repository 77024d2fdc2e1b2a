# SPDX-License-Identifier: Apache-2.0
"""What a run needs, on machines that you do not have yet: `python tools/plan.py`.

Examples:
  python tools/plan.py --config sprc:fashioniq,stage=1 --on v5e:4x4
  python tools/plan.py --config clip_sum:cirr,stage=2 --on 8xH100 --price 2.5
  python tools/plan.py --recipes

Of a TPU slice the step is compiled by the TPU's own compiler, which needs no TPU (its first use
downloads it, 170 MB). Of GPUs it is counted by shapes. No data set and no weights are read.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # a script finds its own folder only

import jax

from cir_jax import config as configs
from cir_jax.errors import UserError
from tools import slices
from tools.planning import analysis, chips, machines, measured, page, recipes, remedies
from tools.planning.analysis import Options
from tools.planning.floors import DECODE, DISK, Speeds


def main(argv: list[str] | None = None) -> int:
    """Parses the command line and prints a plan.

    Returns:
      0; 1 if the run does not fit; 2 for an input that cannot be used.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(argv)
    try:
        if args.recipes:
            return _recipes(args)
        if not args.config or len(args.on) != 1:
            raise UserError("give --config and one --on, or --recipes")
        return _one(args, argv)
    except UserError as error:
        print(f"plan.py: {error}", file=sys.stderr)
        return 2


def _one(args: argparse.Namespace, argv: list[str]) -> int:
    [on] = args.on
    chips.find(machines.chip_name(on))  # before a compiler is looked for
    if slices.is_tpu(on) and "TPU_LIBRARY_PATH" not in os.environ:
        # The compiler is found by a process that is started with its place.
        command = [sys.executable, __file__, *argv]
        return subprocess.run(command, env=os.environ | slices.environment()).returncode
    taken = measured.parse(args.measured)
    options = Options(
        changes=tuple(args.overrides),
        chip={k: v for k, v in (("cores", args.cores), ("network", args.network * 1e9)) if v},
        speeds=Speeds(args.decode_ms / 1e3, args.disk * 1e9),
        process_per_gpu=args.process_per_gpu,
        compiles=not args.by_shapes,
        **{k: getattr(args, k) for k in ("triplets", "images", "queries", "gallery", "text")},
    )
    plan = analysis.make(args.config, on, options)
    found = remedies.find(plan, options) if plan.memory.step_fits != "yes" else []
    if args.json:
        print(json.dumps(page.values(plan, found, args.price)))
    else:
        rows = measured.of(plan, measured.read(args.table))
        print(page.text(plan, found, args.price, rows))
    if taken:
        for row in measured.add(plan, taken, f"jax {jax.__version__}", args.table):
            said = f"{args.table}: {row.what} {row.measured:g}, predicted {row.predicted:g}"
            print(said, file=sys.stderr)
    return int(plan.memory.fits == "no")


def _recipes(args: argparse.Namespace) -> int:
    """Each plan in a process of its own: what a compiler holds goes with it."""

    def one(config: str, on: str, changes: Sequence[str]) -> dict[str, Any]:
        sets = [x for change in changes for x in ("--set", change)]
        shapes = ["--by-shapes"] if args.by_shapes else []
        command = [sys.executable, __file__, "--config", config, "--on", on, "--json"]
        done = subprocess.run(
            [*command, *shapes, *sets],
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            text=True,
        )
        if done.returncode > 1:
            raise UserError(f"the plan of {config} on {on} failed; it says why above")
        return json.loads(done.stdout)

    for on in args.on or recipes.MACHINES:
        print(f"`{on}`:\n\n{recipes.table(on, one, args.only)}\n", flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", metavar="NAME[:ARGUMENT]", help="a config that trains")
    configs.add_override_argument(parser)
    parser.add_argument(
        "--on",
        action="append",
        default=[],
        metavar="DEVICES",
        help="a TPU slice by its chips, v5e:4x4, or GPUs, 8xH100, and of several nodes 2x8xH100; "
        f"chips: {', '.join(chips.CHIPS)}",
    )
    parser.add_argument(
        "--recipes",
        action="store_true",
        help="instead of one plan the table of every published recipe; --on may be given twice",
    )
    parser.add_argument("--only", default="", metavar="NAME", help="of --recipes: one model")
    parser.add_argument("--by-shapes", action="store_true", help="compile nothing: an estimate")
    parser.add_argument("--json", action="store_true", help="numbers instead of a page")
    parser.add_argument("--price", type=float, default=0.0, help="of a chip and hour")
    data = parser.add_argument_group("the data, where it is no published set")
    data.add_argument("--triplets", type=_count, default=0)
    data.add_argument("--images", type=_count, default=0, help="different ones of the triplets")
    data.add_argument("--queries", type=_count, default=0, help="of an evaluation")
    data.add_argument("--gallery", type=_count, default=0, help="images of an evaluation")
    data.add_argument("--text", type=_count, default=0, help="tokens of the longest in a batch")
    host = parser.add_argument_group("the host, where you know better")
    host.add_argument(
        "--process-per-gpu", action="store_true", help="as launch/local_gpu.sh --process-per-gpu"
    )
    host.add_argument("--cores", type=float, default=0.0, help="of a host, for each device")
    host.add_argument("--network", type=float, default=0.0, help="GB/s that a host sends")
    host.add_argument(
        "--decode-ms", type=_above, default=DECODE * 1e3, help="of one core, an image"
    )
    host.add_argument("--disk", type=_above, default=DISK / 1e9, help="GB/s that a host reads")
    table = parser.add_argument_group("predicted against measured")
    table.add_argument(
        "--measured",
        action="append",
        default=[],
        metavar="WHAT=NUMBER",
        help=f"adds what a real run took to the table: {', '.join(measured.KINDS)}",
    )
    table.add_argument("--table", type=Path, default=measured.TABLE, help="a CSV file")
    return parser


def _count(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return number


def _above(text: str) -> float:
    if not 0 < (number := float(text)) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


if __name__ == "__main__":
    sys.exit(main())
