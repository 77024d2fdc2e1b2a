# SPDX-License-Identifier: Apache-2.0
"""The loop: build, restore, step, evaluate, save. It names no model, data set or stage.

The one visible path of the project is main -> train.train -> step -> tx.update.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from cir_jax import evals, positives, step
from cir_jax.config import to_json
from cir_jax.data import pipeline, tokens
from cir_jax.data.pixels import Preprocess
from cir_jax.errors import UserError
from cir_jax.evals import report
from cir_jax.evals.retrieval import Retriever
from cir_jax.models import contract
from cir_jax.negatives import bank as banks
from cir_jax.runtime import checkpoint, encode, interrupts, metrics, optim, progress, sharding, start
from cir_jax.runtime import mesh as meshes
from cir_jax.stages import contract as stages


@dataclass
class Run:
    """Everything a run is made of; built once by `build`, then only read."""

    config: ConfigDict
    mesh: jax.sharding.Mesh
    functions: contract.Functions
    stage: Any
    data: pipeline.TrainingData
    preprocess: Preprocess
    steps: int
    steps_per_epoch: int
    shardings: dict[str, Any]
    benchmark: Any = None


@dataclass
class State:
    """What changes: the arrays of a checkpoint, and its record."""

    fixed: contract.Params
    trained: contract.Params
    optimizer: Any
    step: int = 0
    seconds: float = 0.0  # spent in training steps, evaluation and saving left out
    best: float | None = None
    history: list[dict[str, Any]] = field(default_factory=list)  # one entry per evaluation
    data: dict[str, Any] | None = None  # position of the input pipeline


def train(config: ConfigDict) -> dict[str, Any]:
    """Trains one stage from where the run folder stands, and returns its results.

    Args:
      config: a locked config, see configs/base.py.

    Returns:
      {"workdir", "step", "seconds", "best", "history", "scores"}, as written to results.json.

    Raises:
      UserError: input that cannot be used; nothing is written over.
    """
    run = build(config)
    state, optimizer = start.state(run, State)
    progress.say(_summary(run, state))
    bank = _bank(run, state) if run.stage.needs_bank else None
    logger = metrics.Logger(config.workdir, state.step)
    keep = checkpoint.Checkpoints(Path(config.workdir) / checkpoint.LAST, config.checkpoint.keep)
    try:
        _loop(run, state, optimizer, bank, logger, keep)
    finally:
        keep.close()
        logger.close()
    return report.write_run(run, state)


def build(config: ConfigDict) -> Run:
    """Reads the data and builds the model and the stage; checks everything that can be checked."""
    mesh = meshes.make(config.mesh.data, config.mesh.model)
    meshes.check_batch(config.batch, mesh)
    functions = contract.build(config.model)
    stage = stages.load(config.stage).Stage.from_config(config, functions, mesh)
    benchmark = evals.build(config)
    sets = positives.load(config, captions=stage.fields == ("text", "target_pixels"))
    data = pipeline.prepare(
        sets,
        tokens.load(functions.module.TOKENIZER, config.model.context),
        on_missing=config.data.on_missing,
        on_long=config.data.on_long,
        optimized=config.data.optimized,
    )
    per_epoch = pipeline.steps_per_epoch(data, config.batch)
    return Run(
        config=config,
        mesh=mesh,
        functions=functions,
        stage=stage,
        data=data,
        preprocess=Preprocess(functions.image_size, config.data.pad, config.data.target_ratio),
        steps=config.steps or config.epochs * per_epoch,
        steps_per_epoch=per_epoch,
        shardings=sharding.parameter_shardings(functions, mesh),
        benchmark=benchmark,
    )
