# SPDX-License-Identifier: Apache-2.0
"""What reads or makes large tables: the bank is built, a loss against it, ranking and search."""

import argparse
import dataclasses
import time
from typing import Any

import jax
import numpy as np

from cir_jax import config as configs
from cir_jax.evals.benchmarks import folder
from cir_jax.losses import in_bank
from cir_jax.retrieval import load
from cir_jax.retrieval.tables import Rows
from cir_jax.runtime import memory
from cir_jax.training import setup as setups
from tools.benchmarks import bank as bank_losses
from tools.benchmarks import evaluate, search
from tools.benchmarks.on_device import blocks, cases, peers
from tools.benchmarks.on_device.bench import Bench
from tools.benchmarks.on_device.blocks import Clock
from tools.benchmarks.on_device.workload import Workload

QUERIES, WIDTH = 256, 256
SIZES = (25_000, 1_000_000, 10_000_000)
DTYPES = ("float32", "bfloat16")
BLOCKS = (0, 4096, 16_384, 65_536)  # bank rows; 0 is what the project chooses
_ROOM = 2.5  # copies of a bank that drawing one may hold at a time


def building(bench: Bench, clock: Clock) -> dict[str, Any]:
    """Images per second into a bank, decoding included, and of the encoder alone.

    Args:
      bench: where.
      clock: of this part.
    """
    case = cases.VIT_B2
    config = cases.load(
        case, bench.scale, str(bench.data), str(bench.folder / "unused"),
        f"eval.batch={cases.batch(case, bench.scale)}",
    )  # fmt: skip
    work = Workload(config, bench.mesh, cases.rows(case, bench.scale))
    index, functions = work.state.fixed, work.setup.functions
    seconds = []
    for turn in range(3):  # the first one compiles
        if turn > 1 and clock.left() < seconds[-1]:
            break
        setup = dataclasses.replace(
            work.setup,
            config=configs.override(
                work.setup.config.copy_and_resolve_references(),
                [f"loss.bank_path={bench.folder / f'bank-{turn}'}"],
            ),
        )
        began = time.perf_counter()
        setups.build_bank(setup, work.data, index)
        seconds.append(time.perf_counter() - began)
    side, images = functions.image_size, len(work.data.triplets.images)
    pixels = np.zeros((config.eval.batch, side, side, 3), np.uint8)
    placed = work.place({"target_pixels": pixels})["target_pixels"]
    encode = jax.jit(functions.target)
    programs = {"encoder": blocks.timed(lambda: encode(index, placed), jax.block_until_ready)}
    turns = blocks.in_turns(programs, bench.scale.steps, bench.scale.blocks, clock)
    step = turns.median("encoder")
    return {
        "tower": config.model.tower,
        "images": images,
        "built_images_per_s": images / min(seconds[1:]),
        "encoder_images_per_s": None if step is None else config.eval.batch / step,
        "programs": turns.summary(),
        "left_out": turns.left_out,
    }


def evaluation(bench: Bench, clock: Clock) -> dict[str, Any]:
    """A whole evaluation of the made triplets, decoding included; and ranking alone, of as many
    queries and candidates as FashionIQ has, as in `bench.py evaluate`.

    Args:
      bench: where.
      clock: of this part; it is short, and not asked.
    """
    case = cases.VIT_B2
    config = cases.load(
        case, bench.scale, str(bench.data), str(bench.folder / "unused"),
        f"eval.batch={cases.batch(case, bench.scale)}",
    )  # fmt: skip
    work = Workload(config, bench.mesh, cases.rows(case, bench.scale))
    index, query = work.state.fixed, {**work.state.fixed, **work.state.trained}
    whole, seconds = folder.Benchmark(bench.data, "train", examples=0), 0.0
    for _ in range(2):  # the first one compiles
        retriever = load.from_parameters(
            work.setup.config, work.setup.functions, bench.mesh, index, query
        )
        began = time.perf_counter()
        whole.run(retriever)
        seconds = time.perf_counter() - began
    sizes = (20, 33, 16) if bench.scale.dry else (6_000, 15_000, 640)
    settings = {"devices": 1, "repeats": bench.scale.blocks}
    named = dict(zip(("queries", "candidates", "width"), sizes, strict=True))
    return {
        "tower": config.model.tower,
        "evaluated_queries_per_s": len(whole.task.triplets) / seconds,
        "evaluated_images_per_s": len(whole.task.names) / seconds,
        "ranking": evaluate.run(argparse.Namespace(**named, **settings)),
    }


def bank_loss(bench: Bench, clock: Clock) -> dict[str, Any]:
    """The loss and its gradient for the queries, at all of SIZES in both types, and by its block.

    Args:
      bench: where.
      clock: of this part.
    """
    found: list[dict[str, Any]] = []
    left_out: dict[str, str] = {}
    sizes = (64, 256) if bench.scale.dry else SIZES
    lines = [(rows, dtype, 0) for rows in sizes for dtype in DTYPES]
    lines += [(sizes[1], "bfloat16", block) for block in BLOCKS[1:]]
    there = memory.of_device([bench.device])
    for rows, dtype, block in lines:
        name = f"{rows} rows of {WIDTH}, {dtype}, block {block or 'chosen'}"
        need = _ROOM * 4 * rows * WIDTH
        if need > there > 0:
            left_out[name] = f"to draw it takes {need / 1e9:.0f} of {there / 1e9:.0f} GB"
        elif clock.left() < 0:
            left_out[name] = "the time was over"
        else:
            one = _loss(rows, dtype, block, bench, clock)
            left_out |= {f"{name}: {key}": why for key, why in one.pop("left_out").items()}
            found.append(one)
    return {"queries": QUERIES, "width": WIDTH, "sizes": found, "left_out": left_out}


def _loss(rows: int, dtype: str, block: int, bench: Bench, clock: Clock) -> dict[str, Any]:
    queries = cases.DRY_BATCH if bench.scale.dry else QUERIES
    args = argparse.Namespace(per_row=1, width=WIDTH, batch=queries, excluded=0, dtype=dtype)
    inputs = bank_losses.problem(rows, args, bench.mesh)

    def loss(query: jax.Array, bank: jax.Array, label: jax.Array) -> jax.Array:
        return in_bank.bank_loss(
            query, bank, label, bank_losses.TEMPERATURE, rows=rows, block=block, mesh=bench.mesh
        ).mean()

    program = jax.jit(jax.value_and_grad(loss)).lower(*inputs[:3]).compile()
    programs = {
        "ours": blocks.timed(lambda: program(*inputs[:3]), jax.block_until_ready),
    }
    theirs = None
    if not block and rows <= SIZES[1]:
        theirs = peers.bank_loss(rows, WIDTH, queries, dtype, bench)
    if theirs is not None:
        programs[peers.PREFIX + dtype] = theirs
    turns = blocks.in_turns(
        programs, bench.scale.steps, bench.scale.blocks, clock, may_fail=(peers.PREFIX + dtype,)
    )
    found = {
        "rows": rows,
        "dtype": dtype,
        "block": block or in_bank.block_size(queries, WIDTH, bench.mesh),
        "programs": turns.summary(),
        "bank_gb": inputs[1].nbytes / 1e9,
        "temporaries_mb": program.memory_analysis().temp_size_in_bytes / 1e6,
        "left_out": turns.left_out,
    }
    step = turns.median("ours")
    if step is not None:
        found["tflop_per_s"] = 4 * queries * rows * WIDTH / step / 1e12
        if bench.bandwidth:
            found["share_of_bandwidth"] = inputs[1].nbytes / step / bench.bandwidth
    if dtype == "float32" and rows <= SIZES[0]:
        found |= bank_losses.rounding(inputs, args, bench.mesh)
    return found


def searching(bench: Bench, clock: Clock) -> dict[str, Any]:
    """The best ten images of an index for 1 and for 32 queries, from the host and back to it.

    Args:
      bench: where.
      clock: of this part.
    """
    images, width = (40, 16) if bench.scale.dry else (250_000, 512)
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((images, 1, width), np.float32)
    rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
    queries = rng.standard_normal((32, width), np.float32)
    queries /= np.linalg.norm(queries, axis=-1, keepdims=True)
    ways = {"exact": search.embedded_search(Rows(rows), bench.mesh)}
    if bench.device.platform != "cpu":
        ways["approximate"] = search.embedded_search(Rows(rows), bench.mesh, exact=False)
    programs, recall = {}, {}
    best = np.argsort(-(rows[:, 0] @ queries.T), axis=0)[: search.BEST].T
    for name, way in ways.items():
        found = way(queries)[0]
        same = sum(len(np.intersect1d(*pair)) for pair in zip(best, found, strict=True))
        recall[name] = same / best.size
        for count in (1, 32):
            part = queries[:count]
            programs[f"{name}, {count} queries"] = blocks.timed(
                lambda way=way, part=part: way(part), lambda answer: None
            )
    turns = blocks.in_turns(programs, bench.scale.steps, bench.scale.blocks, clock)
    return {
        "images": images,
        "width": width,
        "recall": recall,
        "programs": turns.summary(),
        "left_out": turns.left_out,
    }
