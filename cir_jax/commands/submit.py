# SPDX-License-Identifier: Apache-2.0
"""Writes the answers to a test split in the files that its test server scores, after checking them.

Examples:
  cir-jax submit --workdir runs/clip_sum-cirr-stage2 --out submission
  cir-jax submit --init-from best.pt --config clip_sum:cirr --set data.root=DATA --out submission
  cir-jax submit --workdir RUN --set eval.benchmark=circo --set eval.root=DATA --out submission
"""

import argparse
from pathlib import Path

from cir_jax import config
from cir_jax.commands.evaluate import add_run_arguments, retriever
from cir_jax.errors import UserError

HELP = "write the files that a benchmark's test server scores, of a trained run or weights"
WATCHED = True  # by `cir_jax.runtime.supervision`


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    add_run_arguments(parser)
    parser.add_argument("--out", required=True, help="folder for the files")
    parser.add_argument(
        "--root", default="", help="the data set; the run's eval.root or data.root if empty"
    )
    parser.add_argument(
        "--split", default="", help="split to answer; the test split of the benchmark if empty"
    )
    parser.add_argument(
        "--name", default="", help="part of the file names; that of the run or weights if empty"
    )


def run(args: argparse.Namespace) -> int:
    """Restores the run, answers every query, writes the files."""
    from cir_jax.runtime import distributed

    distributed.initialize()  # before jax starts a backend
    from cir_jax.evals import benchmark

    loaded, found, what = retriever(args)
    name, root = loaded.eval.benchmark, args.root or benchmark.root(loaded)
    test_split = benchmark.submitted_split(name)
    if not test_split:
        why = benchmark.without_server(name)
        raise UserError(
            f"{what} has eval.benchmark={name}, which has no test server; there is one for: "
            f"{', '.join(benchmark.submittable())}. Name it and the folder of its data set, "
            "--set eval.benchmark=NAME --root FOLDER"
            + (f". Of {name}, {why}; --save rankings writes its answers" if why else "")
        )
    if not root:
        raise UserError(
            f"{what} has no data.root; give the folder of the {name} data set, --root FOLDER"
        )
    # A submission answers every query, so nothing may be left out.
    split = args.split or test_split
    changes = (f"eval.split={split}", f"eval.root={root}", "eval.on_missing=error")
    made = benchmark.build(config.override(loaded, changes))
    if not isinstance(made, benchmark.Submittable):
        raise UserError(
            f"{name} defines TEST_SPLIT, but its benchmark has no submit(retriever, folder, name); "
            "add it, see cir_jax/evals/benchmark.py"
        )
    made_by = Path(args.workdir).resolve().name if args.workdir else Path(what).stem
    made.submit(found, args.out, args.name or made_by)
    return 0
