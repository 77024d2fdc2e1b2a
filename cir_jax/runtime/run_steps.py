# SPDX-License-Identifier: Apache-2.0
"""Which step of a run is read, by whoever does not train it.

A step that is damaged is named, and the one before it is used where there is one: aloud, since
what is scored or exported is then another step than was asked for. Nothing is moved here; only the
run itself sets its damaged steps aside. A step that was asked for by its number has no other.
"""

from pathlib import Path
from typing import Any

from cir_jax import progress
from cir_jax.errors import UserError
from cir_jax.runtime.checkpoint import BEST, LAST, Checkpoints

Step = tuple[Checkpoints, int]
# Of a record: what whoever reads a run needs, and what it must be.
_NEEDED = {"config": str, "paths": dict, "shapes": dict, "index_is_query": bool, "step": int}
# The same of adapters, where there are any, see `cir_jax.training.adapters`.
_LORA = {"rank": (int,), "alpha": (int, float), "shapes": (dict,), "base": (str,)}


def candidates(workdir: str | Path, which: str = "best") -> list[Step]:
    """The steps of a finished or running run that may be meant, the one that is meant first.

    Args:
      workdir: the run folder.
      which: "best", "last" or a step number. "best" falls back to "last" for a run that has not
        been evaluated yet.

    Raises:
      UserError: there is no such run or step; what exists is listed.
    """
    best, last = Checkpoints(Path(workdir) / BEST, keep=1), Checkpoints(Path(workdir) / LAST)
    have = {"best": best.steps(), "last": last.steps()}
    chosen: list[Step] = []
    if which.isascii() and which.isdigit():
        both = ((best, have["best"]), (last, have["last"]))
        chosen = [(one, int(which)) for one, steps in both if int(which) in steps]
    elif which in ("best", "last"):
        chosen = [(best, step) for step in reversed(have["best"])] if which == "best" else []
        newest = chosen[0][1] if chosen else None
        before = [step for step in have["last"] if newest is None or step <= newest]
        chosen += [(last, step) for step in reversed(before)]
    if not chosen:
        raise UserError(
            f"no checkpoint {which!r} in {workdir}; there are steps best={have['best']}, "
            f"last={have['last']}. Give the folder that `cir-jax train` printed as its workdir"
        )
    return chosen


def find(workdir: str | Path, which: str = "best") -> Step:
    """The step that is meant, be it damaged or not.

    Raises:
      UserError: see `candidates`.
    """
    return candidates(workdir, which)[0]


def sound(workdir: str | Path, which: str = "best") -> tuple[Checkpoints, int, dict[str, Any]]:
    """The first of `candidates` that is whole, with its record; each process checks a part of it.

    Raises:
      UserError: none is whole: what is damaged in the one that is meant; or there is none.
    """
    trouble: list[UserError] = []
    for checkpoints, step in candidates(workdir, which):
        try:
            record = _whole(checkpoints, step)
        except UserError as error:
            trouble.append(error)
            continue
        if trouble:
            progress.say(
                f"warning: {trouble[0]}\nwarning: step {step} in {checkpoints.folder} is used "
                "in its place"
            )
        return checkpoints, step, record
    raise UserError("; ".join(map(str, trouble)))


def record_of(checkpoints: Checkpoints, step: int) -> dict[str, Any]:
    """The record of a step; what it must have is there, and is of its type.

    Raises:
      UserError: the record is damaged.
    """
    record = checkpoints.record(step)
    for key, kind in _NEEDED.items():
        if type(record.get(key)) is not kind:
            raise checkpoints.damaged(step, f"its record has {key}={str(record.get(key))[:60]!r}")
    names = [
        name for paths in record["paths"].values() if isinstance(paths, list) for name in paths
    ]
    sides = [n for shape in record["shapes"].values() if isinstance(shape, list) for n in shape]
    if (
        not all(isinstance(paths, list) for paths in record["paths"].values())
        or not all(isinstance(shape, list) for shape in record["shapes"].values())
        or not all(isinstance(name, str) for name in names)
        or not all(type(n) is int and n >= 0 for n in sides)
    ):
        raise checkpoints.damaged(step, "its record lists no names and shapes")
    said = record.get("lora", {})
    if said and (
        not isinstance(said, dict) or any(type(said.get(k)) not in t for k, t in _LORA.items())
    ):
        raise checkpoints.damaged(step, "its record says adapters that are none")
    return record


def _whole(checkpoints: Checkpoints, step: int) -> dict[str, Any]:
    if reason := checkpoints.damage(step):
        raise checkpoints.damaged(step, reason)
    return record_of(checkpoints, step)
