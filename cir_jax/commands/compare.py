# SPDX-License-Identifier: Apache-2.0
"""Says whether two evaluations of the same queries differ by more than chance: a paired bootstrap.

Both were made by `cir-jax evaluate --save rankings`, on the same queries and gallery.

Examples:
  cir-jax compare runs/clip_sum-stage1 runs/clip_sum-stage2
  cir-jax compare runs/a/evaluation runs/b/evaluation --json difference.json
"""

import argparse

from cir_jax import files

HELP = "compare two evaluations: is the difference real"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.add_argument("first", help="folder of an evaluation, or of the run it is of")
    parser.add_argument("second", help="the same, of the other model")
    parser.add_argument(
        "--draws", type=int, default=10_000, help="times the queries are drawn (default 10000)"
    )
    parser.add_argument(
        "--confidence", type=float, default=0.95, help="of the interval (default 0.95)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default 0)")
    parser.add_argument("--json", default="", metavar="FILE", help="also write the table to FILE")


def run(args: argparse.Namespace) -> int:
    """Prints each metric of both, their difference, its interval and its p value."""
    from cir_jax import progress
    from cir_jax.evals import comparison
    from cir_jax.evals.reports.sections import Table, text_table

    options = {"draws": args.draws, "confidence": args.confidence, "seed": args.seed}
    first, second = comparison.read(args.first), comparison.read(args.second)
    rows = comparison.compare(first, second, **options)
    share = f"{100 * args.confidence:g}%"
    cells: list[list[str | int | float]] = [
        [
            row.metric,
            *(row.first, row.second, f"{row.difference:+.2f}"),
            *(f"{row.low:+.2f} to {row.high:+.2f}", f"{row.p:.4f}", row.better, row.worse),
        ]
        for row in rows
    ]
    columns = ["", "first", "second", "difference", f"{share} interval", "p", "better", "worse"]
    progress.say(f"first:  {first.where}\nsecond: {second.where}\n")
    progress.say(text_table(Table("", columns, cells, "")))
    progress.say(
        f"\n{len(first.queries):,} queries, drawn {args.draws:,} times in pairs; "
        "better, worse: queries that\nthe second model answers better or worse. A difference whose "
        "interval leaves out 0 is more than the\nchoice of queries explains. Other seeds of the "
        "training are not part of it."
    )
    if args.json:
        files.put(args.json, comparison.to_json(first, second, rows, options))
        progress.say(f"written: {args.json}")
    return 0
