# SPDX-License-Identifier: Apache-2.0
"""What a stage is: which parameters train, which batch fields it reads, and a loss.

A stage is one module of `cir_jax.training.stages` (or a file of yours) that defines `Stage`, a
frozen dataclass built by `Stage.from_config(config, functions, mesh)` with

    reads         "triplets", or "captions" for image-caption pairs
    fields        batch fields it reads, see `cir_jax.data.pipeline`
    roles         parameter roles that train, see `cir_jax.contract`
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
from cir_jax.contract import Functions
from cir_jax.errors import UserError
from cir_jax.params import LOGIT_SCALE, TEMPERATURE, Params

PACKAGE = "cir_jax.training.stages"


def load(name: str) -> ModuleType:
    """The module of a stage, e.g. "two_bank".

    Raises:
      UserError: no such stage; what exists is listed.
    """
    return plugins.load(PACKAGE, name, marker="Stage")


def trainable(stage: Any, functions: Functions) -> list[str]:
    """Paths of the parameters that train, extra leaves last.

    Of the parameters with the stage's roles, those that its loss reads: an optimizer would let the
    others decay.
    """
    read = {*functions.index_paths, *functions.query_paths, LOGIT_SCALE}
    if getattr(stage, "auxiliary", ()):
        read |= set(functions.training_paths)
    paths = [p for p, role in functions.roles.items() if role in stage.roles and p in read]
    return [*paths, *stage.extra]


def check_keys_of_stage_one(config: Any) -> None:
    """Raises UserError where another stage is given what only stage one reads."""
    loss = config.loss
    for key, none in (("auxiliary", ()), ("negative_types", ("target",))):
        if tuple(loss[key]) != none:
            raise UserError(
                f"loss.{key}={tuple(loss[key])} is of stage one, and stage {config.stage} does not "
                "read it; leave it out"
            )


def temperature(stage: Any, query: Params) -> jax.Array | float:
    """The trained temperature, or the config's constant."""
    return query[TEMPERATURE] if TEMPERATURE in stage.extra else stage.temperature


def temperature_leaf(config: Any) -> dict[str, float]:
    """The extra leaf of a stage whose config says `learn_temperature`."""
    return {TEMPERATURE: config.loss.temperature} if config.loss.learn_temperature else {}
