# SPDX-License-Identifier: Apache-2.0
"""A trained run, or any weights, as a `Retriever`; and the config that weights are used with."""

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from cir_jax import config as configs
from cir_jax import contract, trust, weights
from cir_jax.contract import Functions
from cir_jax.convert import identify, native
from cir_jax.convert.layout import Found
from cir_jax.convert.opened import sources_of
from cir_jax.data import tokens
from cir_jax.data.kept_pixels import DECODE, KeptPixels, Part
from cir_jax.data.pixels import AUTO, Loading, Preprocess
from cir_jax.errors import UserError
from cir_jax.params import Params
from cir_jax.retrieval import image_loading, memory
from cir_jax.retrieval.retriever import Retriever
from cir_jax.runtime import agreement, sharding
from cir_jax.runtime import memory as memory_of
from cir_jax.runtime import mesh as meshes
from cir_jax.towers import attention


def from_run(
    workdir: str | Path, which: str = "best", overrides: Sequence[str] = (), dataset: str = ""
) -> tuple[ConfigDict, Retriever]:
    """A trained run as a retriever.

    Args:
      workdir: folder of the run.
      which: "best", "last" or a step.
      overrides: "key=value" strings, e.g. "eval.gallery=val".
      dataset: whose images it is used with, see `image_loading.of_use`.

    Raises:
      UserError: no such run or step, a bad override, or the run names code that is not known to be
        the user's own, see `cir_jax.trust`.
    """
    config = _anywhere(weights.config_of(workdir, which))
    trust.check(config, workdir, overrides)
    return from_weights(configs.override(config, overrides), workdir, which, dataset)


def _anywhere(config: ConfigDict) -> ConfigDict:
    """The config of a run, which may be used on machines that have not what it was trained with."""
    if config.model.attention == attention.CUDNN:
        with config.unlocked():
            config.model.attention = attention.AUTO
    return config


def from_weights(
    config: ConfigDict, init_from: str | Path, which: str = "best", dataset: str = ""
) -> tuple[ConfigDict, Retriever]:
    """Weights as a retriever, without training.

    Args:
      config: of the model and of the benchmark.
      init_from: a run folder, or weights; see `weights.load`.
      which: of a run: "best", "last" or a step.
      dataset: whose images they are used with, see `image_loading.of_use`.

    Returns:
      (the config, with `model.tower=auto` and `data.loading=auto` resolved; the retriever).

    Raises:
      UserError: there are none, or they are not of this model.
    """
    config = weights.resolve(config, str(init_from), which)
    config = image_loading.of_use(config, str(init_from), which, dataset)
    mesh = meshes.make(config.mesh.data, config.mesh.model)
    functions = contract.build(config.model, fsdp=mesh if config.mesh.fsdp else None)
    with memory.loading(functions, mesh):
        loaded = weights.load(str(init_from), functions, which)
        index, query = placed(loaded, functions, mesh)
    # Each image is encoded once.
    kept = pixels(config, preprocessing(config, functions)).part(again=False)
    return config, from_parameters(config, functions, mesh, index, query, kept)


def from_parameters(
    config: ConfigDict,
    functions: Functions,
    mesh: Mesh,
    index: Params,
    query: Params,
    kept: Part | None = None,
) -> Retriever:
    """A retriever with these parameters, encoding and ranking as a config says.

    Args:
      config: of the run.
      functions: the model.
      mesh: the devices.
      index, query: parameters on the devices.
      kept: what opens images, and keeps their pixels; None for the preprocessing alone.
    """
    return Retriever(
        functions,
        index,
        query,
        tokenizer(config, functions),
        kept or preprocessing(config, functions),
        mesh,
        batch=config.eval.batch,
        batch_key="eval.batch",
        threads=config.data.threads,
        text_lengths=config.data.text_lengths,
        on_long=config.data.on_long,
    )


def placed(loaded: weights.Weights, functions: Functions, mesh: Mesh) -> tuple[Params, Params]:
    """(index, query) on the devices; what is the same in both lies there once."""
    places = sharding.parameter_shardings(functions, mesh)
    query = sharding.place({p: loaded.query[p] for p in functions.abstract}, places)
    apart = {p: loaded.index[p] for p in query if loaded.index[p] is not loaded.query[p]}
    return query | sharding.place(apart, places) if apart else query, query


def preprocessing(config: ConfigDict, functions: Functions) -> Preprocess:
    """The image preprocessing of a config; one that leaves the loading open opens all images that
    are not of a published data set, see `image_loading`."""
    if functions.embedder is not None:
        return functions.embedder.preprocess(loading(config))
    data, inputs = config.data, functions.inputs
    return Preprocess(
        functions.image_size,
        data.pad,
        data.target_ratio,
        loading(config),
        data.resize,
        inputs.interpolation,
        inputs.normalisation,
    )


def tokenizer(config: ConfigDict, functions: Functions) -> tokens.Tokenizer:
    """The tokenizer of a config."""
    if functions.embedder is not None:
        return functions.embedder.tokenizer(loading(config))
    return functions.inputs.tokenizer


def pixels(config: ConfigDict, preprocess: Preprocess) -> KeptPixels:
    """What is kept of the pixels of a run, by `data.pixels`. Every process calls this.

    Args:
      config: of the run.
      preprocess: its preprocessing.
    """
    if not getattr(preprocess, "keeps", True):
        return KeptPixels(DECODE, preprocess)
    here = platform.node()
    processes = agreement.tell(here).count(here)
    return KeptPixels(config.data.pixels, preprocess, memory_of.free_on_host() // processes)


def loading(config: ConfigDict) -> Loading:
    """How the images of a config are opened, see `preprocessing`."""
    name = "natural" if config.data.loading == AUTO else config.data.loading
    return Loading(name, config.data.background)


def config_of(
    places: Sequence[str], model: str = "", which: str = "best", overrides: Sequence[str] = ()
) -> tuple[ConfigDict, bool]:
    """The config that weights are used with, without a benchmark, and whether it says the padding.

    Args:
      places: a run, or files and folders that each hold a part of the model.
      model: name of the model; "" for the only one that it can be.
      which: of a run: "best", "last" or a step.
      overrides: "key=value" strings.

    Returns:
      (config, known): of a run its own; of weights the defaults of configs/base.py with model, size
      and padding as the files say. `known` is False where neither they nor `overrides` say how
      images are padded, so that `data.pad` is a default.

    Raises:
      UserError: no such place; they are of no model, or of several; the size is not said; or a run
        names code that is not known to be the user's own, see `cir_jax.trust`.
    """
    joined = ",".join(places)
    named = [f"model.name={model}"] if model else []
    runs = [place for place in places if weights.is_run(place)]
    if model and not runs and contract.is_plain(model):
        return configs.load("base", [*named, *_embedder_at(places), *overrides]), True
    if len(places) == 1 and runs:
        config = _anywhere(weights.config_of(joined, which))
        trust.check(config, joined, [*named, *overrides])
        return weights.resolve(configs.override(config, [*named, *overrides]), joined), True
    if runs and not model:
        raise UserError(f"{joined}: a run is one of several places; say of what, --model NAME")
    opened = sources_of([place for place in places if place not in runs])
    model = model or identify.sole_model(opened)
    found = [identify.find(source, model)[1] for source in opened]
    data = dict(inputs_of(found, runs[:1], which))
    given = {item.partition("=")[0].strip() for item in overrides}
    if "data.loading" not in given:
        data |= image_loading.agreed(_inputs(found, runs[:1], which))
    changes = [f"init_from={joined}", f"model.name={model}", "model.tower=auto",
               "eval.benchmark=none", *(f"data.{k}={v}" for k, v in data.items())]  # fmt: skip
    config = configs.load("base", [*changes, *overrides])
    known = "pad" in data or "data.pad" in given
    return weights.resolve(config, joined, which), known


def _embedder_at(places: Sequence[str]) -> list[str]:
    """What says which embedder a model is: the address of a server, or a folder.

    Raises:
      UserError: there are several places.
    """
    if len(places) != 1:
        raise UserError(
            f"{', '.join(places)}: an embedder is one server or one folder; give that alone"
        )
    [place] = places
    at = "model.url" if "://" in place else "model.tower"
    return ["eval.benchmark=none", f"{at}={place}"]


def inputs_of(
    found: Sequence[Found], runs: Sequence[str] = (), which: str = "best"
) -> Mapping[str, Any]:
    """What parts of a model say of how images and texts are made into its inputs; {} where none
    does, or not all that do say the same."""
    said = [data for data in _inputs(found, runs, which) if "pad" in data]
    pads = {(p["pad"], p["target_ratio"] if p["pad"] == "target" else 0) for p in said}
    return said[-1] if len(pads) == 1 else {}


def _inputs(found: Sequence[Found], runs: Sequence[str], which: str) -> list[Mapping[str, Any]]:
    """What each part says of its inputs."""
    said: list[Mapping[str, Any]] = [part.data for part in found]
    for run in runs:
        data = weights.config_of(run, which).data
        said.append({key: data[key] for key in native.INPUT_KEYS})
    return said
