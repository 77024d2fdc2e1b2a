# SPDX-License-Identifier: Apache-2.0
"""Every model through both stages on OpenMoji, at its tiny size: `python tools/models.py`.

Each is trained by its own config, `MODEL:emoji`, stage one and then stage two from the best
checkpoint of stage one, and evaluated after every epoch in the FashionIQ layout. The models on CLIP
start from one image-text pretraining (stage zero), the others from random parameters, so the rows
say that a model learns in both stages, not which is best. Runs are kept: a script that was stopped
goes on. Results: models.json, and a table on the terminal.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import jax

sys.path.insert(0, str(Path(__file__).parents[1]))  # a script finds its own folder only

from cir_jax import config as configs
from cir_jax import progress
from cir_jax.datasets.readers import emoji
from cir_jax.runtime import supervision
from cir_jax.training import train

# Model -> whether it starts from the pretrained encoders of `clip_sum`.
MODELS = {
    "clip_sum": True, "clip_weighted": True, "clip_combiner": True, "tgcir": True, "blip": False,
    "sprc": False, "gemma_embedding": False,
}  # fmt: skip
SCORE = "average_recall_at10"


def run(out: Path, data: Path, name: str, start: str, which: str, stage: int) -> dict[str, Any]:
    """One stage of one model: {"epochs": its scores in %, "steps", "seconds"}."""
    workdir = out / f"{which}-{name}-{stage}"
    kept = workdir / "scores.json"
    if kept.is_file():
        return json.loads(kept.read_text())
    every = f"eval.every={1 if stage else 0}"
    changes = [f"workdir={workdir}", f"data.root={data}", "eval.examples=0", every]
    if start:
        changes.append(f"init_from={start}")
    results = train.train(configs.load(f"{name}:{which},stage={stage}", changes))
    if not results["finished"]:
        raise SystemExit(supervision.STOPPED)  # the same command goes on
    scores = {
        "epochs": [entry[SCORE] for entry in results["history"]],
        "steps": results["step"],
        "seconds": results["seconds"],
    }
    kept.write_text(json.dumps(scores))
    shown = ", ".join(f"{score:.1f}" for score in scores["epochs"])
    progress.say(f"{name}, stage {stage}: {shown}")
    return scores


def table(results: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Markdown: a row per model, its scores after each epoch."""
    lines = ["| FashionIQ R@10, after each epoch, % | stage one | stage two |", "|---|---|---|"]
    for name, stages in results.items():
        cells = [" ".join(f"{x:.1f}" for x in stages[s]["epochs"]) for s in ("one", "two")]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Trains what is not there yet; returns what models.json holds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", default="evidence/models", help="folder of all runs and results")
    parser.add_argument("--data", default="", help="folder of the OpenMoji set (default: a cache)")
    parser.add_argument("--models", nargs="+", choices=tuple(MODELS), default=tuple(MODELS))
    parser.add_argument("--quick", action="store_true", help="a smoke test of a few steps")
    args = parser.parse_args(argv)
    out, which = Path(args.out), "quicktest" if args.quick else "emoji"
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str((out / "programs").resolve()))
    data = emoji.prepare(
        args.data or (out / "openmoji" if args.quick else ""), limit=300 * args.quick
    )
    results: dict[str, dict[str, dict[str, Any]]] = {}
    for name in args.models:
        start = ""
        if MODELS[name]:
            run(out, data, "clip_sum", "", which, 0)
            start = str(out / f"{which}-clip_sum-0")
        results[name] = {"one": run(out, data, name, start, which, 1)}
        start = str(out / f"{which}-{name}-1")
        results[name]["two"] = run(out, data, name, start, which, 2)
    (out / "models.json").write_text(json.dumps(results, indent=1))
    print(table(results))
    return results


if __name__ == "__main__":
    main()
