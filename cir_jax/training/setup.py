# SPDX-License-Identifier: Apache-2.0
"""Config -> the parts of a run. Everything that can be checked is checked here, before a step."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from cir_jax import contract, plugins, weights
from cir_jax.bank import bank as banks
from cir_jax.bank import build, files, references
from cir_jax.data import loader, pipeline, tokens
from cir_jax.data.pixels import Preprocess
from cir_jax.datasets import loading, unlabelled
from cir_jax.errors import UserError
from cir_jax.params import Params
from cir_jax.retrieval import load
from cir_jax.retrieval.retriever import Retriever
from cir_jax.runtime import encode, optim, sharding
from cir_jax.runtime import mesh as meshes
from cir_jax.training import stage as stages


@dataclass
class Run:
    """What a run is made of; built once, then only read."""

    config: ConfigDict
    mesh: jax.sharding.Mesh
    functions: contract.Functions
    stage: Any
    data: pipeline.TrainingData
    preprocess: Preprocess
    steps: int
    steps_per_epoch: int
    shardings: dict[str, jax.sharding.NamedSharding]
    benchmark: Any
    references: Any = None  # of a stage with a bank: `bank.references.Plan`
    store: Any = None  # set with the bank, where references lie on disk


def run(config: ConfigDict) -> Run:
    """Builds the model and the stage and reads the data.

    Raises:
      UserError: whatever is wrong with the config or the data.
    """
    config = weights.resolve(config)
    mesh = meshes.make(config.mesh.data, config.mesh.model)
    meshes.check_batch(config.batch, mesh)
    if config.max_seconds > 0 and jax.process_count() > 1:
        raise UserError(
            f"max_seconds={config.max_seconds} on {jax.process_count()} processes, whose clocks "
            "differ; set steps instead"
        )
    functions = contract.build(config.model)
    stage = stages.load(config.stage).Stage.from_config(config, functions, mesh)
    preprocess = load.preprocessing(config, functions)
    data = pipeline.prepare(
        loading.load(config, captions=stage.reads == "captions"),
        tokens.load(functions.module.TOKENIZER, config.model.context),
        on_missing=config.data.on_missing,
        on_long=config.data.on_long,
        optimized=config.data.optimized,
        unlabelled=_unlabelled(config, stage),
    )
    plan = None
    if stage.needs_bank:
        plan = references.plan(data, functions.per_triplet, config.loss.reference_text)
        config = references.resolve_place(config, functions, len(plan), mesh)
        stage = stages.load(config.stage).Stage.from_config(config, functions, mesh)
    per_epoch = pipeline.steps_per_epoch(data, config.batch)
    return Run(
        config=config,
        mesh=mesh,
        functions=functions,
        stage=stage,
        data=data,
        preprocess=preprocess,
        steps=config.steps or config.epochs * per_epoch,
        steps_per_epoch=per_epoch,
        shardings=sharding.parameter_shardings(functions, mesh),
        benchmark=benchmark(config),
        references=plan,
    )


def _unlabelled(config: ConfigDict, stage: Any) -> Any:
    """What adds the rows of `data.unlabelled` to the image table; None if there are none."""
    data = config.data
    if not data.unlabelled and not data.unlabelled_count:
        return None
    if not stage.needs_bank:
        raise UserError(
            f"data.unlabelled={tuple(data.unlabelled)} adds rows to the bank, and stage "
            f"{config.stage} has none; leave it to stage two"
        )
    options = {"count": data.unlabelled_count, "optimized": data.optimized}
    options |= {"on_missing": data.on_missing, "threads": data.threads}
    return partial(unlabelled.extend, found=unlabelled.read(config), **options)


def benchmark(config: ConfigDict) -> Any:
    """The benchmark `eval.benchmark` names, or None for "none".

    Raises:
      UserError: no such benchmark; what exists is listed.
    """
    if config.eval.benchmark == "none":
        return None
    return plugins.load("cir_jax.evals.benchmarks", config.eval.benchmark, marker="build").build(
        config
    )


def batches(run: Run) -> Any:
    """The input iterator of this process, see `pipeline.batches`."""
    data = run.config.data
    mine = encode.local_rows(run.config.batch, run.mesh)
    options = loader.Options(
        batch=run.config.batch,
        seed=run.config.seed,
        fields=run.stage.fields,
        mixing=data.mixing,
        weights=tuple(data.weights),
        text_lengths=tuple(data.text_lengths),
        cut_padding=run.functions.module.CUT_PADDING,
        exclude_reference=run.config.loss.exclude_reference,
        exclude_positives=run.config.loss.exclude_positives,
        cache_pixels=data.cache_pixels,
        threads=data.threads,
        process=(mine.start // len(mine), run.config.batch // len(mine)),
    )
    sources = loader.Sources(run.preprocess, run.references, run.store)
    return pipeline.batches(run.data, options, sources)


def bank(run: Run, state: Any) -> banks.Bank:
    """The bank of stage two: from the run folder if it is there and fits, else built and saved.

    Raises:
      UserError: the bank there was made of something else, or there is no room for it.
    """
    config, place = run.config, run.config.loss.references
    inputs = banks.Inputs(
        run.functions, state.fixed, run.data, run.references, run.preprocess, place
    )
    size = {"batch": config.eval.batch, "threads": config.data.threads}
    rows = build.load_or_build(_bank_folder(config), inputs, run.mesh, **size)
    if place == "disk":
        run.store = files.Store(rows.pop("references"))
    return banks.place(rows, run.mesh, config.loss.bank_dtype)


def _bank_folder(config: ConfigDict) -> Path:
    """One folder per place of the references: a run may change it, and change it back."""
    folder = Path(config.loss.bank_path or Path(config.workdir) / "bank")
    place = config.loss.references
    return folder if place == "device" else folder / place


def retriever(run: Run, index: Params, query: Params) -> Retriever:
    """The model under training as a retriever."""
    return load.from_parameters(run.config, run.functions, run.mesh, index, query)


def summary(run: Run, state: Any) -> str:
    """What is about to be trained, in a few lines."""
    sources = ", ".join(
        f"{name} {int((run.data.source_of == i).sum()):,}"
        for i, name in enumerate(run.data.sources)
    )
    extra = run.data.images.unlabelled
    images = f"{len(run.data.images):,} images" + (f", {extra:,} of them unlabelled" * bool(extra))
    platform = jax.devices()[0].platform
    abstract = run.functions.abstract
    trained = {p: x for p, x in state.trained.items() if p in abstract}
    learned = f", and {', '.join(run.stage.extra)}" if run.stage.extra else ""
    return (
        f"{run.config.model.name} {run.config.model.tower}, stage {run.config.stage}: "
        f"{optim.size(trained):,} of {optim.size(abstract):,} parameters train{learned}\n"
        f"  triplets: {sources}; {images}\n"
        f"  {run.steps:,} steps of {run.config.batch}, {run.steps_per_epoch:,} per epoch, on "
        f"{run.mesh.size} {platform} device(s), {jax.process_count()} process(es)\n"
        f"  workdir: {run.config.workdir}"
    )
