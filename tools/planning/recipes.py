# SPDX-License-Identifier: Apache-2.0
"""The table of every published recipe on a machine, as it stands in launch/README.md."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

MACHINES = ("v5e:4x4", "8xH100")
MODELS = ("clip_sum", "clip_combiner", "tgcir", "blip", "sprc")
HEAD = (
    "| Recipe | a device needs | bound | a step | the run | what makes it fit |",
    "|---|---|---|---|---|---|",
)
# (config, machine, changes) -> what `--json` prints.
Planner = Callable[[str, str, Sequence[str]], dict[str, Any]]


def configs(model: str = "") -> Iterator[str]:
    """The published recipes: each model on both data sets in both stages."""
    for name in MODELS:
        if model in ("", name):
            for data in ("fashioniq", "cirr"):
                for stage in (1, 2):
                    yield f"{name}:{data},stage={stage}"


def table(on: str, plan: Planner, model: str = "") -> str:
    """Markdown: a row for each recipe on the machine `on`.

    A recipe that does not fit is planned again with the first change that should make it fit; the
    row holds the numbers of that plan.
    """
    return "\n".join((*HEAD, *(row(config, on, plan) for config in configs(model))))


def row(config: str, on: str, plan: Planner) -> str:
    """One line of `table`."""
    first = plan(config, on, ())
    found, changes = first, ()
    if first["fits"] == "no":
        for remedy in first["remedies"]:
            if remedy["fits"]:
                changes = tuple(remedy["changes"])
                found = plan(config, on, changes)
                if found["fits"] != "no":
                    break
    need = _gigabytes(first)
    fit = {"yes": "fits", "perhaps": "may not fit"}.get(first["fits"], "")
    if first["fits"] == "no":
        fit = "does not fit; nothing in the config changes that"
        if found["fits"] != "no" and changes:
            fit = f"{' '.join(f'`{c}`' for c in changes)}: {_gigabytes(found)} GB"
    cells = (
        f"`{config}`",
        f"{need} of {first['limit_bytes'] / 1e9:.1f} GB",
        found["bound"],
        _time(found["step_seconds"]),
        _time(found["run_seconds"]),
        fit,
    )
    return f"| {' | '.join(cells)} |"


def _gigabytes(plan: dict[str, Any]) -> str:
    """What a run needs: "over" what a compiler refused, "about" what no compiler has seen."""
    needs = max(plan["step_bytes"], plan["evaluation_bytes"])
    word = "over " if plan["refused_bytes"] else "" if plan["compiled"] else "about "
    return f"{word}{needs / 1e9:.1f}"


def _time(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1e3:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
