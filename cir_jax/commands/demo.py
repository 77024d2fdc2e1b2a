# SPDX-License-Identifier: Apache-2.0
"""The whole method on real images, in minutes: OpenMoji, from random parameters, on any machine.

Stage zero (image-text pretraining), stage one (in-batch negatives), stage two (the bank), stage two
with generated triplets as well, and the control that isolates the claim: stage one trained on for
the time that stage two took. It prints and reports what it measures.
"""

import argparse
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cir_jax import config as configs
from cir_jax.errors import UserError

HELP = "the whole method on real images, in minutes"
COLUMNS = {
    "average_recall_at10": "FashionIQ R@10",
    "average_recall_at50": "R@50",
    "cirr_recall_at1": "CIRR R@1",
    "cirr_recall_at5": "R@5",
    "cirr_recall_subset_at1": "Rsub@1",
}
RUNS = {
    "zero": "plain sum (stage zero)",
    "one": "stage one, in-batch negatives",
    "control": "control: stage one, longer",
    "two": "stage two, bank of negatives",
    "two-generated": "stage two, + generated positives",
}
SMOKE = (
    "This is a smoke test (--quick): a few steps on a few hundred images, to see that everything "
    "runs. Its numbers mean nothing, neither by themselves nor compared with each other. Without "
    "--quick the demo takes minutes and measures something."
)
NOTE = """Two benchmarks of the same validation images: their annotations are written in the
layouts of FashionIQ (recall@10 and @50 per category, averaged) and CIRR (recall and subset recall),
and read and ranked by the code that reads and ranks those data sets. The control starts from the
same stage one and trains on with in-batch negatives for as many seconds as stage two needed, its
bank included (with the compilation of its encoder; that of training steps is not counted);
compare stage two with it, and with nothing else. Stage two with generated triplets sees more
triplets and takes more steps.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.add_argument("--out", default="demo", help="folder of all results (default: demo)")
    parser.add_argument("--seeds", type=int, default=1, help="repeat with this many seeds")
    parser.add_argument(
        "--quick", action="store_true", help="a smoke test of a minute, whose numbers mean nothing"
    )
    parser.add_argument("--data", default="", help="folder of the OpenMoji set (default: a cache)")


def run(args: argparse.Namespace) -> int:
    """Trains all runs of all seeds and writes the report."""
    if args.seeds < 1:
        raise UserError(f"--seeds {args.seeds} is below 1; give the number of repetitions")
    from cir_jax import progress
    from cir_jax.datasets.readers import emoji
    from cir_jax.evals.reports.sections import compare, text_table

    began = time.monotonic()
    if args.quick:
        progress.say(SMOKE)
    out = Path(args.out)
    data = emoji.prepare(
        args.data or (out / "openmoji" if args.quick else ""), limit=300 * args.quick
    )
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in RUNS}
    for seed in range(args.seeds):
        for name, result in _seed(out / f"seed-{seed}", data, seed, args.quick).items():
            results[name].append(result)
            progress.say(f"  {RUNS[name]}: {_line(result['scores'])}")
    table = compare(
        "What each step brings",
        {RUNS[n]: [r["scores"] for r in found] for n, found in results.items()},
        COLUMNS,
    )
    page = _report(out, results, table, args.quick)
    progress.say("", text_table(table), sep="\n")
    if args.quick:
        progress.say(f"\n{SMOKE}")
    progress.say(f"\n{time.monotonic() - began:.0f} s in all. Report: {page.resolve()}")
    return 0


def _seed(out: Path, data: Path, seed: int, quick: bool) -> dict[str, dict[str, Any]]:
    """name of a run -> its results with the scores of both benchmarks."""
    from cir_jax.datasets.emoji_layouts import GENERATED

    found = {"zero": _train(out / "zero", data, 0, seed, quick)}
    found["one"] = _train(out / "one", data, 1, seed, quick, f"init_from={out / 'zero'}")
    start = f"init_from={out / 'one'}"
    found["two"] = _train(out / "two", data, 2, seed, quick, start)
    found["two-generated"] = _train(
        out / "two-generated", data, 2, seed, quick, start, f"data.generated={GENERATED}"
    )
    took = found["two"]["seconds"] + found["two"]["bank_seconds"]
    # As many steps as it takes; the clock ends it. Another seed, or it would see stage one's order.
    found["control"] = _train(
        *(out / "control", data, 1, seed + 1000, quick, start),
        *(f"max_seconds={took}", "steps=1000000", "eval.every=0"),
    )
    return found


def _train(
    workdir: Path, data: Path, stage: int, seed: int, quick: bool, *changes: str
) -> dict[str, Any]:
    """Trains one stage, or takes it up where it was stopped; the scores are of both layouts."""
    from cir_jax.evals import benchmark
    from cir_jax.evals.reports import run_report
    from cir_jax.retrieval import load
    from cir_jax.runtime import supervision
    from cir_jax.training import train

    which = "quicktest" if quick else "emoji"
    common = [f"workdir={workdir}", f"data.root={data}", f"seed={seed}"]
    config = configs.load(f"clip_sum:{which},stage={stage}", [*common, *changes])
    results = train.train(config)
    if not results["finished"]:
        raise supervision.Stopped(f"stopped; the same command goes on from {workdir}")
    if quick:  # its own report may be all that somebody opens
        run_report.write(workdir, results, caution=SMOKE)
    cirr = ["eval.benchmark=cirr", f"data.root={data / 'cirr'}", "eval.examples=0"]
    other, retriever = load.from_run(workdir, "last", cirr)
    cirr_layout = benchmark.build(other)
    assert cirr_layout is not None
    scores = cirr_layout.run(retriever).scores
    last = results["history"][-1]
    both = {k: last[k] for k in COLUMNS if k in last}
    return results | {"scores": both | {f"cirr_{k}": v for k, v in scores.items()}}


def _scores(runs: Mapping[str, dict[str, Any]]) -> dict[str, float]:
    """The scores of the table under the names of their benchmarks, without those of layouts."""
    return {
        key.removeprefix("cirr_"): x
        for run in runs.values()
        for key, x in run["scores"].items()
        if key in COLUMNS
    }


def _line(scores: Mapping[str, float]) -> str:
    return ", ".join(f"{title} {scores[key]:.1f}" for key, title in COLUMNS.items())


def _report(out: Path, results: dict[str, list[dict[str, Any]]], table: Any, quick: bool) -> Path:
    import json

    from cir_jax import files
    from cir_jax.evals.reports import explanations, run_report
    from cir_jax.evals.reports.report import write_report
    from cir_jax.evals.reports.sections import Caution, Curves, Facts, Prose
    from cir_jax.runtime import metrics

    first = {name: runs[0] for name, runs in results.items()}
    lines = {name: metrics.read(Path(r["workdir"]) / metrics.FILE) for name, r in first.items()}
    losses = [
        replace(run_report.loss_chart(lines[n], RUNS[n]), title=f"Loss: {RUNS[n]}")
        for n in ("zero", "one", "two")
    ]
    recall = [
        run_report.recall_chart(first[n]["history"], "average_recall_at10", RUNS[n])
        for n in ("one", "two", "two-generated")
    ]
    merged = replace(
        recall[0],
        title="Average R@10 on validation",
        series=[series for chart in recall for series in chart.series],
    )
    times = {
        RUNS[n]: f"{r['step']:,} steps, {r['seconds']:.0f} s"
        + (f" and {r['bank_seconds']:.0f} s for the bank" if r["bank_seconds"] > 0.5 else "")
        for n, r in first.items()
    }
    sections = [
        *([Caution(SMOKE)] if quick else []),
        table,
        Prose("How to read it", NOTE),
        Facts("What the numbers mean", explanations.of_scores(_scores(first), {}), open=True),
        Curves("Training", [merged, *losses], "First seed. Steps of each run on its own axis."),
        run_report.kept_queries(first["two"]["workdir"], "Queries of stage two"),
        Facts("Time in training steps", times, open=True),
        Facts("Triplets", {RUNS[n]: r["triplets"] for n, r in first.items()}, open=True),
        Facts("Environment", run_report.environment()),
        Facts("Pictures", {"OpenMoji": "https://openmoji.org, CC BY-SA 4.0"}, open=True),
    ]
    out.mkdir(parents=True, exist_ok=True)
    content = {RUNS[n]: [r["scores"] for r in runs] for n, runs in results.items()}
    files.put(out / "results.json", json.dumps(content, indent=2).encode())
    title = "Scaling positives and negatives, on OpenMoji"
    return write_report(out, f"Smoke test: {title}" if quick else title, sections)
