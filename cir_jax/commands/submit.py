# SPDX-License-Identifier: Apache-2.0
"""Writes what the test servers of CIRR and CIRCO score, after checking it as they would.

Examples:
  cir-jax submit --workdir runs/clip_sum-cirr-stage2 --out submission
  cir-jax submit --init-from best.pt --config clip_sum:cirr --set data.root=DATA --out submission
  cir-jax submit --workdir RUN --set eval.benchmark=circo --set eval.root=DATA --out submission
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cir_jax.commands.evaluate import add_run_arguments, retriever
from cir_jax.errors import UserError

HELP = "write the CIRR or CIRCO test submission of a trained run"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    add_run_arguments(parser)
    parser.add_argument("--out", required=True, help="folder for the files")
    parser.add_argument(
        "--root", default="", help="the data set; the run's eval.root or data.root if empty"
    )
    parser.add_argument(
        "--split", default="", help="split to answer; test1 of CIRR and test of CIRCO if empty"
    )
    parser.add_argument(
        "--name", default="", help="part of the file names; that of the run or weights if empty"
    )


def run(args: argparse.Namespace) -> int:
    """Restores the run, answers every query, writes."""
    from cir_jax.runtime import distributed

    distributed.initialize()  # before jax starts a backend
    import jax

    from cir_jax import progress
    from cir_jax.evals import benchmark

    loaded, found, what = retriever(args)
    # A run on any other benchmark may answer CIRR's queries: --root says where they lie.
    title, answer = ("CIRCO", _circo) if loaded.eval.benchmark == "circo" else ("CIRR", _cirr)
    root = args.root or benchmark.root(loaded)
    if not root:
        raise UserError(
            f"{what} has no data.root; give the folder of the {title} data set, --root FOLDER"
        )
    answers = answer(root, args.split, loaded.eval, found)
    shortest = min(map(len, answers.best.values()))
    if shortest < answers.wanted:
        progress.say(
            f"warning: the gallery has {answers.gallery} images, so a query has {shortest} names; "
            f"the {title} server wants {answers.wanted}"
        )
    if jax.process_index() == 0:
        made_by = Path(args.workdir).resolve().name if args.workdir else Path(what).stem
        for path in answers.write(args.out, args.name or made_by):
            progress.say(f"{path}: {len(answers.best):,} queries")
    return 0


@dataclass(frozen=True)
class _Answers:
    """What is common to the submissions.

    Attributes:
      best: query -> its images, best first.
      gallery: number of images.
      wanted: images that the server wants per query.
      write: (folder, name) -> the files, checked and written.
    """

    best: Mapping[str, Sequence[Any]]
    gallery: int
    wanted: int
    write: Callable[[str, str], Sequence[Path]]


# A submission answers every query, so nothing may be left out: on_missing is "error" in both.


def _cirr(root: str, split: str, settings: Any, found: Any) -> _Answers:
    from cir_jax.evals import submission
    from cir_jax.evals.benchmarks import cirr

    made = cirr.Benchmark(root, split or "test1", on_missing="error").predict(found)
    wanted = submission.COUNTS["recall"]
    return _Answers(
        made.recall, len(made.gallery), wanted, lambda out, name: submission.write(out, name, made)
    )


def _circo(root: str, split: str, settings: Any, found: Any) -> _Answers:
    from cir_jax.evals import circo_submission
    from cir_jax.evals.benchmarks import circo

    texts = settings.shared_concept, settings.concept_template
    made = circo.Benchmark(root, split or "test", *texts, on_missing="error").predict(found)
    return _Answers(
        made.best,
        len(made.gallery),
        circo_submission.COUNT,
        lambda out, name: [circo_submission.write(out, name, made)],
    )
