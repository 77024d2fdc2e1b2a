# SPDX-License-Identifier: Apache-2.0
"""What a stage is: which parameters train, which batch fields it reads, and a loss.

A stage is one module of `cir_jax.training.stages` (or a file of yours) that defines `Stage`, a
frozen dataclass as `StageProtocol` describes it, and may define KEYS, the keys of section `loss`
that it adds (see `cir_jax.keys`). Trainer and step know nothing else of a stage.
"""

from collections.abc import Mapping
from types import ModuleType
from typing import Any, Protocol

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cir_jax import plugins
from cir_jax.bank.bank import Bank
from cir_jax.contract import Functions
from cir_jax.errors import UserError
from cir_jax.params import BIAS, LOGIT_BIAS, LOGIT_SCALE, TEMPERATURE, Params

PACKAGE = "cir_jax.training.stages"
SOFTMAX, SIGMOID = "softmax", "sigmoid"  # what a stage does with the scores of a batch


class StageProtocol(Protocol):
    """A stage; its values are fixed once it is built.

    Attributes:
      reads: "triplets", or "captions" for image-caption pairs.
      fields: batch fields that `loss` reads, see `cir_jax.data.pipeline`. A stage with a bank gets
        that of the reference as well, see `cir_jax.bank.references`.
      roles: parameter roles that train, see `cir_jax.contract`.
      index_is_query: True: one tree is index and query; False: the index stays as it started.
      needs_bank: True if `loss` takes a bank.
      extra: leaves that the stage adds to the trained ones, path -> start value.
      packs_texts: may be left out. True if `loss` hands `text` to the model as it is, so that it
        may be packed, see `cir_jax.data.packing`.
    """

    @property
    def reads(self) -> str: ...
    @property
    def fields(self) -> tuple[str, ...]: ...
    @property
    def roles(self) -> tuple[str, ...]: ...
    @property
    def index_is_query(self) -> bool: ...
    @property
    def needs_bank(self) -> bool: ...
    @property
    def extra(self) -> Mapping[str, float]: ...

    @classmethod
    def from_config(cls, config: ConfigDict, functions: Functions, mesh: Mesh) -> "StageProtocol":
        """The stage of a config.

        Raises:
          UserError: values that do not go together, or a model that it cannot train.
        """
        ...

    def loss(
        self,
        functions: Functions,
        query: Params,
        index: Params,
        batch: dict[str, jax.Array],
        bank: Bank | None,
        key: jax.Array,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(losses [B] float32, {name: scalar} to log).

        Args:
          functions: the model.
          query, index: flat parameter trees; extra leaves are in the query's.
          batch: the rows of a global batch, see `fields`.
          bank: of a stage that needs one.
          key: for dropout and sampling in this step.
        """
        ...


def load(name: str) -> ModuleType:
    """The module of a stage, e.g. "two_bank".

    Raises:
      UserError: no such stage; what exists is listed.
    """
    return plugins.load(PACKAGE, name, marker="Stage")


def trainable(stage: StageProtocol, functions: Functions) -> list[str]:
    """Paths of the parameters that train, extra leaves last.

    Of the parameters with the stage's roles, those that its loss reads: an optimizer would let the
    others decay.
    """
    read = {*functions.index_paths, *functions.query_paths, LOGIT_SCALE}
    if getattr(stage, "kind", SOFTMAX) == SIGMOID:
        read.add(LOGIT_BIAS)
    if getattr(stage, "auxiliary", ()):
        read |= set(functions.training_paths)
    paths = [p for p, role in functions.roles.items() if role in stage.roles and p in read]
    return [*paths, *stage.extra]


def temperature(stage: Any, query: Params) -> jax.Array | float:
    """The trained temperature, or the config's constant."""
    return query[TEMPERATURE] if TEMPERATURE in stage.extra else stage.temperature


def temperature_leaf(config: ConfigDict) -> dict[str, float]:
    """The extra leaf of a stage whose config says `learn_temperature`."""
    return {TEMPERATURE: config.loss.temperature} if config.loss.learn_temperature else {}


def bias(stage: Any, query: Params) -> jax.Array | float:
    """The trained bias of a sigmoid loss, or the config's constant."""
    return query[BIAS] if BIAS in stage.extra else stage.bias


def check_negatives(config: ConfigDict) -> None:
    """Raises UserError for a batch of one, of a stage whose negatives are the rest of the batch."""
    if config.batch == 1:
        raise UserError(
            f"batch=1 leaves stage {config.stage} no negative, which are the other examples of the "
            "batch: its loss would always be 0; use at least 2, and as many as fit"
        )
