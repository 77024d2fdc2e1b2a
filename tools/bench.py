# SPDX-License-Identifier: Apache-2.0
"""Measures what this project claims to do fast: `python tools/bench.py NAME [options]`.

Every benchmark compares two ways to do one thing, alternating within one run, and reports the
median of the ratios: on a shared machine a time says little, a ratio of neighbours a lot. A
benchmark is one module of `tools/benchmarks` with `HELP`, `add_arguments(parser)` and
`run(args) -> dict`; the file name is the subcommand. It may have `prepare(args)`, which is called
before the first use of a device, and `DEVICES = False`, if it uses none itself. `all` runs the
others in turn, `accelerator` is for a GPU or TPU.

A table goes to stderr, with the machine and its load before and after; the last line, on stdout, is
the result as JSON, with the same. A figure that was taken beside other work is marked. The status
is 1 if the result has a list `failed` that is not empty.
"""

import argparse
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import jax

FOLDER = Path(__file__).parent / "benchmarks"
HELPERS = ("__init__", "surroundings", "timing")
sys.path.insert(0, str(FOLDER.parents[1]))  # a script finds its own folder only


def main(argv: list[str] | None = None) -> dict:
    """Parses the command line and runs one benchmark; returns what it printed."""
    from tools.benchmarks import surroundings

    argv = sys.argv[1:] if argv is None else argv
    modules = load(argv[0] if argv else "")
    parser = parser_of(modules)
    args = parser.parse_args(argv)
    module = modules[args.benchmark]
    about, watch = surroundings.machine(), surroundings.Watch()
    surroundings.say(about)
    platform = _devices(parser, module, args)
    found = module.run(args)
    around = watch.end()
    print(surroundings.sentence(around), file=sys.stderr)
    result = {
        "benchmark": args.benchmark,
        "platform": platform,
        "devices": args.devices,
        **found,
        "machine": about,
        "surroundings": around,
    }
    print(json.dumps(result))
    return result


def load(wanted: str = "") -> dict[str, ModuleType]:
    """The benchmarks by their names; only the one that is wanted, if there is one of that name."""
    names = sorted(p.stem for p in FOLDER.glob("*.py") if p.stem not in HELPERS)
    names = [wanted] if wanted in names else names  # some import for seconds
    return {name: importlib.import_module(f"tools.benchmarks.{name}") for name in names}


def parser_of(modules: dict[str, ModuleType]) -> argparse.ArgumentParser:
    """The command line, a subcommand for each benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    choice = parser.add_subparsers(dest="benchmark", required=True)
    for name, module in modules.items():
        one = choice.add_parser(name, help=module.HELP, description=module.__doc__)
        one.add_argument("--devices", type=int, default=1, help="devices to use (virtual on a CPU)")
        one.add_argument("--repeats", type=int, default=7, help="measured rounds")
        module.add_arguments(one)
    return parser


def _devices(parser: argparse.ArgumentParser, module: ModuleType, args: argparse.Namespace) -> str:
    """The platform of the devices, which are looked at here for the first time; "" if unused."""
    if not getattr(module, "DEVICES", True):
        return ""
    # Before the first use of a device: it is then too late.
    jax.config.update("jax_num_cpu_devices", args.devices)
    if hasattr(module, "prepare"):
        module.prepare(args)
    available = jax.device_count()
    if available < args.devices:
        parser.error(f"--devices {args.devices}, but there are {available}; use 1 to {available}")
    return jax.default_backend()


if __name__ == "__main__":
    sys.exit(1 if main().get("failed") else 0)
