# SPDX-License-Identifier: Apache-2.0
"""Checks a data set before you train on it: layout, counts, and every image file.

Examples:
  cir-jax doctor fashioniq DATA/fashionIQ_dataset
  cir-jax doctor my_reader.py DATA/mine
Exit status 1 if something was found that stops a run or changes its results. Fewer triplets or
images than the official data set has are told, too: that alone is a part of it, and no fault.
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
_SHOWN = 10  # names of a finding that are printed; --json and --out hold all


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
    parser.add_argument(
        "--look-again", action="store_true",
        help="open also images that a run or this command has looked at and that have not changed",
    )  # fmt: skip
    parser.add_argument("--json", default="", metavar="FILE", help="write all findings to FILE")
    parser.add_argument(
        "--out", default="", metavar="FILE", help="write one JSON line per finding to FILE"
    )
    parser.add_argument(
        "--tokenizer", default="clip", help="of the model: clip, bert_enc (BLIP) or bert_lavis"
    )
    parser.add_argument(
        "--context", type=int, default=0, help="text positions of the model; default: its own"
    )
    parser.add_argument(
        "--allow-outside", action="store_true",
        help="names that lead out of its folder are no fault, as with data.allow_outside=True",
    )  # fmt: skip
    parser.add_argument(
        "--loading", default="auto", choices=("auto", "released", "natural"),
        help="how the run will open images, as data.loading takes it; default: released for a "
        "published data set, natural for others",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, default=16, help="images opened at a time")


def run(args: argparse.Namespace) -> int:
    """Prints what was found; 1 if a run would be stopped, or its results would be others."""
    from cir_jax.datasets import doctor

    if args.threads < 1:
        raise UserError(f"--threads {args.threads} is below 1; the default is 16")
    if args.context < 0:
        raise UserError(f"--context {args.context} is below 0; 0 is that of the tokenizer")
    for flag, file in (("--json", args.json), ("--out", args.out)):
        if file and not Path(file).resolve().parent.is_dir():
            raise UserError(f"{flag} {file}: its folder does not exist; make it first")
    categories = tuple(filter(None, args.categories.split(",")))
    report = doctor.examine(
        args.dataset,
        args.root,
        categories,
        decode=not args.no_decode,
        threads=args.threads,
        tokenizer=args.tokenizer,
        context=args.context,
        allow_outside=args.allow_outside,
        loading=args.loading,
        again=args.look_again,
    )
    _print(report)
    if args.json:
        files.put(args.json, json.dumps(report, indent=2).encode())
    if args.out:
        lines = [json.dumps(line) + "\n" for line in doctor.lines(report)]
        files.put(args.out, "".join(lines).encode())
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
    for size in report["size"]:
        say(f"size: {size}")
    for problem in report["problems"]:
        say(f"problem: {problem}")
    part = "; it is a part of the official data set" if report["size"] else ""
    wrong = f"{len(report['problems'])} problem(s)" if report["problems"] else "nothing wrong"
    say(wrong + part)
