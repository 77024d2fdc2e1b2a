# SPDX-License-Identifier: Apache-2.0
"""A trained run, or any weights, as a `Retriever`."""

from collections.abc import Sequence
from pathlib import Path

from jax.sharding import Mesh
from ml_collections import ConfigDict

from cir_jax import config as configs
from cir_jax import contract, weights
from cir_jax.contract import Functions
from cir_jax.data import tokens
from cir_jax.data.pixels import Preprocess
from cir_jax.params import Params
from cir_jax.retrieval.retriever import Retriever
from cir_jax.runtime import mesh as meshes
from cir_jax.runtime import sharding


def from_run(
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
    return from_weights(
        configs.override(weights.config_of(workdir, which), overrides), workdir, which
    )


def from_weights(
    config: ConfigDict, init_from: str, which: str = "best"
) -> tuple[ConfigDict, Retriever]:
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
    config = weights.resolve(config, str(init_from), which)
    functions = contract.build(config.model)
    mesh = meshes.make(config.mesh.data, config.mesh.model)
    found = weights.load(str(init_from), functions, which)
    places = sharding.parameter_shardings(functions, mesh)
    query = sharding.place({p: found.query[p] for p in functions.abstract}, places)
    # Only what differs lies on the devices twice.
    apart = {p: found.index[p] for p in query if found.index[p] is not found.query[p]}
    index = query | sharding.place(apart, places) if apart else query
    return config, from_parameters(config, functions, mesh, index, query)


def from_parameters(
    config: ConfigDict, functions: Functions, mesh: Mesh, index: Params, query: Params
) -> Retriever:
    """A retriever with these parameters, encoding and ranking as a config says."""
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


def preprocessing(config: ConfigDict, functions: contract.Functions) -> Preprocess:
    """The image preprocessing of a config."""
    return Preprocess(functions.image_size, config.data.pad, config.data.target_ratio)
