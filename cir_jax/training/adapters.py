# SPDX-License-Identifier: Apache-2.0
"""Adapters of a run (keys `lora`): what trains in place of the parameters, and where it starts.

See `cir_jax.towers.lora` for what they compute. The parameters below them never change, so a run
keeps them once, in `checkpoints/base`, and each checkpoint holds the factors, what trains beside
them, and the checksum of that base: small, and the folder is all that a resume, a search or an
export needs. (A pointer to the weights that a run started from would save one copy of them, and
break with the first file that is moved or trained on.)
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from cir_jax import config as configs
from cir_jax import rules
from cir_jax.contract import Functions
from cir_jax.convert import adapters as folders
from cir_jax.errors import UserError
from cir_jax.params import Params
from cir_jax.runtime import checksums, sharding
from cir_jax.towers import lora
from cir_jax.training import stage as stages
from cir_jax.training.stage import StageProtocol

RANK = "lora.rank"


def check(config: ConfigDict) -> None:
    """Raises UserError for keys of adapters that were set by hand where there are none."""
    idle = sorted(k for k in configs.given(config) if k.startswith("lora.") and k != RANK)
    if idle and not config.lora.rank:
        raise UserError(
            f"{', '.join(idle)} would do nothing, since {RANK}=0 trains without adapters; set "
            f"{RANK} to 8, say, or leave them out"
        )


def added(config: ConfigDict, functions: Functions, stage: StageProtocol) -> Functions:
    """The model with the adapters that a config asks for; as it is if it asks for none.

    Raises:
      UserError: see `lora.choose`.
    """
    if not config.lora.rank:
        return functions
    trains = stages.trainable(stage, functions)
    sides = functions.index_paths if stage.index_is_query else ()
    reads = {*sides, *functions.query_paths, *trains}
    adapters = lora.choose(
        config.lora,
        functions.abstract,
        functions.stacked,
        trains,
        [p for p, role in functions.roles.items() if p in reads and role != "statistic"],
        getattr(functions.module, "NEW", ()),
    )
    return replace(functions, adapters=adapters)


def shardings(functions: Functions, mesh: Mesh) -> dict[str, NamedSharding]:
    """Path of a factor -> where it lies: with the rows or columns of its matrix."""
    adapters = functions.adapters
    if adapters is None:
        return {}
    matrices = rules.match(functions.sharding_rules, functions.abstract, "sharding rules")
    return sharding.of_rules(
        adapters.specs(matrices),
        adapters.shapes,
        mesh,
        adapters.stacked(functions.stacked),
        split=functions.fsdp is not None,
    )


def start(config: ConfigDict, functions: Functions, base: Params, checksum: str) -> Params:
    """What a new run starts with in place of parameters of its base: factors, and what came with
    the adapter that it goes on from.

    Args:
      config: of the run.
      functions: the model.
      base: its parameters, on the host.
      checksum: of the base, see the function.

    Raises:
      UserError: the adapter in `lora.init_from` is of another shape or of another base.
    """
    if functions.adapters is None:
        return {}
    if config.lora.init_from:
        return folders.read(config.lora.init_from, functions, functions.adapters, base, checksum)
    return functions.adapters.start(config.seed)


def checksum(functions: Functions, base: Params) -> str:
    """What tells the base of adapters from others: the values of the matrices below them; "" if
    there are no adapters."""
    if functions.adapters is None:
        return ""
    return checksums.of_arrays({path: base[path] for path in functions.adapters.matrices})


def check_one_tree(
    functions: Functions, index: Params, query: Params, starts: Sequence[str], where: str
) -> None:
    """Raises UserError where a query differs from its index below the adapters, or beside them.

    Stage two leaves weights with two such trees. Adapters are differences to one.
    """
    if functions.adapters is None:
        return
    differ = [
        path
        for path in functions.query_paths
        if path not in starts and index[path] is not query[path]
        and (index[path] != query[path]).any()
    ]  # fmt: skip
    if differ:
        raise UserError(
            f"init_from={where} holds {', '.join(differ[:3])} ({len(differ)} leaves in all) twice, "
            "as stage two leaves them, and adapters of stage two are differences to one model; "
            f"start from the run of stage one, or set {RANK}=0"
        )


def record(functions: Functions, base: str) -> dict[str, Any]:
    """What a checkpoint notes of its adapters, see `weights.of_run`; {} without any."""
    adapters = functions.adapters
    if adapters is None:
        return {}
    shapes = {path: list(x.shape) for path, x in adapters.shapes.items()}
    said = {"rank": adapters.rank, "alpha": adapters.alpha, "shapes": shapes, "base": base}
    return {"lora": said}
