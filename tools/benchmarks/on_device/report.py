# SPDX-License-Identifier: Apache-2.0
"""The table of what was measured on a device, and what was left out."""

import sys
from typing import Any

from tools.benchmarks import surroundings, timing

_SHOWN = ("mfu", "input_wait", "input_wait_kept", "compile_s", "step_gb", "loss_error",
          "gradient_norm_error", "temporaries_mb", "share_of_bandwidth", "bfloat16_loss_error",
          "bfloat16_gradient_error", "built_images_per_s", "encoder_images_per_s",
          "evaluated_queries_per_s", "evaluated_images_per_s", "time_ratio", "trace_s",
          "cold_compile_s", "warm_compile_s")  # fmt: skip


def show(parts: dict[str, dict[str, Any]], left_out: dict[str, str]) -> None:
    """Prints it to stderr.

    Args:
      parts: name -> what a part has returned.
      left_out: what was not measured, and why.
    """
    checks = [
        (name, _short(one["found"]), _short(one["allowed"]), "holds" if one["holds"] else "WRONG")
        for part in parts.values()
        for name, one in part.get("checks", {}).items()
    ]
    if checks:
        timing.table(("is it right?", "found", "allowed", ""), checks)
    rows = [row for name, part in parts.items() for row in _rows(name, part)]
    if rows:
        print(file=sys.stderr)
        timing.table(("part", "what", "ms a step", "spread", "blocks", "beside"), rows)
    for name, why in left_out.items():
        print(f"left out: {name}: {why}", file=sys.stderr)


def left_out(parts: dict[str, dict[str, Any]]) -> dict[str, str]:
    """What the parts themselves have left out, by part and program."""
    return {
        f"{part}: {name}": why
        for part, found in parts.items()
        for name, why in found.get("left_out", {}).items()
    }


def _rows(name: str, part: dict[str, Any]) -> list[tuple[Any, ...]]:
    rows = []
    for label, one in part.get("programs", {}).items():
        rows.append((name, label, *_times(one), _beside(one)))
    for one in part.get("sizes", []):
        label = f"{one['rows']:,} rows, {one['dtype']}, block {one['block']}"
        for number, (way, measured) in enumerate(one["programs"].items()):
            beside = "" if number else _beside(one)
            rows.append((name, f"{label}: {way}", *_times(measured), beside))
    if "ranking" in part:
        rows.append((name, "ranking alone / product", "", "", "", _beside(part["ranking"])))
    if beside := _beside(part):
        rows.append((name, "", "", "", "", beside))
    return rows


def _times(one: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(one.get(key, "") for key in ("step_ms", "spread", "blocks"))


def _beside(one: dict[str, Any]) -> str:
    shown = [f"{key} {_number(one[key])}" for key in _SHOWN if one.get(key) is not None]
    ratios = one.get("times_faster_than") or {}
    shown += [f"{ratio:.2f} times as fast as {name}" for name, ratio in ratios.items()]
    if one.get("surroundings", {}).get("beside_other_work"):
        shown.append(surroundings.MARK)
    return ", ".join(shown)


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.3g}"


def _short(value: Any) -> str:
    return f"{value:.1e}" if isinstance(value, float) else str(value)[:100]
