# SPDX-License-Identifier: Apache-2.0
"""What changes while a run trains, and where it starts. Resume > init_from > random parameters."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cir_jax import keys, progress, weights
from cir_jax.config import from_json, to_json
from cir_jax.data import fingerprints
from cir_jax.errors import UserError
from cir_jax.params import Params
from cir_jax.runtime import checkpoint, optim, sharding
from cir_jax.runtime import mesh as meshes
from cir_jax.training import from_scratch
from cir_jax.training import stage as stages
from cir_jax.training.setup import Data, Setup

# Keys that may differ between a checkpoint and the run that resumes it: where and how it runs, how
# long and what it shows, but nothing that changes a step already made.
_FREE = (
    "workdir", "init_from", "from_scratch", "epochs", "steps", "max_seconds", "log_every", "mesh",
    "eval", "checkpoint", "cluster", "model.remat", "model.attention", "model.dtype",
    "model.tokenizer", "data.root", "data.threads", "data.pixels", "data.captions",
    "data.caption_text_field", "data.caption_empty", "data.caption_duplicates", "data.optimized",
    "loss.bank_path", "loss.bank_block", "loss.references", "profile",
    "model.url", "model.per_request", "model.concurrency", "model.per_minute", "model.timeout",
    "model.wait", "model.key_variable", "model.cache",
)  # fmt: skip


@dataclass
class State:
    """The arrays of a checkpoint, and its record.

    Attributes:
      fixed: parameters that do not train, path -> array.
      trained: those that do, with the leaves that the stage adds.
      optimizer: its state.
      step: steps that were made, and of which it is known what they gave.
      seconds: in training steps; compiling, evaluating, saving and the bank are left out.
      waited: of these seconds, those in which the devices waited for input, in this process.
      best: the best selection score so far, in per cent.
      history: one entry per evaluation.
      data: position of the input pipeline.
      source: files, or run, that the first parameters came from; or the seed that drew them.
    """

    fixed: Params
    trained: Params
    optimizer: Any
    step: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    best: float | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    data: dict[str, Any] | None = None
    source: dict[str, Any] | None = None


def start(setup: Setup, data: Data) -> tuple[State, optax.GradientTransformation]:
    """The state a run starts in, and its optimizer.

    Args:
      setup: of the run.
      data: its triplets, and its steps, for schedules.

    Raises:
      UserError: the run folder holds a run of another config or of other data, its checkpoints are
        damaged, the weights are not this model's, or a model of full size has none to start from.
    """
    shapes, optimizer = abstract(setup, data.steps)

    def check(record: dict[str, Any]) -> None:
        _check_same(setup, record)
        _check_data(setup, data, record)

    last = checkpoint.Checkpoints(Path(setup.config.workdir) / checkpoint.LAST)
    found = checkpoint.restore_newest(last, shapes, check)
    last.close()
    if found:
        step, tree, record = found
        unread = setup.config.init_from and "; init_from is not read again"
        progress.say(f"resuming {setup.config.workdir} at step {step}{unread}")
        kept = {k: record[k] for k in ("seconds", "best", "history", "data")}
        kept["source"] = record.get("source")  # runs of before this was noted lack it
        return State(**tree, step=step, **kept), optimizer
    index, query, source = _fresh(setup)
    extra = setup.stage.extra
    begin = {p: query[p] if p in query else np.float32(extra[p]) for p in shapes["trained"]}
    trained = sharding.place(begin, setup.shardings)
    places = sharding.optimizer_shardings(optimizer, trained, setup.shardings, setup.mesh)
    initial = jax.jit(optimizer.init, out_shardings=places)(trained)
    fixed = sharding.place({p: index[p] for p in shapes["fixed"]}, setup.shardings)
    return State(fixed, trained, initial, source=source), optimizer


def _fresh(setup: Setup) -> tuple[Params, Params, dict[str, Any] | None]:
    """(index, query, where they came from)."""
    weights.keep_tokenizer(setup.config, setup.config.workdir)
    if setup.config.init_from:
        one_tree = setup.stage.index_is_query
        found = weights.load(
            setup.config.init_from,
            setup.functions,
            seed=setup.config.seed,
            kept=() if one_tree else setup.functions.index_paths,
        )
        weights.carry(found.files, setup.config.workdir)
        if one_tree:
            _say_what_is_left(setup, found)
        return found.index, found.query, found.record
    if not setup.stage.index_is_query and not getattr(setup.functions.module, "PLAIN", False):
        progress.say(
            "warning: stage two starts from random parameters; its bank means nothing. "
            "Set init_from to the folder of a stage-one run, or to weights"
        )
    from_scratch.check_size(setup.config, optim.size(setup.functions.abstract))
    params = {p: np.asarray(x) for p, x in setup.functions.init(setup.config.seed).items()}
    return params, params, {"from_scratch": True, "seed": setup.config.seed}


def _say_what_is_left(setup: Setup, found: weights.Weights) -> None:
    """Of weights with two trees, as stage two leaves them, a stage with one takes the query's."""
    index, query = found.index, found.query
    apart = [
        p
        for p in setup.functions.index_paths
        if index[p] is not query[p] and not np.array_equal(index[p], query[p])
    ]
    if apart:
        progress.say(
            f"warning: {setup.config.init_from} holds {', '.join(apart[:3])} ({len(apart)} leaves "
            "in all) twice, as stage two leaves them; this stage goes on from those of the query, "
            "and those that made the bank are dropped"
        )


def abstract(setup: Setup, steps: int) -> tuple[dict[str, Any], optax.GradientTransformation]:
    """Shapes and shardings of the tree of a checkpoint of this run, and the optimizer."""
    scalar = jax.ShapeDtypeStruct((), jnp.float32)
    paths = stages.trainable(setup.stage, setup.functions)
    trained = {p: setup.functions.abstract.get(p, scalar) for p in paths}
    fixed = {
        p: s
        for p, s in setup.functions.abstract.items()
        if not (setup.stage.index_is_query and p in trained)
    }
    optimizer = optim.build(setup.config.optim, paths, steps)
    default = meshes.replicated(setup.mesh)
    places = {p: setup.shardings.get(p, default) for p in {**fixed, **trained}}
    moments = sharding.optimizer_shardings(optimizer, trained, setup.shardings, setup.mesh)
    tree = {
        "fixed": {p: _with(s, places[p]) for p, s in fixed.items()},
        "trained": {p: _with(s, places[p]) for p, s in trained.items()},
        "optimizer": jax.tree.map(_with, jax.eval_shape(optimizer.init, trained), moments),
    }
    return tree, optimizer


def _check_same(setup: Setup, record: dict[str, Any]) -> None:
    """Raises UserError if the checkpoint was made by a config that this run may not continue."""
    then = keys.flat(from_json(record["config"]))
    now = keys.flat(from_json(to_json(setup.config)))
    changed = [
        f"{key}: {then.get(key)!r} -> {now.get(key)!r}"
        for key in sorted({*then, *now})
        if then.get(key) != now.get(key)
        and not any(key == free or key.startswith(free + ".") for free in _FREE)
    ]
    if changed:
        raise UserError(
            f"{setup.config.workdir} holds a run of another config ({'; '.join(changed[:5])}); "
            "give another workdir, or the same values to resume it"
        )


def _check_data(setup: Setup, data: Data, record: dict[str, Any]) -> None:
    """Raises UserError if the checkpoint was made with data that is another now."""
    workdir, then = setup.config.workdir, record.get("fingerprints")
    if then is None:
        progress.say(
            f"the last step in {workdir} was made before runs had checksums and noted their data: "
            "neither is checked"
        )
    elif differs := fingerprints.difference(then, data.fingerprints):
        raise UserError(
            f"{workdir} was trained on other data than data.root={setup.config.data.root} holds "
            f"now; these differ: {differs}. Bring back the files that it began with, or give "
            "another workdir"
        )


def _with(shape: jax.ShapeDtypeStruct, place: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=place)
