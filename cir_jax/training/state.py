# SPDX-License-Identifier: Apache-2.0
"""Where a run starts from: one function, one order. Resume > init_from > random parameters."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cir_jax import progress, weights
from cir_jax.config import from_json, to_json
from cir_jax.errors import UserError
from cir_jax.params import Params
from cir_jax.runtime import checkpoint, optim, sharding
from cir_jax.runtime import mesh as meshes
from cir_jax.training import stage as stages

# Keys that may differ between a checkpoint and the run that resumes it: where and how it runs, how
# long and what it shows, but nothing that changes a step already made.
_FREE = (
    "workdir", "init_from", "epochs", "steps", "max_seconds", "log_every", "mesh", "eval",
    "checkpoint", "model.remat", "model.dtype", "data.root", "data.threads", "data.cache_pixels",
    "data.captions", "data.optimized", "loss.bank_path", "loss.bank_block",
    "loss.references",
)  # fmt: skip


def state(run: Any, make: Any) -> tuple[Any, optax.GradientTransformation]:
    """The state a run starts in, and its optimizer.

    Args:
      run: a `train.Run`.
      make: `train.State`.
    """
    abstract, optimizer = _abstract(run)
    last = checkpoint.Checkpoints(Path(run.config.workdir) / checkpoint.LAST)
    found = checkpoint.restore_newest(last, abstract, lambda record: _check_same(run, record))
    last.close()
    if found:
        step, tree, record = found
        unread = run.config.init_from and "; init_from is not read again"
        progress.say(f"resuming {run.config.workdir} at step {step}{unread}")
        kept = {k: record[k] for k in ("seconds", "best", "history", "data")}
        kept["source"] = record.get("source")  # runs of before this was noted lack it
        return make(**tree, step=step, **kept), optimizer
    index, query, source = _fresh(run)
    paths = list(abstract["trained"])
    extra = run.stage.extra
    trained = {p: query[p] if p in query else np.float32(extra[p]) for p in paths}
    fixed = {p: index[p] for p in abstract["fixed"]}
    trained = sharding.place(trained, run.shardings)
    initial = jax.jit(
        optimizer.init,
        out_shardings=sharding.optimizer_shardings(optimizer, trained, run.shardings, run.mesh),
    )
    placed = sharding.place(fixed, run.shardings)
    return make(placed, trained, initial(trained), source=source), optimizer


def _fresh(run: Any) -> tuple[Params, Params, dict[str, Any] | None]:
    """(index, query, where they came from)."""
    if run.config.init_from:
        one_tree = run.stage.index_is_query
        found = weights.load(
            run.config.init_from,
            run.functions,
            seed=run.config.seed,
            kept=() if one_tree else run.functions.index_paths,
        )
        weights.carry(found.files, run.config.workdir)
        if one_tree:
            _say_what_is_left(run, found)
        return found.index, found.query, found.record
    if not run.stage.index_is_query:
        progress.say(
            "warning: stage two starts from random parameters; its bank means nothing. "
            "Set init_from to the folder of a stage-one run, or to weights"
        )
    params = {p: np.asarray(x) for p, x in run.functions.init(run.config.seed).items()}
    return params, params, None


def _say_what_is_left(run: Any, found: weights.Weights) -> None:
    """Of weights with two trees, as stage two leaves them, a stage with one takes the query's."""
    index, query = found.index, found.query
    apart = [
        p
        for p in run.functions.index_paths
        if index[p] is not query[p] and not np.array_equal(index[p], query[p])
    ]
    if apart:
        progress.say(
            f"warning: {run.config.init_from} holds {', '.join(apart[:3])} ({len(apart)} leaves in "
            "all) twice, as stage two leaves them; this stage goes on from those of the query, and "
            "those that made the bank are dropped"
        )


def _abstract(run: Any) -> tuple[dict[str, Any], optax.GradientTransformation]:
    """Shapes and shardings of the tree of a checkpoint of this run, and the optimizer."""
    scalar = jax.ShapeDtypeStruct((), jnp.float32)
    paths = stages.trainable(run.stage, run.functions)
    trained = {p: run.functions.abstract.get(p, scalar) for p in paths}
    fixed = {
        p: s
        for p, s in run.functions.abstract.items()
        if not (run.stage.index_is_query and p in trained)
    }
    optimizer = optim.build(run.config.optim, paths, run.steps)
    default = meshes.replicated(run.mesh)
    places = {p: run.shardings.get(p, default) for p in {**fixed, **trained}}
    moments = sharding.optimizer_shardings(optimizer, trained, run.shardings, run.mesh)
    tree = {
        "fixed": {p: _with(s, places[p]) for p, s in fixed.items()},
        "trained": {p: _with(s, places[p]) for p, s in trained.items()},
        "optimizer": jax.tree.map(_with, jax.eval_shape(optimizer.init, trained), moments),
    }
    return tree, optimizer


def _check_same(run: Any, record: dict[str, Any]) -> None:
    """Raises UserError if the checkpoint was made by a config that this run may not continue."""
    then = _flat(from_json(record["config"]).to_dict())
    now = _flat(from_json(to_json(run.config)).to_dict())
    changed = [
        f"{key}: {then.get(key)!r} -> {now.get(key)!r}"
        for key in sorted({*then, *now})
        if then.get(key) != now.get(key)
        and not any(key == free or key.startswith(free + ".") for free in _FREE)
    ]
    if changed:
        raise UserError(
            f"{run.config.workdir} holds a run of another config ({'; '.join(changed[:5])}); "
            "give another workdir, or the same values to resume it"
        )


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= (
            _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat


def _with(shape: jax.ShapeDtypeStruct, place: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=place)
