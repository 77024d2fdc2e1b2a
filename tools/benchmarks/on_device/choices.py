# SPDX-License-Identifier: Apache-2.0
"""What a config may choose, at one size: time, memory, and how far the numbers move.

Of a step of stage one: what the backward pass computes again, what computes attention, and the
type; each against the same step in float32, with XLA's attention and nothing computed again. Of
starting: compiling the step, and reading it back.
"""

import time
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from tools.benchmarks.on_device import blocks, cases
from tools.benchmarks.on_device.bench import Bench
from tools.benchmarks.on_device.blocks import Clock
from tools.benchmarks.on_device.workload import Workload

TRUTH = "float32, remat none, xla"
_CHOICES = {
    TRUTH: ("float32", "none", "xla"),
    "bfloat16, remat none": ("bfloat16", "none", "auto"),
    "bfloat16, remat products": ("bfloat16", "products", "auto"),
    "bfloat16, remat layers": ("bfloat16", "layers", "auto"),
    "bfloat16, remat products, xla": ("bfloat16", "products", "xla"),
}
_FOLDER = "jax_compilation_cache_dir"
_CACHE = {
    "jax_enable_compilation_cache": True,
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}


def run(bench: Bench, clock: Clock) -> dict[str, Any]:
    """All of `_CHOICES`, in turns.

    Args:
      bench: where.
      clock: of this part.
    """
    programs, noted, first, left_out = {}, {}, {}, {}
    chosen = list(_CHOICES.items())
    for number, (name, choice) in enumerate(chosen):
        if number > 1 and clock.left() < 0:
            left_out[name] = "the time was over before it was compiled"
            continue
        work = _workload(bench, *choice)
        compiling, taken = work.compile()
        config = work.setup.config.model
        noted[name] = {
            "dtype": config.dtype,
            "remat": config.remat,
            "attention": config.attention,
            "compile_s": compiling,
            "step_gb": taken / 1e9,
        }
        values = work.step(work.placed)
        first[name] = {kind: float(values[kind]) for kind in ("loss", "gradient_norm")}
        programs[name] = work.on_device()
    turns = blocks.in_turns(programs, bench.scale.steps, bench.scale.blocks, clock)
    for name, measured in turns.summary().items():
        noted[name] |= measured
    for name, values in first.items():
        for kind, value in values.items():
            truth = first[TRUTH][kind]
            noted[name][f"{kind}_error"] = abs(value - truth) / abs(truth)
    return {
        "tower": cases.tower(cases.VIT_B1, bench.scale),
        "batch": cases.batch(cases.VIT_B1, bench.scale),
        "steps_a_block": turns.steps,
        "programs": noted,
        "left_out": left_out | turns.left_out,
    }


def _workload(bench: Bench, dtype: str, remat: str, attention: str) -> Workload:
    config = cases.load(
        cases.VIT_B1, bench.scale, str(bench.data), str(bench.folder / "unused"),
        f"model.dtype={dtype}", f"model.remat={remat}", f"model.attention={attention}",
    )  # fmt: skip
    return Workload(config, bench.mesh)


def starting(bench: Bench, clock: Clock) -> dict[str, Any]:
    """Seconds to trace the step of stage two, to compile it, and to read it from a folder.

    Args:
      bench: where.
      clock: of this part; it is short, and not asked.
    """
    case = cases.VIT_B2
    config = cases.load(case, bench.scale, str(bench.data), str(bench.folder / "unused"))
    work = Workload(config, bench.mesh, cases.rows(case, bench.scale))
    before = {name: getattr(jax.config, name) for name in (*_CACHE, _FOLDER)}
    folder = bench.folder / "programs"
    try:
        keep_programs(folder)
        jax.clear_caches()
        traced, cold = _compiled(work)
        kept = _size(folder)
        jax.clear_caches()
        _, warm = _compiled(work)
    finally:
        _set(before)
    return {
        "tower": cases.tower(case, bench.scale),
        "trace_s": traced,
        "cold_compile_s": cold,
        "warm_compile_s": warm,
        "kept_mb": kept / 1e6,
        "left_out": {} if kept else {"warm compile": "jax has kept no program"},
    }


def keep_programs(folder: Path) -> None:
    """Has jax keep what it compiles from here on."""
    _set(_CACHE | {_FOLDER: str(folder)})


def _set(values: dict[str, Any]) -> None:
    for name, value in values.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # it has noted where it writes, and whether


def _compiled(work: Workload) -> tuple[float, float]:
    """Seconds of tracing, and of what follows it."""
    began = time.perf_counter()
    lowered = work.lowered()
    traced = time.perf_counter()
    lowered.compile()
    return traced - began, time.perf_counter() - traced


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
