# SPDX-License-Identifier: Apache-2.0
"""Writes results.json and report.html of a training run or of one evaluation.

`recall_table` is the table of scores that reports and terminals show.
"""

import json
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from cir_jax import files, progress
from cir_jax.data import refusals
from cir_jax.data.pixels import AUTO, RELEASED, Loading
from cir_jax.evals.benchmark import LEFT_OUT, Result
from cir_jax.evals.example import Example
from cir_jax.evals.reports import explanations
from cir_jax.evals.reports.figures import Chart, Series
from cir_jax.evals.reports.report import write_report
from cir_jax.evals.reports.sections import (
    Caution,
    Curves,
    Facts,
    Queries,
    Section,
    Table,
    Tiles,
)  # fmt: skip
from cir_jax.runtime import checkpoint
from cir_jax.runtime import metrics as logged

RESULTS = "results.json"
_EXAMPLES = "examples.json"
_LISTED = 100  # images left out, in a report
_SIZES = {
    "queries": "queries",
    "gallery": "gallery",
    "hash": "hash",
    "missing_images": "images left out",
    "dropped_queries": "queries left out",
}  # of a protocol -> table columns
_Lists = tuple[list[Example], list[Example], list[Example]]
_RECALL = re.compile(r"(?:(?P<group>.+)_)?(?P<kind>recall(?:_subset)?|map)_at(?P<k>\d+)")
_COLUMNS = {"recall": "R", "recall_subset": "Rsub", "map": "mAP"}


def keep(workdir: str | Path, result: Result) -> None:
    """Notes the best evaluation so far, so that a resumed run can report it."""
    if jax.process_index() == 0:
        _write(Path(workdir) / _EXAMPLES, _plain(result) | {"selection": result.selection})


def write(workdir: str | Path, run: Mapping[str, Any], caution: str = "") -> dict[str, Any]:
    """Writes the report of a run as it stands, and returns the content of results.json.

    Args:
      workdir: folder of the run.
      run: what the trainer knows of it, as JSON: "stage", "model", "step", "finished", "seconds",
        "bank_seconds", "triplets", "dropped", "unusable", "best", "history", "config".
      caution: what nobody who reads the report should miss; its first line.
    """
    folder = Path(workdir)
    best, lists = _best(folder / _EXAMPLES)
    results = {
        "workdir": str(folder),
        **run,
        "scores": best["scores"] if best else _scores_in(run),
        "selection": best.get("selection", ""),  # runs of earlier versions did not note it
        "protocol": best.get("protocol", {}),
        "environment": environment(),
    }
    if jax.process_index() == 0:
        _write(folder / RESULTS, results)
        write_report(
            folder,
            f"{results['model']}, {results['stage']}",
            [
                *([Caution(caution)] if caution else []),
                *run_sections(results, logged.read(folder / logged.FILE), *lists),
            ],
            subtitle=str(folder),
        )
    return results


def write_evaluation(
    folder: str | Path,
    title: str,
    config: ConfigDict,
    result: Result,
    subtitle: str = "",
    served: Mapping[str, Any] | None = None,
) -> Path:
    """Writes results.json and report.html of one evaluation to `folder`; process 0 only.

    `served`: what is known of vectors of an embedder of others, and what they cost.
    """
    results = {
        **_plain(result),
        "selection": result.selection,
        "means": result.means,
        "config": config.to_dict(),
        "environment": environment(),
        **({"served": dict(served)} if served else {}),
    }
    for name in _LISTS:
        del results[name]
    _write(Path(folder) / RESULTS, results)
    sections = [
        *scores_sections(result.scores, result.protocol),
        *_explained(result.scores, result.protocol),
        _queries(result.examples, result.best, result.worst, _loading(results)),
        *([Facts("Vectors of others", results["served"])] if served else []),
        Facts("Config", results["config"]),
        Facts("Environment", results["environment"]),
    ]
    return write_report(folder, title, sections, subtitle)


def kept_queries(workdir: str | Path, title: str) -> Queries:
    """The queries of the best evaluation of a run, as `keep` noted them."""
    examples, ahead, behind = _best(Path(workdir) / _EXAMPLES)[1]
    try:
        loading = _loading(json.loads((Path(workdir) / RESULTS).read_bytes()))
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        loading = RELEASED  # results.json is made anew by the next report; pictures can wait
    return _queries(examples, ahead, behind, loading, title)


def run_sections(
    results: Mapping[str, Any],
    lines: Sequence[Mapping[str, Any]],
    examples: Sequence[Example],
    best: Sequence[Example] = (),
    worst: Sequence[Example] = (),
) -> list[Section]:
    """The report of a training run.

    Args:
      results: content of results.json.
      lines: of metrics.jsonl.
      examples, best, worst: of the best evaluation.
    """
    measured = results["scores"], results["protocol"]
    parts: list[Section] = [*scores_sections(*measured), *_explained(*measured)]
    training = {
        "steps": results["step"],
        "seconds in training steps": round(results["seconds"], 1),
        "seconds for the bank": round(results["bank_seconds"], 1),
        **_speed(lines),
        "triplets": results["triplets"],
    }
    if results["dropped"]:
        training["triplets left out"] = results["dropped"]
    if results.get("unusable"):  # which the report of an earlier version did not hold
        training["images that cannot be used"] = results["unusable"]
        training["their list"] = refusals.LIST
    if not results["finished"]:
        training["state"] = "stopped; the same command resumes it"
    return [
        *parts,
        Curves(
            "Training",
            [
                loss_chart(lines),
                recall_chart(results["history"]),
                logged_chart(lines, "learning_rate", "Learning rate"),
                logged_chart(lines, "examples_per_second", "Examples per second"),
            ],
        ),
        _queries(examples, best, worst, _loading(results)),
        Facts("Training", training, open=True),
        Facts("Config", results["config"]),
        Facts("Environment", results["environment"]),
    ]


def _lists(noted: Mapping[str, Any]) -> _Lists:
    """Examples, best and worst of what `keep` noted; earlier versions noted examples alone."""
    examples, best, worst = ([Example.from_json(e) for e in noted.get(name, ())] for name in _LISTS)
    return examples, best, worst


def _explained(scores: Mapping[str, float], protocol: Mapping[str, Any]) -> list[Section]:
    if not scores:
        return []
    return [Facts("What the numbers mean", explanations.of_scores(scores, protocol), open=True)]


def _loading(results: Mapping[str, Any]) -> Loading:
    """How the images of a run were opened; a config that leaves it open opens them as seen."""
    data = results["config"].get("data", {})
    name = data.get("loading", RELEASED.name)  # earlier versions knew no other
    return Loading("natural" if name == AUTO else name, data.get("background", RELEASED.background))


def _queries(
    examples: Sequence[Example],
    best: Sequence[Example],
    worst: Sequence[Example],
    loading: Loading,
    title: str = "Queries",
) -> Queries:
    ahead = sorted(best, key=lambda e: e.rank)
    behind = sorted(worst, key=lambda e: -e.rank)
    others = {"Best ranked": ahead, "Worst ranked": behind}
    return Queries(title, examples, _QUERIES_NOTE, "Evenly spread", others, loading)


_QUERIES_NOTE = "The reference and the text, and what was found. What is right is framed in green."
_LISTS = ("examples", "best", "worst")  # of queries, in examples.json


def scores_sections(scores: Mapping[str, float], protocol: Mapping[str, Any]) -> list[Section]:
    """Summary numbers, the table of recalls, and the protocol they were measured under."""
    if not scores:
        return []
    summary = [name for name in scores if not _RECALL.fullmatch(name)]
    tiles = [Tiles([(f"{_words(name)}, %", scores[name], "") for name in summary])]
    # In FashionIQ's protocol "gallery" is its kind; the sizes are below "galleries".
    in_table = ("galleries",) if "galleries" in protocol else tuple(_SIZES)
    hidden = (*in_table, "aspects", LEFT_OUT)
    rules = {k: v for k, v in protocol.items() if k not in hidden}
    return [
        *(tiles if summary else []),
        recall_table(scores, protocol),
        Facts("Protocol", rules, open=True),
        *_left_out(protocol),
    ]


def _left_out(protocol: Mapping[str, Any]) -> list[Section]:
    """The images that an evaluation has left out, the first so many of them."""
    parts = [protocol, *protocol.get("galleries", {}).values()]
    found = {name: reason for part in parts for name, reason in part.get(LEFT_OUT, {}).items()}
    if not found:
        return []
    rows = [[name, reason] for name, reason in [*found.items()][:_LISTED]]
    note = "The numbers are not comparable with those of the whole benchmark."
    if len(found) > len(rows):
        note += f" These are {len(rows)} of {len(found):,}; {RESULTS} has all of them."
    return [Table("Images left out", ["image", "why"], rows, note)]


def recall_table(scores: Mapping[str, float], protocol: Mapping[str, Any]) -> Table:
    """One row per category (and their average), or a single row and one per aspect; one column per
    recall or mean average precision.

    The gallery's size and hash are in it: numbers are comparable only where both are the same.
    """
    found = {name: match for name in scores if (match := _RECALL.fullmatch(name))}
    recalls = list(dict.fromkeys(_column(m) for m in found.values()))
    rows: dict[str, dict[str, float]] = {}
    for name, match in found.items():
        rows.setdefault(match["group"] or "all", {})[_column(match)] = scores[name]
    galleries = protocol.get("galleries") or {"all": protocol, **protocol.get("aspects", {})}
    sizes = [key for key in _SIZES if any(key in gallery for gallery in galleries.values())]
    cells = [
        [
            group,
            *(galleries.get(group, {}).get(key, "") for key in sizes),
            *(values.get(column, "") for column in recalls),
        ]
        for group, values in rows.items()
    ]
    columns = ["", *(_SIZES[key] for key in sizes), *recalls]
    note = "Recall in % of the queries. The hash is over the names of the gallery."
    if not _has_map(found.values()):
        return Table("Recall", columns, cells, note)
    note = f"mAP: over all right answers, in %. R: of the target alone. {note}"
    return Table("mAP and recall", columns, cells, note)


def loss_chart(lines: Sequence[Mapping[str, Any]], name: str = "") -> Chart:
    """The loss over steps; one curve per source of triplets where there are several."""
    keys = ["loss", *sorted({k for line in lines for k in line if k.startswith("loss/")})]
    if len(keys) == 2:  # a single source: its loss is the loss
        keys = keys[:1]
    curves = []
    for key in keys:
        points = [(line["step"], line[key]) for line in lines if key in line]
        title = name or key.removeprefix("loss/")
        curves.append(Series(title, *(zip(*points, strict=True) if points else ((), ()))))
    return Chart("Loss", curves)


def logged_chart(lines: Sequence[Mapping[str, Any]], key: str, title: str) -> Chart:
    """One value that a run logs, over steps."""
    points = [(line["step"], line[key]) for line in lines if key in line]
    return Chart(title, [Series(title, *(zip(*points, strict=True) if points else ((), ())))])


def recall_chart(history: Sequence[Mapping[str, Any]], metric: str = "", name: str = "") -> Chart:
    """Recalls over steps, or mean average precisions where there are any.

    Args:
      history: one mapping per evaluation, with "step" and its scores.
      metric: a single metric; "" for the averages, or for every recall if there is none.
      name: legend entry of that single metric.
    """
    found = {key: m for key in (history[0] if history else ()) if (m := _RECALL.fullmatch(key))}
    precise = _has_map(found.values())
    names = [k for k, m in found.items() if not (precise and (m["kind"] != "map" or m["group"]))]
    averages = [key for key in names if key.startswith("average_")]
    chosen = [metric] if metric else averages or names
    steps = [entry["step"] for entry in history]
    curves = [
        Series(name or _words(key), steps, [entry[key] for entry in history]) for key in chosen
    ]
    title = _words(metric) if metric else f"{'mAP' if precise else 'Recall'} on validation, %"
    return Chart(title, curves, unit=" %")


def environment() -> dict[str, Any]:
    """Versions and devices that numbers depend on."""
    packages = ("cir_jax", "jax", "flax", "optax", "numpy", "pillow")
    found = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found | {
        "python": platform.python_version(),
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "processes": jax.process_count(),
        "git": checkpoint.git_hash(),
    }


def _speed(lines: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Examples and images per second, the middle of what was logged."""
    found = {}
    for key in ("examples_per_second", "images_per_second"):
        values = [line[key] for line in lines if line.get(key)]
        if values:
            found[key.replace("_", " ")] = f"{np.median(values):,.1f}"
    return found


def _column(match: re.Match) -> str:
    return f"{_COLUMNS[match['kind']]}@{match['k']}"


def _has_map(matches: Iterable[re.Match]) -> bool:
    return any(match["kind"] == "map" for match in matches)


def _words(name: str) -> str:
    """ "average_recall_at10" -> "average R@10", "recall_mean" -> "recall mean"."""
    match = _RECALL.fullmatch(name)
    if not match:
        return name.replace("_", " ")
    return f"{match['group'] or ''} {_column(match)}".strip()


def _plain(result: Result) -> dict[str, Any]:
    return {
        "scores": result.scores,
        "score": result.score,
        "protocol": result.protocol,
        **{name: [one.to_json() for one in getattr(result, name)] for name in _LISTS},
    }


def _best(path: Path) -> tuple[dict[str, Any], _Lists]:
    """The best evaluation, as `keep` noted it, and its queries; nothing where there is none.

    One that is damaged is set aside: a training does not fail for it at its end.
    """
    try:
        best = json.loads(path.read_bytes())
        kinds = {"scores": dict, "protocol": dict, "examples": list}
        if wrong := [key for key, kind in kinds.items() if not isinstance(best[key], kind)]:
            raise TypeError(f"its {wrong[0]} are none")
        if not all(isinstance(x, int | float) for x in best["scores"].values()):
            raise TypeError("its scores are no numbers")
        return best, _lists(best)
    except FileNotFoundError:
        return {}, ([], [], [])
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        if jax.process_index() == 0:
            said = files.set_aside(path, str(error)[:200] or type(error).__name__)
            progress.say(f"{said}: the report lacks protocol and examples of the best evaluation")
        return {}, ([], [], [])


def _scores_in(run: Mapping[str, Any]) -> dict[str, float]:
    """The scores of the best evaluation in the history of a run."""
    made = [entry for entry in run["history"] if entry["score"] == run["best"]]
    about = ("step", "seconds", "score")
    return {key: value for key, value in made[0].items() if key not in about} if made else {}


def _write(path: Path, content: dict[str, Any]) -> None:
    files.put(path, json.dumps(content, indent=2, default=str).encode())
