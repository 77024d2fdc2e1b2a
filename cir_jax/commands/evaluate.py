# SPDX-License-Identifier: Apache-2.0
"""Scores a trained run, or weights, on a benchmark, and writes results.json and report.html.

Examples:
  cir-jax evaluate --workdir runs/clip_sum-fashioniq-stage2 --set eval.gallery=val
  cir-jax evaluate --workdir RUN --set eval.benchmark=circo --set eval.root=DATA/CIRCO
  cir-jax evaluate --init-from best.pt --config clip_sum:cirr --set data.root=DATA
  cir-jax evaluate --workdir RUN --save rankings,features
  cir-jax evaluate --config served:cirr --set model.url=http://HOST:8000/v1 --set model.tower=NAME
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ml_collections import ConfigDict

from cir_jax import config
from cir_jax.errors import UserError

if TYPE_CHECKING:
    from cir_jax.retrieval.retriever import Retriever

HELP = "score a trained run or weights, and write a report"
WATCHED = True  # by `cir_jax.runtime.supervision`


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    add_run_arguments(parser)
    parser.add_argument(
        "--out", default="", help="folder of the report; evaluation/ in the run folder if empty"
    )
    parser.add_argument(
        "--save",
        default="",
        metavar="WHAT",
        help="also write what single queries were answered, for other programs and for `cir-jax "
        "compare`: rankings (.jsonl and .parquet), features (.npz and .safetensors), or both, "
        "rankings,features; rankings.jsonl is that file alone",
    )
    parser.add_argument(
        "--ranked",
        type=int,
        default=50,
        metavar="COUNT",
        help="with --save rankings: images that a ranking names, best first (default 50)",
    )


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags that name a trained run, `--workdir` and `--step`, or weights with the config of a
    benchmark, `--init-from` and `--config`; and `--set`."""
    parser.add_argument("--workdir", default="", help="folder of a trained run")
    parser.add_argument(
        "--step", default="best", help="checkpoint: best (default), last, or a step number"
    )
    config.add_init_from_argument(parser, "instead of --workdir: weights, with --config")
    parser.add_argument(
        "--config",
        default="",
        metavar="NAME[:ARGUMENT]",
        help="with --init-from, as for `train`; alone for a model that needs no weights, served",
    )
    config.add_override_argument(parser)
    add_code_arguments(parser)


def add_code_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags about Python that lies beside weights, `--trust-code` and `--ignore-remote-code`."""
    parser.add_argument(
        "--trust-code", action="store_true",
        help="run the .py files that the run folder names, though you have not trained with them",
    )  # fmt: skip
    config.add_remote_code_argument(parser)


def retriever(args: argparse.Namespace) -> "tuple[ConfigDict, Retriever, str]":
    """(config, retriever, their name for messages) from the flags of `add_run_arguments`.

    Raises:
      UserError: neither or both of a run and weights are named, or they cannot be used.
    """
    from cir_jax import trust
    from cir_jax.convert import remote_code

    with trust.trusting(args.trust_code), remote_code.ignoring(args.ignore_remote_code):
        return _retriever(args)


def _retriever(args: argparse.Namespace) -> "tuple[ConfigDict, Retriever, str]":
    from cir_jax.retrieval import load

    if args.config and not (args.workdir or args.init_from):
        from cir_jax import contract

        chosen = config.from_args(args)
        if contract.is_plain(chosen.model.name):
            loaded, found = load.from_weights(chosen, "", args.step)
            return loaded, found, f"{loaded.model.name} {loaded.model.tower}"
    if bool(args.workdir) == bool(args.init_from):
        raise UserError(
            "name either a trained run, --workdir RUN, or weights and what to score them on, "
            "--init-from FILE_OR_FOLDER --config clip_sum:fashioniq"
        )
    if args.workdir:
        if args.config:
            raise UserError(
                f"--config={args.config} belongs to --init-from: a run has its own config; change "
                "it with --set key=value"
            )
        loaded, found = load.from_run(args.workdir, args.step, args.overrides)
        return loaded, found, f"{args.workdir}, checkpoint {args.step}"
    if not args.config:
        raise UserError(
            "--init-from needs the benchmark to score on, --config clip_sum:fashioniq --set "
            "data.root=DATA"
        )
    loaded = config.with_init_from(config.from_args(args), args.init_from)
    loaded, found = load.from_weights(loaded, loaded.init_from, args.step)
    return loaded, found, loaded.init_from


def run(args: argparse.Namespace) -> int:
    """Restores the run, ranks, prints the table of scores, writes the report."""
    from cir_jax.runtime import distributed

    distributed.initialize()  # before jax starts a backend
    from cir_jax import weights
    from cir_jax.evals import saving
    from cir_jax.retrieval import memory

    wanted = saving.parse(args.save)
    if args.ranked < 1:
        raise UserError(f"--ranked={args.ranked} is below 1; give how many images a ranking names")
    loaded, found, what = retriever(args)
    if args.init_from and not args.out and weights.is_run(loaded.workdir):
        raise UserError(
            f"{loaded.workdir} holds a run, and the report in it would be of {what}; give --out "
            "FOLDER"
        )
    with memory.evaluating(loaded):
        return _scored(args, loaded, found, what, wanted)


def _scored(
    args: argparse.Namespace,
    loaded: ConfigDict,
    found: "Retriever",
    what: str,
    wanted: Sequence[str],
) -> int:
    """Evaluates, prints the table and writes what is asked for."""
    import jax

    from cir_jax import progress
    from cir_jax.data import kept_pixels
    from cir_jax.evals import benchmark, saving
    from cir_jax.evals.reports import run_report
    from cir_jax.evals.reports.sections import text_table

    with kept_pixels.filling(found.preprocess):
        chosen = benchmark.build(loaded)
    if isinstance(found.preprocess, kept_pixels.Part):
        found.preprocess.say()
    if chosen is None:
        raise UserError(f"{what} has eval.benchmark=none; name one, --set eval.benchmark=fashioniq")
    result, answers = (
        saving.run(chosen, found, loaded.eval.benchmark) if wanted else (chosen.run(found), [])
    )
    rules = ", ".join(f"{k} {v}" for k, v in result.protocol.items() if isinstance(v, str))
    progress.say(f"{what}: {rules}\n")
    progress.say(text_table(run_report.recall_table(result.scores, result.protocol)))
    progress.say(f"\n{result.selection}: {result.score:.2f}")
    served = found.functions.embedder
    if served is not None:
        progress.say(served.words())
    folder = Path(args.out or Path(args.workdir or loaded.workdir) / "evaluation")
    for file in saving.write(folder, wanted, found, answers, args.ranked):
        progress.say(f"saved: {file}")
    if jax.process_index() == 0:
        scored = result.protocol.get("benchmark", loaded.eval.benchmark)
        title = f"{loaded.model.name} {loaded.model.tower} on {scored}"
        facts = None if served is None else served.facts()
        path = run_report.write_evaluation(folder, title, loaded, result, what, facts)
        progress.say(f"report: {path}")
    return 0
