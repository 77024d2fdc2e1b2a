# SPDX-License-Identifier: Apache-2.0
"""Where a run starts from: one function, one order. Resume > init_from > random parameters."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from cir_jax.config import from_json, to_json
from cir_jax.errors import UserError
from cir_jax.models.contract import Functions, Params
from cir_jax.runtime import checkpoint, optim, progress, sharding
from cir_jax.runtime import mesh as meshes
from cir_jax.stages import contract as stages

# Keys that may differ between a checkpoint and the run that resumes it: where and how it runs, how
# long and what it shows, but nothing that changes a step already made.
_FREE = (
    "workdir", "init_from", "epochs", "steps", "max_seconds", "log_every", "mesh", "eval",
    "checkpoint", "model.remat", "model.dtype", "data.root", "data.threads", "data.cache_pixels",
    "data.captions", "data.optimized", "loss.bank_path", "loss.bank_block",
)  # fmt: skip


def config_of(workdir: str | Path, which: str = "best") -> ConfigDict:
    """The config a run was trained with.

    Raises:
      UserError: no such run or step.
    """
    checkpoints, step = checkpoint.find(workdir, which)
    return from_json(checkpoints.record(step)["config"])


def parameters(
    workdir: str | Path, functions: Functions, which: str = "best"
) -> tuple[Params, Params, dict[str, Any]]:
    """(index, query, record) of a run, on the host.

    Raises:
      UserError: no such run, or its parameters are not those of this model.
    """
    checkpoints, step = checkpoint.find(workdir, which)
    record = checkpoints.record(step)
    wanted = {
        name: {p: functions.abstract.get(p, jax.ShapeDtypeStruct((), jnp.float32)) for p in paths}
        for name, paths in record["paths"].items()
    }
    have, need = set(record["paths"]["fixed"]) | set(record["paths"]["trained"]), functions.abstract
    different = sorted((have ^ set(need)) - {stages.TEMPERATURE})
    different += [p for p, s in record["shapes"].items() if p in need and need[p].shape != tuple(s)]
    if different:
        trained_as = json.loads(record["config"])["model"]
        raise UserError(
            f"{workdir} holds {trained_as['name']} / {trained_as['tower']}, not this model: "
            f"{', '.join(different[:4])} differ ({len(different)} in all); "
            "give model.name and model.tower as that run has them"
        )
    placed = {
        name: _on(meshes.replicated(meshes.make()), leaves) for name, leaves in wanted.items()
    }
    tree = checkpoints.restore(step, placed, partial=True)
    query = {**tree["fixed"], **tree["trained"]}
    index = query if record["index_is_query"] else tree["fixed"]
    checkpoints.close()
    return _host(index), _host(query), record


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
        progress.say(f"resuming {run.config.workdir} at step {step}")
        kept = ("seconds", "best", "history", "data")
        return make(**tree, step=step, **{k: record[k] for k in kept}), optimizer
    index, query = _fresh(run)
    paths = list(abstract["trained"])
    extra = run.stage.extra
    trained = {p: query[p] if p in query else np.float32(extra[p]) for p in paths}
    fixed = {p: index[p] for p in abstract["fixed"]}
    trained = sharding.place(trained, run.shardings)
    initial = jax.jit(
        optimizer.init,
        out_shardings=sharding.optimizer_shardings(optimizer, trained, run.shardings, run.mesh),
    )
    return make(sharding.place(fixed, run.shardings), trained, initial(trained)), optimizer


def _fresh(run: Any) -> tuple[Params, Params]:
    if run.config.init_from:
        index, query, _ = parameters(run.config.init_from, run.functions)
        return index, query
    if not run.stage.index_is_query:
        progress.say(
            "warning: stage two starts from random parameters; its bank means nothing. "
            "Set init_from to the folder of a stage-one run"
        )
    params = _host(run.functions.init(run.config.seed))
    return params, params


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


def _on(place: Any, leaves: Params) -> Params:
    return {p: _with(s, place) for p, s in leaves.items()}


def _host(params: Params) -> Params:
    return {p: np.asarray(x) for p, x in params.items()}
