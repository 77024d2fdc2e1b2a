# SPDX-License-Identifier: Apache-2.0
"""Draws what `tools/evidence.py` measured; needs matplotlib, which the extra `test` installs."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from cir_jax.evals.reports.sections import Spread

PLOTTED = "cirr_recall_at1"
COLOURS = {"stage one": "#6b7280", "stage two": "#2563c9", "stage two + positives": "#d2601a"}


def plot(
    results: dict[str, dict[str, list[dict[str, float]]]], columns: dict[str, str], file: Path
) -> None:
    """The first three questions, as far as they were asked, with the deviation over the seeds."""
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "evidence"})
    panels = {"positives": _positives, "negatives": _negatives, "zero_shot": _zero_shot}
    asked = [question for question in panels if question in results]
    if not asked:
        return
    figure, axes = pyplot.subplots(
        1, len(asked), figsize=(4.4 * len(asked), 3.9), layout="constrained", squeeze=False
    )
    for axis, question in zip(axes[0], asked, strict=True):
        panels[question](axis, results[question])
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", alpha=0.3)
        axis.set_ylabel(f"{columns[PLOTTED]}, %")
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)


def _positives(axis: Any, rows: dict[str, list[dict[str, float]]]) -> None:
    for label, colour in COLOURS.items():
        chosen = {
            name.partition(": ")[0]: seeds
            for name, seeds in rows.items()
            if name.partition(": ")[2] == label
        }
        _line(axis, chosen, label, colour)
    axis.set(xlabel="annotated triplets", title="Positives")
    axis.legend(frameon=False)


def _negatives(axis: Any, rows: dict[str, list[dict[str, float]]]) -> None:
    _line(axis, rows, "stage two", COLOURS["stage two"])
    axis.set(xlabel="bank negatives per query", title="Negatives, equal training time")


def _zero_shot(axis: Any, rows: dict[str, list[dict[str, float]]]) -> None:
    spreads = [Spread.of([s[PLOTTED] for s in seeds]) for seeds in rows.values()]
    grey, blue = COLOURS["stage one"], COLOURS["stage two"]
    axis.bar(
        range(len(rows)), [s.mean for s in spreads], yerr=[s.deviation for s in spreads],
        color=[blue if name.endswith("stage two") else grey for name in rows], capsize=3,
    )  # fmt: skip
    labels = [
        name.replace(": ", ":\n").replace("'s ", "'s\n").replace("two ", "two\n") for name in rows
    ]
    axis.set_xticks(range(len(rows)), labels, fontsize=8)
    axis.set(title="Zero-shot")


def _line(axis: Any, rows: dict[str, list[dict[str, float]]], label: str, colour: str) -> None:
    spreads = [Spread.of([s[PLOTTED] for s in seeds]) for seeds in rows.values()]
    axis.errorbar(
        range(len(rows)), [s.mean for s in spreads], [s.deviation for s in spreads],
        marker="o", capsize=3, label=label, color=colour,
    )  # fmt: skip
    axis.set_xticks(range(len(rows)), list(rows))
