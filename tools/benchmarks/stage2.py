# SPDX-License-Identifier: Apache-2.0
"""One step of stage two against the released step, written in plain PyTorch.

Both train the query side of a model (random weights of its shape) against a bank: forward, bank
loss, backward, AdamW with the released settings, float32. The PyTorch step does what the released
code does: texts of full length, the bank copied to the device of the loss at every step (a copy
within memory on a CPU), and for SPRC a loop over the queries. Ours packs the texts where the model
lets it, or cuts their padding, scores all queries block by block and accumulates the gradient in
the same pass. Beside whole steps it times their parts: the update of the parameters and moments,
the gradient of the token embedding, and the bank loss. Needs the extra `torch`.
"""

import argparse
import dataclasses
import functools
import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cir_jax import config as configs
from cir_jax import contract
from cir_jax.bank import bank as banks
from cir_jax.data import packing, tokens
from cir_jax.losses import in_bank
from cir_jax.runtime import mesh as meshes
from cir_jax.runtime import optim, sharding
from cir_jax.training import stage as stages
from cir_jax.training import step
from tools.benchmarks import timing
from tools.benchmarks.stage2_models import texts
from tools.benchmarks.stage2_models.contract import Problem

HELP = "a step of stage two against the released step in PyTorch"
MODELS = ("clip_sum", "blip", "sprc")
PACKED, CUT, PADDED = "packed", "padding cut", "full length"  # texts of our steps
EMBEDDING = "text/token_embedding"
TEMPERATURE = 0.02


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
    problem = problem_of(released, functions, args.batch, rows)
    cut = tokens.fit(int(problem.lengths.max()), released.PADDED, config.data.text_lengths)
    ours = _Ours(config, functions, problem)
    variants = _texts(ours, released.PADDED, cut)
    first, taken = next(iter(variants.items()))  # what a run does
    programs = {name: ours.step(text) for name, text in variants.items()}
    steps = {**programs, "PyTorch": released.released(tower, problem)}
    parts = {"update": ours.update(), "bank loss": ours.bank_loss()}
    if EMBEDDING in ours.trained:
        parts["token embedding"] = ours.embedding(taken)
    seconds = timing.alternate(steps | parts, args.repeats)
    shown = [
        (name, float(np.median(x)), timing.ratio(seconds, "PyTorch", name))
        for name, x in seconds.items()
    ]
    timing.table(("step", "median s", "PyTorch / it"), shown[: len(steps)])
    timing.table(
        ("part of it", "median s", f"share of {first!r}"),
        [
            (name, second, timing.ratio(seconds, name, first))
            for name, second, _ in shown[len(steps) :]
        ],
    )
    return {
        "model": args.model,
        "tower": tower,
        "batch": args.batch,
        "bank": list(problem.targets.shape),
        "tokens": cut,
        "times_faster": timing.ratio(seconds, "PyTorch", first),
        "times_faster_cut": timing.ratio(seconds, "PyTorch", CUT),
        "times_faster_padded": timing.ratio(seconds, "PyTorch", PADDED),
        "parts": {name: timing.ratio(seconds, name, first) for name in parts},
        **_real(),
    }


def _real() -> dict[str, Any]:
    """The share of tokens in what is computed, on one and on 8 devices."""
    found = {
        (kind, batch, devices): texts.packed(kind, batch, devices)
        for kind in texts.KINDS
        for batch in (32, 256)
        for devices in (1, 8)
    }
    timing.table(
        ("texts of", "batch", "devices", "tokens in packed", "in cut batches", "programs"),
        [(*key, x.real, x.padded, len(x.shapes)) for key, x in found.items()],
    )
    return {"real_tokens": min(x.real for x in found.values())}


class _WithoutDropout(contract.Functions):
    """The PyTorch step has none, and its random numbers would be a part of what is timed."""

    def compose(
        self, params: Any, reference: jax.Array, text: jax.Array, key: jax.Array | None = None
    ) -> jax.Array:
        return super().compose(params, reference, text)


def problem_of(
    released: ModuleType, functions: contract.Functions, batch: int, rows: int
) -> Problem:
    """Random values of the shapes of a model.

    Args:
      released: the module of the released step.
      functions: the model.
      batch: queries.
      rows: images in the bank.
    """
    rng = np.random.default_rng(0)
    lengths = texts.lengths("FashionIQ", batch)
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
    return Problem(ids, lengths, targets, references, label)


class _Ours:
    """The step as the trainer makes it, and its parts; all train the same parameters."""

    def __init__(self, config: Any, functions: contract.Functions, problem: Problem):
        mesh = meshes.make()
        self.mesh, self.functions, self.problem = mesh, functions, problem
        self.stage = stages.load(config.stage).Stage.from_config(config, functions, mesh)
        params = sharding.place(functions.init(0), sharding.parameter_shardings(functions, mesh))
        paths = stages.trainable(self.stage, functions)
        start = {p: jnp.float32(x) for p, x in self.stage.extra.items()}
        self.trained = {p: start[p] if p in start else params.pop(p) for p in paths}
        # What index and query share is copied: the trained leaves are given away at every step.
        self.fixed = params | {p: x + 0 for p, x in self.trained.items() if p not in start}
        self.optimizer = optim.build(config.optim, paths, 1000)
        self.state = jax.jit(self.optimizer.init)(self.trained)
        # What goes in a second time must lie as it came out, or the step is compiled again.
        self.where = jax.tree.map(lambda x: x.sharding, (self.trained, self.state))
        self.step_of = step.make(self.stage, functions, self.optimizer, 1, self.where)
        rows = {"targets": problem.targets, "references": problem.references}
        self.bank = banks.place(rows, mesh)

    def packed(self) -> packing.Packed:
        """The texts, packed."""
        sizes = texts.sizes("FashionIQ", len(self.problem.ids), self.mesh.shape[meshes.DATA])
        each = zip(self.problem.ids, self.problem.lengths, strict=True)
        return packing.pack([row[:length] for row, length in each], sizes, 0)

    def step(self, text: Any) -> Callable[[], Any]:
        """A whole step with these texts."""
        count = len(self.problem.ids)
        batch = {
            "text": text,
            "reference_row": np.arange(count, dtype=np.int32),
            "target_id": self.problem.label,
            "source_id": np.zeros(count, np.int32),
        }
        batch = jax.device_put(batch, meshes.batch_sharding(self.mesh))
        key = jax.random.key(0)

        def one() -> Any:
            self.trained, self.state, values = self.step_of(
                self.trained, self.state, self.fixed, batch, self.bank, key
            )
            return values["loss"]

        return one

    def update(self) -> Callable[[], Any]:
        """The optimizer alone, with gradients that are there."""

        out = (*self.where, None)

        @functools.partial(jax.jit, donate_argnums=(0, 1), out_shardings=out)
        def program(trained: Any, state: Any, grads: Any) -> Any:
            norm = optax.tree.norm(grads)
            updates, new = self.optimizer.update(grads, state, trained)
            new_trained = optax.apply_updates(trained, updates)
            kept = optax.tree.where(jnp.isfinite(norm), (new_trained, new), (trained, state))
            return *kept, norm

        grads = jax.tree.map(lambda x: 0 * x + 1e-4, self.trained)

        def one() -> Any:
            self.trained, self.state, norm = program(self.trained, self.state, grads)
            return norm

        return one

    def embedding(self, text: Any) -> Callable[[], Any]:
        """The gradient of the token embedding alone, from those of its rows."""
        ids = text.tokens if isinstance(text, packing.Packed) else text
        shape = self.trained[EMBEDDING].shape
        rows = jnp.ones((*ids.shape, shape[1]), jnp.float32)
        program = jax.jit(lambda rows: jnp.zeros(shape).at[ids].add(rows))
        return lambda: program(rows)

    def bank_loss(self) -> Callable[[], Any]:
        """The loss against the bank alone, and its gradient for queries that are there."""
        label, bank = jnp.asarray(self.problem.label), self.bank
        query = jnp.asarray(self.problem.targets[: len(label), 0])

        def loss(query: jax.Array, targets: jax.Array) -> jax.Array:
            losses = in_bank.bank_loss(
                query,
                targets,
                label,
                TEMPERATURE,
                mesh=self.mesh,
                per_row=self.functions.target_shape[0],
                rows=bank.rows,
                block=self.stage.block,
            )
            return losses.mean()

        program = jax.jit(jax.value_and_grad(loss))
        return lambda: program(query, bank.targets)


def _texts(ours: _Ours, padded: int, cut: int) -> dict[str, Any]:
    """Name -> the texts as a step takes them; the first is what a run does."""
    ids, packs = ours.problem.ids, ours.functions.inputs.packs_texts
    found = {PACKED: ours.packed()} if packs else {}
    return found | {CUT: ids[:, :cut], PADDED: ids[:, :padded]}
