# SPDX-License-Identifier: Apache-2.0
"""Config -> the parts of a run. Everything that can be checked is checked here, before a step."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from cir_jax import config as configs
from cir_jax import plugins
from cir_jax.data import loader, pipeline, tokens
from cir_jax.data.pixels import Preprocess
from cir_jax.errors import UserError
from cir_jax.evals.retrieval import Retriever
from cir_jax.models import contract
from cir_jax.models.contract import Params
from cir_jax.negatives import bank as banks
from cir_jax.negatives import bank_build, bank_files, references
from cir_jax.positives import loading, unlabelled
from cir_jax.runtime import encode, optim, sharding, weights
from cir_jax.runtime import mesh as meshes
from cir_jax.stages import contract as stages


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
    references: Any = None  # of a stage with a bank: `negatives.references.Plan`
    store: Any = None  # set with the bank, where references lie on disk


def run(config: ConfigDict) -> Run:
    """Builds the model and the stage and reads the data.

    Raises:
      UserError: whatever is wrong with the config or the data.
    """
    config = weights.settled(config)
    mesh = meshes.make(config.mesh.data, config.mesh.model)
    meshes.check_batch(config.batch, mesh)
    if config.max_seconds > 0 and jax.process_count() > 1:
        raise UserError(
            f"max_seconds={config.max_seconds} on {jax.process_count()} processes, whose clocks "
            "differ; set steps instead"
        )
    functions = contract.build(config.model)
    stage = stages.load(config.stage).Stage.from_config(config, functions, mesh)
    preprocess = preprocessing(config, functions)
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
        config = references.settled(config, functions, len(plan), mesh)
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
    return plugins.load("cir_jax.evals", config.eval.benchmark, marker="build").build(config)


def preprocessing(config: ConfigDict, functions: contract.Functions) -> Preprocess:
    """The image preprocessing of a config."""
    return Preprocess(functions.image_size, config.data.pad, config.data.target_ratio)


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
    rows = bank_build.ready(_bank_folder(config), inputs, run.mesh, **size)
    if place == "disk":
        run.store = bank_files.Store(rows.pop("references"))
    return banks.place(rows, run.mesh, config.loss.bank_dtype)


def _bank_folder(config: ConfigDict) -> Path:
    """One folder per place of the references: a run may change it, and change it back."""
    folder = Path(config.loss.bank_path or Path(config.workdir) / "bank")
    place = config.loss.references
    return folder if place == "device" else folder / place


def retriever(run: Run, index: Params, query: Params) -> Retriever:
    """The model under training as a retriever."""
    return _retriever(run.config, run.functions, run.mesh, index, query)


def restore(
    workdir: str | Path, which: str = "best", overrides: Sequence[str] = ()
) -> tuple[ConfigDict, Retriever]:
    """A trained run as a retriever.

    Args:
      workdir: folder of the run.
      which: "best", "last" or a step.
      overrides: "key=value" strings, e.g. "eval.gallery=val".

    Raises:
      UserError: no such run or step, or a bad override.
    """
    return load(configs.override(weights.config_of(workdir, which), overrides), workdir, which)


def load(config: ConfigDict, init_from: str, which: str = "best") -> tuple[ConfigDict, Retriever]:
    """Weights as a retriever, without training.

    Args:
      config: of the model and of the benchmark.
      init_from: a run folder, or weights; see `weights.load`.
      which: of a run: "best", "last" or a step.

    Returns:
      (the config, with `model.tower=auto` settled; the retriever).

    Raises:
      UserError: there are none, or they are not of this model.
    """
    config = weights.settled(config, str(init_from), which)
    functions = contract.build(config.model)
    mesh = meshes.make(config.mesh.data, config.mesh.model)
    found = weights.load(str(init_from), functions, which)
    places = sharding.parameter_shardings(functions, mesh)
    query = sharding.place({p: found.query[p] for p in functions.abstract}, places)
    # Only what differs lies on the devices twice.
    apart = {p: found.index[p] for p in query if found.index[p] is not found.query[p]}
    index = query | sharding.place(apart, places) if apart else query
    return config, _retriever(config, functions, mesh, index, query)


def _retriever(
    config: ConfigDict, functions: contract.Functions, mesh: Any, index: Params, query: Params
) -> Retriever:
    return Retriever(
        functions,
        index,
        query,
        tokens.load(functions.module.TOKENIZER, config.model.context),
        preprocessing(config, functions),
        mesh,
        batch=config.eval.batch,
        threads=config.data.threads,
        text_lengths=config.data.text_lengths,
        on_long=config.data.on_long,
    )


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
