# SPDX-License-Identifier: Apache-2.0
"""Scores a trained run on its benchmark, and writes results.json and report.html.

Example: cir-jax evaluate --workdir runs/clip_sum-fashioniq-stage2 --set eval.gallery=val
"""

import argparse
from pathlib import Path

from cir_jax import config
from cir_jax.errors import UserError

HELP = "score a trained run and write a report"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    add_run_arguments(parser)
    parser.add_argument(
        "--out", default="", help="folder of the report; WORKDIR/evaluation if empty"
    )


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags that name a trained run: `--workdir`, `--step` and `--set`."""
    parser.add_argument("--workdir", required=True, help="folder of a trained run")
    parser.add_argument(
        "--step", default="best", help="checkpoint: best (default), last, or a step number"
    )
    config.add_override_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Restores the run, ranks, prints the table."""
    from cir_jax.runtime import distributed

    distributed.initialize()  # before jax starts a backend
    import jax

    from cir_jax import build
    from cir_jax.evals import run_report
    from cir_jax.evals.sections import text_table
    from cir_jax.runtime import progress

    loaded, retriever = build.restore(args.workdir, args.step, args.overrides)
    benchmark = build.benchmark(loaded)
    if benchmark is None:
        raise UserError(
            f"{args.workdir} has eval.benchmark=none; name one, --set eval.benchmark=fashioniq"
        )
    result = benchmark.run(retriever)
    rules = ", ".join(f"{k} {v}" for k, v in result.protocol.items() if isinstance(v, str))
    progress.say(f"{args.workdir}, checkpoint {args.step}: {rules}\n")
    progress.say(text_table(run_report.recall_table(result.scores, result.protocol)))
    progress.say(f"\n{result.selection}: {result.score:.2f}")
    if jax.process_index() == 0:
        title = f"{loaded.model.name} {loaded.model.tower} on {result.protocol['benchmark']}"
        folder = Path(args.out or Path(args.workdir) / "evaluation")
        path = run_report.write_evaluation(
            folder, title, loaded, result, f"{args.workdir}, checkpoint {args.step}"
        )
        progress.say(f"report: {path}")
    return 0
