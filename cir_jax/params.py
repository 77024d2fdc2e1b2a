# SPDX-License-Identifier: Apache-2.0
"""Flat parameter trees, and what may be known of a model's parameters without its network.

Parameters are one dict, path -> array ("visual/blocks/mlp/fc1/kernel"), so that rules, checkpoints
and the conversion of weights are loops over names.
"""

from typing import Any, Protocol

from ml_collections import ConfigDict

Params = dict[str, Any]  # path -> array

# The leaf that a stage which learns its temperature adds to the query tree; no model has it.
TEMPERATURE = "loss/temperature"
BIAS = "loss/bias"  # the same of a stage that learns the bias of its sigmoid loss
OF_STAGES = (TEMPERATURE, BIAS)
# The scalar of a model that can be pretrained on captions, see stage zero: CLIP's.
LOGIT_SCALE = "logit_scale"
LOGIT_BIAS = "logit_bias"  # and SigLIP's beside it


class ModelParams(Protocol):
    """The parameters of a model: what sharding and the conversion of weights go by.

    Attributes:
      config: the `model` section of the config.
      abstract: path -> shape and type of every parameter.
      index_paths: paths that `reference` or `target` read.
      query_paths: paths that `compose` reads.
      sharding_rules: (regex of a path, mesh axis or None per dimension), see `cir_jax.rules`.
      stacked: paths whose first axis is the layers of a scan.
      fsdp: the devices over whose axis "data" parameters are split; None if they are not.
    """

    @property
    def config(self) -> ConfigDict: ...
    @property
    def abstract(self) -> Params: ...
    @property
    def index_paths(self) -> list[str]: ...
    @property
    def query_paths(self) -> list[str]: ...
    @property
    def sharding_rules(self) -> list[tuple[str, tuple]]: ...
    @property
    def stacked(self) -> frozenset[str]: ...
    @property
    def fsdp(self) -> Any: ...
