# SPDX-License-Identifier: Apache-2.0
"""Steps of a config, fed in three ways and by a loop that waits, beside the same in PyTorch."""

from typing import Any

from cir_jax.runtime import memory
from tools.benchmarks.on_device import blocks, cases, peers
from tools.benchmarks.on_device.bench import Bench
from tools.benchmarks.on_device.blocks import Clock
from tools.benchmarks.on_device.cases import Case
from tools.benchmarks.on_device.workload import DECODED, DEVICE, KEPT, Workload


def run(case: Case, bench: Bench, clock: Clock) -> dict[str, Any]:
    """Measures a case.

    Args:
      case: which.
      bench: where, and how much.
      clock: of this part.
    """
    walked = case.config, cases.tower(case, bench.scale)
    if walked not in bench.walked:
        bench.walked[walked] = _measured(case, bench, clock)
    return bench.walked[walked]


def _measured(case: Case, bench: Bench, clock: Clock) -> dict[str, Any]:
    config = cases.load(case, bench.scale, str(bench.data), str(bench.folder / "unused"))
    work = Workload(config, bench.mesh, cases.rows(case, bench.scale))
    compiling, taken = work.compile()
    sizes = work.warm(bench.scale.curve)
    programs = work.programs(bench.folder / "cache")
    beside, missing = peers.of(case, work, bench)
    turns = blocks.in_turns(
        programs | beside, bench.scale.steps, bench.scale.blocks, clock, (DEVICE,), tuple(beside),
        peers.first(case),
    )  # fmt: skip
    found = turns.summary()
    for one in found.values():
        one["triplets_per_s"] = 1e3 * work.batch / one["step_ms"]
    config = work.setup.config
    return {
        "batch": work.batch,
        "tower": config.model.tower,
        "dtype": work.setup.functions.config.dtype,
        "attention": config.model.attention,
        "remat": config.model.remat,
        "bank_rows": work.rows,
        "tokens_of_a_text": work.tokens(),
        "steps_a_block": turns.steps,
        "programs": found,
        **efficiency(work, turns, bench),
        "compile_s": compiling,
        "sizes_of_batches": sizes,
        "step_gb": taken / 1e9,
        "peak_gb_so_far": memory.peak([bench.device]) / 1e9,
        "left_out": turns.left_out | missing,
    }


def efficiency(work: Workload, turns: blocks.Turns, bench: Bench) -> dict[str, Any]:
    """FLOP by formula, the share of the peak, and the shares that wait for input."""
    flop, step = work.flop(), turns.median(DEVICE)
    found: dict[str, Any] = {"tflop_of_a_step": None if flop is None else flop / 1e12}
    if flop is not None and step is not None and bench.peak:
        found["mfu"] = flop / step / bench.peak
    for name, key in ((DECODED, "input_wait"), (KEPT, "input_wait_kept")):
        fed = turns.median(name)
        if step is not None and fed is not None:
            found[key] = max(1 - step / fed, 0.0)
    theirs = [name for name in turns.seconds if name.startswith(peers.PREFIX)]
    if step is not None:
        ratios = {name: (turns.median(name) or 0.0) / step for name in theirs}
        found["times_faster_than"] = ratios
    return found
