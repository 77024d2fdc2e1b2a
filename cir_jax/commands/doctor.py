# SPDX-License-Identifier: Apache-2.0
"""Checks a data set before you train on it: layout, counts, and every image file.

Examples:
  cir-jax doctor fashioniq DATA/fashionIQ_dataset
  cir-jax doctor my_reader.py DATA/mine
Exit status 1 if something was found that changes results.
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from cir_jax import files, plugins, progress
from cir_jax.errors import UserError

if TYPE_CHECKING:
    from cir_jax.datasets.doctor import Report

HELP = "check a data set: layout, counts, missing and broken images"
_SHOWN = 10  # names of a finding that are printed; --json holds all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    names = ", ".join(plugins.available("cir_jax.datasets.readers"))
    parser.add_argument(
        "dataset", help=f"its reader, as data.name takes it: {names}, or a .py file of yours"
    )
    parser.add_argument("root", help="folder of the data set, as data.root takes it")
    parser.add_argument(
        "--categories", default="", help="its categories or tasks to look at, a,b; default: all"
    )
    parser.add_argument("--no-decode", action="store_true", help="do not open the images")
    parser.add_argument("--json", default="", metavar="FILE", help="write all findings to FILE")
    parser.add_argument("--threads", type=int, default=16, help="images opened at a time")


def run(args: argparse.Namespace) -> int:
    """Prints what was found; 1 if results would change."""
    from cir_jax.datasets import doctor

    if args.threads < 1:
        raise UserError(f"--threads {args.threads} is below 1; the default is 16")
    if args.json and not Path(args.json).resolve().parent.is_dir():
        raise UserError(f"--json {args.json}: its folder does not exist; make it first")
    categories = tuple(filter(None, args.categories.split(",")))
    report = doctor.examine(
        args.dataset, args.root, categories, decode=not args.no_decode, threads=args.threads
    )
    _print(report)
    if args.json:
        files.put(args.json, json.dumps(report, indent=2).encode())
    return 1 if report["problems"] else 0


def _print(report: "Report") -> None:
    say = progress.show
    say(f"{report['dataset']} in {report['root']}")
    for row in report["counts"]:
        official = f"{row['official']:>10,}" if row["official"] else " " * 10
        mark = "" if row["official"] in (None, row["found"]) else "  <- differs"
        say(f"  {row['what']:<44}{row['found']:>10,}{official}{mark}")
    say("  (found, and the official number where there is one)")
    for note in report["notes"]:
        say(f"note: {note}")
    for kind, names in report["images"].items():
        if names:
            more = f", and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
            first = ", ".join(progress.shown(n, one_line=True) for n in names[:_SHOWN])
            say(f"{kind}: {len(names):,}: {first}{more}")
    for problem in report["problems"]:
        say(f"problem: {problem}")
    say("nothing wrong" if not report["problems"] else f"{len(report['problems'])} problem(s)")
