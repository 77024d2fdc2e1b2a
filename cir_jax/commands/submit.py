# SPDX-License-Identifier: Apache-2.0
"""Writes the two files that the CIRR test server scores, after checking them as it would.

Examples:
  cir-jax submit --workdir runs/clip_sum-cirr-stage2 --out submission
  cir-jax submit --init-from best.pt --config clip_sum:cirr --set data.root=DATA --out submission
"""

import argparse
from pathlib import Path

from cir_jax.commands.evaluate import add_run_arguments, retriever
from cir_jax.errors import UserError

HELP = "write the CIRR test submission of a trained run"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    add_run_arguments(parser)
    parser.add_argument("--out", required=True, help="folder for the two files")
    parser.add_argument(
        "--root", default="", help="the CIRR data set; the run's data.root if empty"
    )
    parser.add_argument("--split", default="test1", help="split to answer; test1 (default) or val")
    parser.add_argument(
        "--name", default="", help="part of the file names; that of the run or weights if empty"
    )


def run(args: argparse.Namespace) -> int:
    """Restores the run, answers every query, writes."""
    from cir_jax.runtime import distributed

    distributed.initialize()  # before jax starts a backend
    import jax

    from cir_jax.evals import cirr, submission
    from cir_jax.runtime import progress

    loaded, found, what = retriever(args)
    root = args.root or loaded.data.root
    if not root:
        raise UserError(
            f"{what} has no data.root; give the folder of the CIRR data set, --root FOLDER"
        )
    # A submission answers every query, so nothing may be left out.
    predictions = cirr.Benchmark(root, args.split, on_missing="error").predict(found)
    shortest = min(map(len, predictions.recall.values()))
    if shortest < submission.COUNTS["recall"]:
        progress.say(
            f"warning: the gallery has {len(predictions.gallery)} images, so a query has "
            f"{shortest} names; the CIRR server wants {submission.COUNTS['recall']}"
        )
    if jax.process_index() == 0:
        made_by = Path(args.workdir).resolve().name if args.workdir else Path(what).stem
        name = args.name or made_by
        for path in submission.write(args.out, name, predictions):
            progress.say(f"{path}: {len(predictions.recall):,} queries")
    return 0
