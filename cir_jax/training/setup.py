# SPDX-License-Identifier: Apache-2.0
"""Config -> the parts of a run. Everything that can be checked is checked here, before a step.

`resolve` makes the one config that is read from then on; `make` builds what does not depend on
data; `read_data`, `build_bank` and `make_batches` return values, which the trainer hands on.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
from grain import DatasetIterator
from ml_collections import ConfigDict

from cir_jax import contract, weights
from cir_jax.bank import bank as banks
from cir_jax.bank import build, files, references
from cir_jax.contract import Functions
from cir_jax.data import fingerprints, kept_pixels, loader, pipeline, refusals
from cir_jax.data.kept_pixels import KeptPixels
from cir_jax.data.pixels import Preprocess
from cir_jax.data.screening import Explained, Screen
from cir_jax.datasets import held_out, loading, unlabelled
from cir_jax.errors import UserError
from cir_jax.evals import benchmark as benchmarks
from cir_jax.evals import screens
from cir_jax.evals.benchmark import Benchmark
from cir_jax.params import Params
from cir_jax.retrieval import image_loading, load
from cir_jax.runtime import encode, sharding, watchdog
from cir_jax.runtime import mesh as meshes
from cir_jax.training import comparison, degenerate, inheritance
from cir_jax.training import stage as stages
from cir_jax.training.stage import StageProtocol


@dataclass(frozen=True)
class Setup:
    """What a run is made of, beside its data.

    Attributes:
      config: resolved and locked.
      mesh: the devices.
      functions: the model.
      stage: what trains, and the loss.
      shardings: parameter path -> where it lies.
      preprocess: path -> uint8 [S, S, 3].
      pixels: what is kept of what it gives.
      benchmark: what the model is evaluated with; None for none.
    """

    config: ConfigDict
    mesh: jax.sharding.Mesh
    functions: Functions
    stage: StageProtocol
    shardings: dict[str, jax.sharding.NamedSharding]
    preprocess: Preprocess
    pixels: KeptPixels
    benchmark: Benchmark | None


@dataclass(frozen=True)
class Data:
    """The triplets of a run, and what follows from their number.

    Attributes:
      triplets: all of them, numbered.
      references: those of a stage with a bank, and None for others.
      place: where references lie: "device", "disk" or "recompute"; "" without a bank.
      steps: of the whole run.
      steps_per_epoch: full batches in one pass.
      fingerprints: part of the data -> what tells it from other data.
      screen: what it has found of images that cannot be used.
    """

    triplets: pipeline.TrainingData
    references: references.Plan | None
    place: str
    steps: int
    steps_per_epoch: int
    fingerprints: dict[str, str]
    screen: Screen

    def fields(self, stage: StageProtocol) -> tuple[str, ...]:
        """The batch fields of the stage, with that of its references."""
        return (*stage.fields, *((references.FIELDS[self.place],) if self.place else ()))

    def images(self, stage: StageProtocol) -> int:
        """Images of an example that are opened and encoded in a step of the stage."""
        return sum(field.endswith("pixels") for field in self.fields(stage))


def resolve(config: ConfigDict) -> ConfigDict:
    """The config that is read from here on: what it leaves to its weights is filled in.

    Raises:
      UserError: `model.tower=auto` without weights that say their size; or stage two is told
        another model, size or preprocessing than its weights were trained with.
    """
    config = inheritance.of_resumed(config)
    trains_index = getattr(stages.load(config.stage).Stage, "index_is_query", True) is not False
    if not trains_index:
        config = inheritance.take(config)
    return image_loading.of_training(weights.resolve(config), trains_index)


def gathered(config: ConfigDict) -> AbstractContextManager[None]:
    """A context for `make` and `read_data` that tells of all images that cannot be used at once."""
    return refusals.together(_list_folder(config))


def make(config: ConfigDict) -> Setup:
    """Builds mesh, model, stage and benchmark.

    Args:
      config: resolved.

    Raises:
      UserError: values that do not go together, or a benchmark whose data is not there.
    """
    mesh = meshes.make(config.mesh.data, config.mesh.model)
    if config.max_seconds > 0 and jax.process_count() > 1:
        raise UserError(
            f"max_seconds={config.max_seconds} on {jax.process_count()} processes, whose clocks "
            "differ; set steps instead"
        )
    setup = assemble(config, mesh)
    kind = setup.config.model.attention
    comparison.check("devices", {"config model.attention": kind})  # "auto" is decided by each alone
    setup = replace(setup, pixels=load.pixels(config, setup.preprocess))
    with kept_pixels.filling(setup.pixels.part(again=True)):
        return replace(setup, benchmark=benchmarks.build(config))


def assemble(config: ConfigDict, mesh: jax.sharding.Mesh) -> Setup:
    """The parts of a run that need no data, on a mesh whose devices may be elsewhere: no benchmark.

    Args:
      config: resolved.
      mesh: of the run.

    Raises:
      UserError: values that do not go together.
    """
    functions = contract.build(config.model, mesh if config.mesh.fsdp else None, mesh)
    # The stage comes first: it names numbers that fit where it cuts the batch into chunks.
    stage = stages.load(config.stage).Stage.from_config(config, functions, mesh)
    meshes.check_batch(config.batch, mesh)
    if stage.needs_bank or config.eval.benchmark != "none":
        meshes.rounded(config.eval.batch, mesh, "eval.batch")  # says now what encoding will do
    attention = {inheritance.ATTENTION: functions.config.attention}  # "auto" is decided
    preprocess = load.preprocessing(config, functions)
    return Setup(
        config=inheritance.with_values(config, attention),
        mesh=mesh,
        functions=functions,
        stage=stage,
        shardings=sharding.parameter_shardings(functions, mesh),
        preprocess=preprocess,
        pixels=KeptPixels(kept_pixels.DECODE, preprocess),
        benchmark=None,
    )


def read_data(setup: Setup) -> Data:
    """Reads and numbers the triplets of a run.

    Raises:
      UserError: whatever is wrong with the data.
    """
    config, stage, functions = setup.config, setup.stage, setup.functions
    screen = _screen(setup)
    triplets = pipeline.prepare(
        loading.load(config, captions=stage.reads == "captions"),
        load.tokenizer(config, functions),
        on_missing=screen,
        on_long=config.data.on_long,
        optimized=config.data.optimized,
        unlabelled=_unlabelled(setup, screen),
    )
    screen.gathering.settle()  # before anything opens an image
    setup.pixels.part(_opens_again(setup)).expect(triplets.images.paths)
    setup.pixels.say()
    degenerate.check(config, stage, triplets)
    plan, place = None, ""
    if stage.needs_bank:
        plan = references.plan(triplets, functions.per_triplet, config.loss.reference_text)
        place = references.choose_place(config.loss, functions, len(plan), setup.mesh)
    per_epoch = pipeline.steps_per_epoch(triplets, config.batch)
    steps = config.steps or config.epochs * per_epoch
    if not steps:
        raise UserError("epochs=0 and steps=0 train nothing; set one of them to at least 1")
    return Data(triplets, plan, place, steps, per_epoch, fingerprints.of(triplets), screen)


def _screen(setup: Setup) -> Screen:
    """What becomes of images of the training set that cannot be used."""
    config = setup.config
    return Screen(
        config.data.on_missing,
        root=config.data.root,
        folder=_list_folder(config),
        threads=config.data.threads,
        loading=setup.preprocess.loading,
        agree=screens.agree,
        progressed=watchdog.progress,
        pixels=setup.pixels.part(_opens_again(setup)),
    )


def _opens_again(setup: Setup) -> bool:
    """Whether images of the training set are opened in each pass, and not for the bank alone."""
    recomputes = setup.stage.needs_bank and setup.config.loss.references == "recompute"
    return recomputes or any(field in loader.PIXELS for field in setup.stage.fields)


def _list_folder(config: ConfigDict) -> str:
    """Where images that cannot be used are listed."""
    return config.workdir if jax.process_index() == 0 else ""


def _preprocess(setup: Setup, data: Data) -> Any:
    """The preprocessing, whose error names all images that cannot be used, and what is kept."""
    pixels = setup.pixels.part(_opens_again(setup))
    return Explained(pixels, data.screen, data.triplets.images.files())


def _unlabelled(setup: Setup, screen: Screen) -> Any:
    """What adds the rows of `data.unlabelled` to the image table; None if there are none."""
    data = setup.config.data
    if not data.unlabelled and not data.unlabelled_count:
        return None
    if not setup.stage.needs_bank:
        raise UserError(
            f"data.unlabelled={tuple(data.unlabelled)} adds rows to the bank, and stage "
            f"{setup.config.stage} has none; leave it to stage two"
        )
    options = {"count": data.unlabelled_count, "optimized": data.optimized, "screen": screen}
    evaluated = held_out.of(setup.config)
    found = unlabelled.read(setup.config, evaluated)
    return partial(unlabelled.extend, found=found, evaluated=evaluated.images, **options)


def build_bank(
    setup: Setup, data: Data, index: Params
) -> tuple[banks.Bank | None, files.Store | None]:
    """(bank, references on disk) of stage two: from the run folder if they are there, else built.

    Args:
      setup: of the run.
      data: its triplets.
      index: index parameters.

    Returns:
      (None, None) for a stage without a bank; no references on disk where they lie elsewhere.

    Raises:
      UserError: the bank there was made of something else, or there is no room for it.
    """
    if data.references is None:
        return None, None
    config = setup.config
    inputs = banks.Inputs(
        setup.functions, index, data.triplets, data.references, _preprocess(setup, data), data.place
    )
    size = {"batch": config.eval.batch, "threads": config.data.threads}
    rows = build.load_or_build(_bank_folder(config, data.place), inputs, setup.mesh, **size)
    store = files.Store(rows.pop("references")) if data.place == "disk" else None
    return banks.place(rows, setup.mesh, config.loss.bank_dtype), store


def _bank_folder(config: ConfigDict, place: str) -> Path:
    """One folder per place of the references: a run may change it, and change it back."""
    folder = Path(config.loss.bank_path or Path(config.workdir) / "bank")
    return folder if place == "device" else folder / place


def packs_texts(setup: Setup) -> bool:
    """Whether the texts of a batch are packed: if config, model and stage allow it."""
    allowed = setup.functions.inputs.packs_texts and getattr(setup.stage, "packs_texts", False)
    return setup.config.data.pack_texts and allowed


def make_batches(setup: Setup, data: Data, store: files.Store | None) -> DatasetIterator:
    """The input iterator of this process, see `pipeline.batches`.

    Args:
      setup: of the run.
      data: its triplets.
      store: references on disk, as `build_bank` returned them.
    """
    config = setup.config
    options = loader.Options(
        batch=config.batch,
        seed=config.seed,
        fields=data.fields(setup.stage),
        mixing=config.data.mixing,
        weights=tuple(config.data.weights),
        text_lengths=tuple(config.data.text_lengths),
        cut_padding=setup.functions.inputs.cut_padding,
        exclude_reference=config.loss.exclude_reference,
        exclude_positives=config.loss.exclude_positives,
        threads=config.data.threads,
        rows=encode.local_rows(config.batch, setup.mesh),
        shares=setup.mesh.shape[meshes.DATA] if packs_texts(setup) else 0,
    )
    sources = loader.Sources(_preprocess(setup, data), data.references, store)
    return pipeline.batches(data.triplets, options, sources)
