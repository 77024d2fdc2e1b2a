# SPDX-License-Identifier: Apache-2.0
"""What a stage is: which parameters train, which batch fields it reads, and a loss.

A stage is one module of `cir_jax.stages` (or a file of yours) that defines `Stage`, a frozen
dataclass built by `Stage.from_config(config, functions, mesh)` with

    reads         "triplets", or "captions" for image-caption pairs
    fields        batch fields it reads, see `cir_jax.data.pipeline`
    roles         parameter roles that train, see `cir_jax.models.contract`
    index_is_query  True: one tree is index and query; False: the index stays as it started
    needs_bank    True if `loss` takes a bank
    extra         leaves the stage adds to the trained ones, {path: start value}
    loss(functions, query, index, batch, bank, key) -> ([B] losses, {name: scalar})

`query` and `index` are flat parameter dicts, the extra leaves among the first. Trainer and step
know nothing else of a stage.
"""

from types import ModuleType
from typing import Any

import jax

from cir_jax import plugins
from cir_jax.models.contract import Functions, Params

PACKAGE = "cir_jax.stages"
TEMPERATURE = "loss/temperature"


def load(name: str) -> ModuleType:
    """The module of a stage, e.g. "two_bank".

    Raises:
      UserError: no such stage; what exists is listed.
    """
    return plugins.load(PACKAGE, name, marker="Stage")


def trainable(stage: Any, functions: Functions) -> list[str]:
    """Paths of the parameters that train, extra leaves last."""
    paths = [path for path, role in functions.roles.items() if role in stage.roles]
    return [*paths, *stage.extra]


def temperature(stage: Any, query: Params) -> jax.Array | float:
    """The trained temperature, or the config's constant."""
    return query[TEMPERATURE] if TEMPERATURE in stage.extra else stage.temperature


def temperature_leaf(config: Any) -> dict[str, float]:
    """The extra leaf of a stage whose config says `learn_temperature`."""
    return {TEMPERATURE: config.loss.temperature} if config.loss.learn_temperature else {}
