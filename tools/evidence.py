# SPDX-License-Identifier: Apache-2.0
"""Does scaling positives and negatives help, and weighing image and text? `tools/evidence.py`.

Questions, each over several seeds, every run evaluated on the same validation images of OpenMoji:

  positives  recall against the number of annotated triplets, with and without generated ones
  negatives  recall against the number of bank negatives, at equal training time
  zero_shot  generated triplets alone, against the plain sum of pretrained features
  weights    a head that weighs image and text, against the plain sum, at equal training time
  icons      the same on a shop of icons, which `cir-jax prepare` makes a data set of

and, with few annotated triplets, which pairs and texts to generate (recipes). Every OpenMoji run of
a seed starts from one image-text pretraining of that seed. A run is kept and not repeated: a
script that was stopped goes on. Results: evidence.json, tables on the terminal, and a plot.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

sys.path.insert(0, str(Path(__file__).parents[1]))  # a script finds its own folder only

from cir_jax import config as configs
from cir_jax import main as commands
from cir_jax import progress
from cir_jax.datasets.readers import emoji
from cir_jax.evals import benchmark
from cir_jax.evals.reports.sections import Spread
from cir_jax.generation import steps
from cir_jax.retrieval import load
from cir_jax.runtime import supervision
from cir_jax.training import train
from tools import icon_shop
from tools.evidence_plot import plot

ANNOTATED = (100, 300, 1000, -1)
QUICK_ANNOTATED = (20, 30, 40, -1)  # of a set that has fewer
NEGATIVES = (16, 64, 256, 1024, 0)
QUICK_NEGATIVES = (16, 0)
TEMPLATES = (
    "modify.templates=('{target} instead of {reference}','Unlike {reference}, I want {target}')"
)
# name -> changes of configs/positives.py:emoji; {zero} is the pretrained model, {one} stage one.
# As the released code makes them for FashionIQ and, in the second, for CIRR.
PAPER, TEMPLATED = "random pairs, target's caption", "random pairs, two templates"
UNKNOWN = ("pair.references_only=False", "pair.exclude_known=False")  # reads no annotation
RECIPES = {
    PAPER: (),
    TEMPLATED: (TEMPLATES,),
    "similar pairs (rank 1-30), two templates": (
        TEMPLATES, "pair.method=window", "pair.window=1,30", "pair.run={zero}",
    ),
    "mined pairs, two templates": (TEMPLATES, "pair.method=mined", "pair.run={one}"),
}  # fmt: skip
COLUMNS = {"cirr_recall_at1": "CIRR R@1", "cirr_recall_at5": "R@5", "fiq_recall_at10": "FIQ R@10"}
ICON_COLUMNS = {f"recall_at{k}": f"R@{k}" for k in (1, 5, 10)}


class Runs:
    """Trains what is not there yet; scores of a run are kept beside it.

    Args:
      out: folder of everything.
      data: the OpenMoji set.
      seed: of data order, subsets and pairs.
      quick: a smoke test.
    """

    def __init__(self, out: Path, data: Path, seed: int, quick: bool):
        self.data, self.seed, self.quick = data, seed, quick
        # Runs are kept: those of a smoke test must not stand for real ones.
        self.out = out / f"{'quick-' if quick else ''}seed-{seed}"
        self.annotated = QUICK_ANNOTATED if quick else ANNOTATED
        self._count = 8 if quick else 300

    def train(
        self, name: str, stage: int, start: str, *changes: str, model: str = "clip_sum"
    ) -> dict[str, float]:
        """Scores of a run on OpenMoji under both protocols, in %."""

        def score(workdir: Path, results: dict[str, Any]) -> dict[str, float]:
            found = {"fiq_recall_at10": results["history"][-1]["average_recall_at10"]}
            cirr = ["eval.benchmark=cirr", f"data.root={self.data / 'cirr'}", "eval.examples=0"]
            other, retriever = load.from_run(workdir, "last", cirr)
            scores = benchmark.build(other).run(retriever).scores
            return found | {f"cirr_{key}": value for key, value in scores.items()}

        which = "quicktest" if self.quick else "emoji"
        counted = [f"steps={self._count}"] if stage else ["steps=8"] * self.quick
        spec = f"{model}:{which},stage={stage}"
        return self._kept(name, spec, self.data, start, [*counted, *changes], score, COLUMNS)

    def train_on_icons(
        self, name: str, stage: int, start: str, *changes: str, model: str
    ) -> dict[str, float]:
        """Scores of a run on the questions about the icons that are held out, in %."""

        def score(workdir: Path, results: dict[str, Any]) -> dict[str, float]:
            return {key: results["history"][-1][key] for key in ICON_COLUMNS}

        data = shop(self.out.parent / f"{'quick-' if self.quick else ''}icons", self.quick)
        spec = f"{model}:tiny,stage={stage},positives"
        return self._kept(name, spec, data, start, changes, score, ICON_COLUMNS)

    def _kept(
        self,
        name: str,
        spec: str,
        data: Path,
        start: str,
        changes: Sequence[str],
        score: Callable[[Path, dict[str, Any]], dict[str, float]],
        columns: dict[str, str],
    ) -> dict[str, float]:
        """Scores, steps and seconds of a run, which is trained if it is not there yet."""
        workdir = self.out / name
        kept = workdir / "scores.json"
        if kept.is_file():
            return json.loads(kept.read_text())
        began = time.monotonic()
        common = [f"workdir={workdir}", f"data.root={data}", f"seed={self.seed}"]
        common += ["eval.every=0", "eval.examples=0"]
        if start:
            common += [f"init_from={self.out / start}"]
        results = train.train(configs.load(spec, [*common, *changes]))
        if not results["finished"]:
            raise SystemExit(supervision.STOPPED)  # the same command goes on
        scores = score(workdir, results)
        scores |= {"steps": results["step"], "seconds": results["seconds"]}
        kept.write_text(json.dumps(scores, indent=2))
        shown = ", ".join(f"{title} {scores[key]:.1f}" for key, title in columns.items())
        progress.say(f"seed {self.seed} {name}: {shown} ({time.monotonic() - began:.0f} s)")
        return scores

    def one(self, n: int) -> dict[str, float]:
        """Stage one on `n` annotated triplets."""
        return self.train(f"one-{_label(n)}", 1, "zero", f"data.annotated={n}")

    def generate(self, name: str, *changes: str) -> str:
        """The file of generated triplets of one recipe."""
        config = configs.load(
            "positives:emoji",
            [f"workdir={self.out / 'positives' / name}", f"data.root={self.data}",
             f"seed={self.seed}", *UNKNOWN, *changes],
        )  # fmt: skip
        return steps.run(config)["files"][0]


def positives(runs: Runs) -> dict[str, dict[str, float]]:
    """Stage one on n annotated triplets, then stage two on them, with and without generated ones.

    Both stages two take the same number of steps: the one with generated triplets sees each
    annotated one less often.
    """
    generated = runs.generate("recipe-0", *RECIPES[PAPER])
    found = {}
    for n in runs.annotated:
        chosen = f"data.annotated={n}"
        label = _label(n)
        found[f"{label}: stage one"] = runs.one(n)
        found[f"{label}: stage two"] = runs.train(f"two-{label}", 2, f"one-{label}", chosen)
        found[f"{label}: stage two + positives"] = runs.train(
            f"two-{label}-positives", 2, f"one-{label}", chosen, f"data.generated={generated}"
        )
    return found


def negatives(runs: Runs) -> dict[str, dict[str, float]]:
    """Stage two on all annotated triplets against n sampled rows of the bank, for equal seconds."""
    runs.one(-1)
    seconds = 2.0 if runs.quick else 20.0
    timed = (f"max_seconds={seconds}", "steps=1000000")
    return {
        "all" if not n else str(n): runs.train(
            f"negatives-{n}", 2, "one-all", f"loss.bank_negatives={n}", *timed
        )
        for n in (QUICK_NEGATIVES if runs.quick else NEGATIVES)
    }


def zero_shot(runs: Runs) -> dict[str, dict[str, float]]:
    """No annotated triplet at all: both kinds of texts, and both stages."""
    found = {"plain sum": runs.train("zero", 0, "")}
    for number, title in enumerate((PAPER, TEMPLATED)):
        file = runs.generate(f"recipe-{number}", *RECIPES[title])
        only = ("data.annotated=0", f"data.generated={file}")
        name = f"zero-shot-{number}"
        texts = title.partition(", ")[2]
        found[f"{texts}: stage one"] = runs.train(f"{name}-one", 1, "zero", *only)
        found[f"{texts}: stage two"] = runs.train(f"{name}-two", 2, f"{name}-one", *only)
    return found


def recipes(runs: Runs) -> dict[str, dict[str, float]]:
    """Stage two on 300 annotated triplets and the generated ones of different recipes."""
    few = runs.annotated[1]
    runs.one(few)
    one = f"one-{few}"
    places = {"zero": runs.out / "zero", "one": runs.out / one}
    found = {"none": runs.train(f"two-{few}", 2, one, f"data.annotated={few}")}
    for number, (title, changes) in enumerate(RECIPES.items()):
        filled = [c if c == TEMPLATES else c.format(**places) for c in changes]
        if "pair.method=mined" in changes:  # only what is trained on may be asked about
            filled += [f"data.annotated={few}"]
        file = runs.generate(f"recipe-{number}", *filled)
        found[title] = runs.train(
            *(f"two-{few}-recipe-{number}", 2, one),
            *(f"data.annotated={few}", f"data.generated={file}"),
        )
    return found


def weights(runs: Runs) -> dict[str, dict[str, float]]:
    """The plain sum and the weighted one on all annotated triplets, for equal seconds."""
    return _both_sums(runs.train, "weights", "zero", (2.0, 2.0) if runs.quick else (20.0, 20.0))


def icons(runs: Runs) -> dict[str, dict[str, float]]:
    """The same on a shop of icons. Nothing is pretrained for it, so stage one takes longer."""
    seconds = (2.0, 2.0) if runs.quick else (60.0, 20.0)
    return _both_sums(runs.train_on_icons, "icons", "", seconds)


def _both_sums(
    run: Callable[..., dict[str, float]], name: str, start: str, seconds: tuple[float, float]
) -> dict[str, dict[str, float]]:
    """Both stages of both models, each for so many seconds."""
    found = {}
    for model in ("clip_sum", "clip_weighted"):
        place = start
        for stage, title in ((1, "one"), (2, "two")):
            timed = (f"max_seconds={seconds[stage - 1]}", "steps=1000000")
            before, place = place, f"{name}-{model}-{title}"
            found[f"{model}: stage {title}"] = run(place, stage, before, *timed, model=model)
    return found


def shop(folder: Path, quick: bool) -> Path:
    """The data set of a shop of icons, real drawings in variants; made where it is not there yet.

    As in launch/search_demo.sh: training triplets from titles, and questions in a customer's words
    about the products that `cir-jax prepare` holds out.
    """
    pictures, data = folder / "shop", folder / "cir"
    titles, triplets = pictures / "titles.csv", data / "positives" / "triplets.jsonl"
    if triplets.is_file():
        return data
    if not titles.is_file():
        icon_shop.make(pictures, *((24, 4) if quick else (200, 6)), seed=0)
    if not (data / "gallery.txt").is_file():
        made = ["prepare", pictures, "--titles", titles, "--group", "product", "--out", data]
        if status := commands.main([*map(str, made)]):
            raise SystemExit(status)
    icon_shop.questions(pictures, data, seed=0)
    changes = [f"data.root={data}", f"workdir={triplets.parent}"]
    steps.run(configs.load("positives:titles", changes))
    return data


def _label(annotated: int) -> str:
    return "all" if annotated < 0 else str(annotated)


QUESTIONS: dict[str, Callable[[Runs], dict[str, dict[str, float]]]] = {
    "positives": positives, "negatives": negatives, "zero_shot": zero_shot, "recipes": recipes,
    "weights": weights, "icons": icons,
}  # fmt: skip
PAPER_QUESTIONS = ("positives", "negatives", "zero_shot", "recipes")


def tables(results: dict[str, dict[str, list[dict[str, float]]]]) -> str:
    """Mean and sample deviation over the seeds, as Markdown."""
    lines = []
    for question, rows in results.items():
        columns = ICON_COLUMNS if question == "icons" else COLUMNS
        lines += [f"| {question} | {' | '.join(columns.values())} | steps |"]
        lines += ["|---" * (len(columns) + 2) + "|"]
        for name, seeds in rows.items():
            cells = [str(Spread.of([s[key] for s in seeds])) for key in columns]
            taken = sum(s["steps"] for s in seeds) / len(seeds)
            lines.append(f"| {name} | {' | '.join(cells)} | {taken:.0f} |")
        lines.append("")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Runs everything; returns what evidence.json holds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", default="evidence", help="folder of all runs and results")
    parser.add_argument("--data", default="", help="folder of the OpenMoji set (default: a cache)")
    parser.add_argument("--seeds", type=int, default=3, help="repetitions")
    parser.add_argument(
        "--questions", nargs="+", choices=tuple(QUESTIONS), default=PAPER_QUESTIONS,
        help=f"default: {' '.join(PAPER_QUESTIONS)}; icons needs the extra search-demo",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="a smoke test of a few steps")
    args = parser.parse_args(argv)
    if args.seeds < 1:
        parser.error(f"--seeds {args.seeds} is below 1")
    out = Path(args.out)
    # The runs of all seeds share their programs: each is compiled once.
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str((out / "programs").resolve()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    data = emoji.prepare(
        args.data or (out / "openmoji" if args.quick else ""), limit=300 * args.quick
    )
    results: dict[str, dict[str, list[dict[str, float]]]] = {
        question: {} for question in args.questions
    }
    for seed in range(args.seeds):
        runs = Runs(out, data, seed, args.quick)
        runs.train("zero", 0, "")
        for question in args.questions:
            for name, scores in QUESTIONS[question](runs).items():
                results[question].setdefault(name, []).append(scores)
    (out / "evidence.json").write_text(json.dumps(results, indent=1))
    plot(results, COLUMNS, out / "evidence.svg")
    print(tables(results))
    return results


if __name__ == "__main__":
    main()
