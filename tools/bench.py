# SPDX-License-Identifier: Apache-2.0
"""Measures what this project claims to do fast: `python tools/bench.py NAME [options]`.

Every benchmark compares two ways to do one thing, alternating within one run, and reports the
median of the ratios: on a shared machine a time says little, a ratio of neighbours a lot. A
benchmark is one module of `tools/benchmarks` with `HELP`, `add_arguments(parser)` and
`run(args) -> dict`; the file name is the subcommand. A table goes to stderr; the last line, on
stdout, is the result as JSON.
"""

import argparse
import importlib
import json
import sys
from pathlib import Path

import jax

FOLDER = Path(__file__).parent / "benchmarks"
sys.path.insert(0, str(FOLDER.parents[1]))  # a script finds its own folder only


def main(argv: list[str] | None = None) -> dict:
    """Parses the command line and runs one benchmark; returns what it printed."""
    names = sorted(p.stem for p in FOLDER.glob("*.py") if p.stem not in ("__init__", "timing"))
    modules = {name: importlib.import_module(f"tools.benchmarks.{name}") for name in names}
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    choice = parser.add_subparsers(dest="benchmark", required=True)
    for name, module in modules.items():
        one = choice.add_parser(name, help=module.HELP, description=module.__doc__)
        one.add_argument("--devices", type=int, default=1, help="devices to use (virtual on a CPU)")
        one.add_argument("--repeats", type=int, default=7, help="measured rounds")
        module.add_arguments(one)
    args = parser.parse_args(argv)
    # Before the first use of a device: it is then too late.
    jax.config.update("jax_num_cpu_devices", args.devices)
    available = jax.device_count()
    if available < args.devices:
        parser.error(f"--devices {args.devices}, but there are {available}; use 1 to {available}")
    result = {
        "benchmark": args.benchmark,
        "platform": jax.default_backend(),
        "devices": args.devices,
        **modules[args.benchmark].run(args),
    }
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()
