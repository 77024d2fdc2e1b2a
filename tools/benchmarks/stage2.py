# SPDX-License-Identifier: Apache-2.0
"""One step of stage two against the released step, written in plain PyTorch.

Both train the query side of a model (random weights of its shape) against a bank: forward, bank
loss, backward, AdamW with the released settings, float32. The PyTorch step does what the released
code does: texts of full length, the bank copied to the device of the loss at every step (a copy
within memory on a CPU), and for SPRC a loop over the queries. Ours cuts the padding, scores all
queries block by block and accumulates the gradient in the same pass. Needs the extra `torch`.
"""

import argparse
import dataclasses
import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import numpy as np

from cir_jax import config as configs
from cir_jax import contract
from cir_jax.bank import bank as banks
from cir_jax.data import tokens
from cir_jax.runtime import mesh as meshes
from cir_jax.runtime import optim, sharding
from cir_jax.training import stage as stages
from cir_jax.training import step
from tools.benchmarks import timing
from tools.benchmarks.stage2_models.contract import Problem

HELP = "a step of stage two against the released step in PyTorch"
MODELS = ("clip_sum", "sprc")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the benchmark."""
    parser.add_argument("--model", default="clip_sum", choices=MODELS, help="whose query trains")
    parser.add_argument("--tower", default="", help="size (default: the model's, see its module)")
    parser.add_argument("--batch", type=int, default=32, help="queries per step")
    parser.add_argument("--rows", type=int, default=0, help="images in the bank (default: real)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Times both, in turns."""
    released = importlib.import_module(f"tools.benchmarks.stage2_models.{args.model}")
    tower, rows = args.tower or released.TOWER, args.rows or released.ROWS
    config = configs.load(
        released.CONFIG,
        [f"model.tower={tower}", "model.dtype=float32", f"loss.temperature={released.TEMPERATURE}",
         "loss.references=device", f"batch={args.batch}"],
    )  # fmt: skip
    built = contract.build(config.model)
    parts = {field.name: getattr(built, field.name) for field in dataclasses.fields(built)}
    functions = _WithoutDropout(**parts)
    problem = _problem(released, functions, args.batch, rows)
    cut = tokens.fit(problem.longest, released.PADDED, config.data.text_lengths)
    padded = f"ours, {released.PADDED} tokens"
    programs = {
        "ours": _ours(config, functions, problem, cut),
        padded: _ours(config, functions, problem, released.PADDED),
        "PyTorch": released.released(tower, problem),
    }
    seconds = timing.alternate(programs, args.repeats)
    timing.table(
        ("step", "median s", "PyTorch / it"),
        [
            (name, float(np.median(x)), timing.ratio(seconds, "PyTorch", name))
            for name, x in seconds.items()
        ],
    )
    return {
        "model": args.model,
        "tower": tower,
        "batch": args.batch,
        "bank": list(problem.targets.shape),
        "tokens": cut,
        "times_faster": timing.ratio(seconds, "PyTorch", "ours"),
        "times_faster_padded": timing.ratio(seconds, "PyTorch", padded),
    }


class _WithoutDropout(contract.Functions):
    """The PyTorch step has none, and its random numbers would be a part of what is timed."""

    def compose(
        self, params: Any, reference: jax.Array, text: jax.Array, key: jax.Array | None = None
    ) -> jax.Array:
        return super().compose(params, reference, text)


def _problem(released: ModuleType, functions: contract.Functions, batch: int, rows: int) -> Problem:
    rng = np.random.default_rng(0)
    lengths = rng.integers(8, 23, batch)  # captions of 8 to 22 tokens, start and end included
    ids = np.zeros((batch, released.PADDED), np.int32)
    for row, length in zip(ids, lengths, strict=True):
        row[:length] = [
            released.FIRST, *rng.integers(1, released.WORDS, length - 2), released.LAST
        ]  # fmt: skip
    targets = rng.standard_normal((rows, *functions.target_shape), np.float32)
    targets /= np.linalg.norm(targets, axis=-1, keepdims=True)
    shape = (batch, *functions.reference_shape)
    references = rng.standard_normal(shape, np.float32)
    references *= released.REFERENCE_SCALE * shape[-1] ** -0.5
    label = rng.integers(0, rows, batch).astype(np.int32)
    return Problem(ids, int(lengths.max()), targets, references, label)


def _ours(
    config: Any, functions: contract.Functions, problem: Problem, length: int
) -> Callable[[], Any]:
    mesh = meshes.make()
    stage = stages.load(config.stage).Stage.from_config(config, functions, mesh)
    places = sharding.parameter_shardings(functions, mesh)
    params = sharding.place(functions.init(0), places)
    paths = stages.trainable(stage, functions)
    start = {p: jax.numpy.float32(x) for p, x in stage.extra.items()}
    trained = {p: start[p] if p in start else params.pop(p) for p in paths}
    # What index and query share is copied: the trained leaves are given away at every step.
    fixed = params | {p: x + 0 for p, x in trained.items() if p not in start}
    optimizer = optim.build(config.optim, paths, 1000)
    kept = {"trained": trained, "state": jax.jit(optimizer.init)(trained)}
    # What goes in a second time must lie as it came out, or the step is compiled again.
    where = jax.tree.map(lambda x: x.sharding, (kept["trained"], kept["state"]))
    update = step.make(stage, functions, optimizer, 1, where)
    bank = banks.place({"targets": problem.targets, "references": problem.references}, mesh)
    count = len(problem.ids)
    each = np.arange(count, dtype=np.int32)
    batch = {
        "text": problem.ids[:, :length],
        "reference_row": each,
        "target_id": problem.label,
        "source_id": np.zeros(count, np.int32),
    }
    batch = jax.device_put(batch, meshes.batch_sharding(mesh))
    key = jax.random.key(0)

    def one() -> Any:
        kept["trained"], kept["state"], values = update(
            kept["trained"], kept["state"], fixed, batch, bank, key
        )
        return values["loss"]

    return one
