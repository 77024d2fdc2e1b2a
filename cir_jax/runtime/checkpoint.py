# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: everything a resume needs in one Orbax step, and a way around a damaged one.

A run folder holds `checkpoints/last/<step>` (parameters, optimizer, data position, config; the
newest few) and `checkpoints/best/<step>` (parameters and config of the best evaluation). Orbax
writes to a temporary folder and renames it, so a step that exists was written to its end.

A step has `record`, JSON, and `state`, arrays by the names they have in memory, one level of dicts
for each part of a name:

    fixed/<path>       parameters that do not train: fixed/visual/blocks/mlp/fc1/kernel
    trained/<path>     those that do
    optimizer/...      the state of optax by its own fields: optimizer/0/0/mu/text/position
"""

import itertools
import json
import subprocess
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.experimental import multihost_utils

from cir_jax import files, progress
from cir_jax.errors import UserError

LAST = "checkpoints/last"
BEST = "checkpoints/best"
VERSION = 2  # of what a step holds; version 1 had other names for the arrays, see `_names`


class Checkpoints:
    """The checkpoints of one folder.

    Args:
      folder: e.g. run folder / LAST; made when first saved to.
      keep: how many of the newest stay.
      chunk_gb: arrays that are copied to the host at a time while a step is written, in GB; 0 is
        all of them, so that training goes on while they are written.
    """

    def __init__(self, folder: str | Path, keep: int = 2, chunk_gb: int = 0):
        self.folder = Path(folder).absolute()
        self._keep = keep
        self._chunk_gb = chunk_gb
        self._opened: ocp.CheckpointManager | None = None

    def steps(self) -> list[int]:
        """Steps that were written to their end, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(int(p.name) for p in self.folder.iterdir() if p.name.isdigit())

    def save(self, step: int, tree: dict[str, Any], record: dict[str, Any]) -> None:
        """Starts writing `tree` (arrays) and `record` (JSON) as `step`; returns once copied.

        A step that is there already is left alone: a run is deterministic.
        """
        if step in self.steps():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeSave(_nested(tree, _names(tree))),
                record=ocp.args.JsonSave({"version": VERSION} | record),
            ),
        )

    def record(self, step: int) -> dict[str, Any]:
        """The JSON record of `step`.

        Raises:
          UserError: it is of a newer version than this code reads.
          OSError, ValueError: it is missing or damaged.
        """
        record = json.loads((self.folder / str(step) / "record" / "metadata").read_text())
        files.check_version(record, VERSION, f"step {step} in {self.folder}")
        return record

    def restore(self, step: int, abstract: dict[str, Any], partial: bool = False) -> dict[str, Any]:
        """The arrays of `step`, placed as the shardings in `abstract` say.

        Args:
          step: one of `steps()`.
          abstract: the tree, of jax.ShapeDtypeStruct with shardings.
          partial: `abstract` may lack parts of what was saved (the optimizer).

        Raises:
          Exception: whatever Orbax raises for a damaged step.
        """
        names = _names(abstract, self.record(step).get("version", 1))
        wanted = _nested(abstract, names)
        arguments = ocp.args.PyTreeRestore(
            item=wanted,
            restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
            partial_restore=partial,
        )
        restored = self._manager.restore(step, args=ocp.args.Composite(state=arguments))
        arrays = flatten_dict(restored["state"], sep="/")
        return jax.tree.unflatten(jax.tree.structure(abstract), [arrays[name] for name in names])

    def forget(self, step: int) -> None:
        """Deletes a step."""
        self._manager.delete(step)

    def set_aside(self, step: int) -> Path:
        """Moves a damaged step out of the way, to `damaged/` beside the folder; nothing is lost."""
        self.close()
        place = self.folder.parent / "damaged" / f"{self.folder.name}-{step}"
        if jax.process_index() == 0:
            place.parent.mkdir(parents=True, exist_ok=True)
            while place.exists():
                place = place.with_name(place.name + "-again")
            (self.folder / str(step)).rename(place)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"set aside {step}")
        return place

    def wait(self) -> None:
        """Waits until everything is on disk."""
        if self._opened is not None:
            self._opened.wait_until_finished()

    def close(self) -> None:
        """Waits until everything is on disk, and lets go of the folder."""
        if self._opened is not None:
            self._opened.wait_until_finished()
            self._opened.close()
            self._opened = None

    @property
    def _manager(self) -> ocp.CheckpointManager:
        if self._opened is None:
            options = ocp.CheckpointManagerOptions(
                max_to_keep=self._keep, create=True, cleanup_tmp_directories=True
            )
            limits = {}
            if self._chunk_gb:
                limits = {
                    "save_concurrent_gb": self._chunk_gb,
                    "save_device_host_concurrent_gb": self._chunk_gb,
                }
            handlers = {
                "state": ocp.PyTreeCheckpointHandler(**limits),
                "record": ocp.JsonCheckpointHandler(),
            }
            self._opened = ocp.CheckpointManager(
                self.folder, options=options, item_handlers=handlers
            )
        return self._opened


def restore_newest(
    checkpoints: Checkpoints, abstract: dict[str, Any], check: Any
) -> tuple[int, dict[str, Any], dict[str, Any]] | None:
    """(step, tree, record) of the newest step that can be read; None if there is no step at all.

    A damaged step is named, moved aside and the one before it is used.

    Args:
      checkpoints: where to look.
      abstract: shapes, types and shardings of the tree.
      check: called with the record first; raises UserError if it belongs to another run.

    Raises:
      UserError: there are steps, but none can be read.
    """
    damaged = []
    for step in reversed(checkpoints.steps()):
        try:
            record = checkpoints.record(step)
            check(record)
            tree = checkpoints.restore(step, abstract)
        except UserError:
            raise
        except Exception as error:  # Orbax and TensorStore raise bare Exceptions here
            reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else repr(error)
            place = checkpoints.set_aside(step)
            damaged.append(f"step {step} ({reason}), moved to {place}")
            progress.say(f"damaged checkpoint: {damaged[-1]}; trying the one before it")
        else:
            return step, tree, record
    if damaged:
        raise UserError(
            f"no checkpoint in {checkpoints.folder} can be read: {'; '.join(damaged)}. "
            "Start again in another workdir, or restore the files from a copy"
        )
    return None


def find(workdir: str | Path, which: str = "best") -> tuple[Checkpoints, int]:
    """The checkpoint of a finished or running run.

    Args:
      workdir: the run folder.
      which: "best", "last" or a step number. "best" falls back to "last" for a run that has not
        been evaluated yet.

    Raises:
      UserError: there is no such run or step; what exists is listed.
    """
    best, last = Checkpoints(Path(workdir) / BEST, keep=1), Checkpoints(Path(workdir) / LAST)
    have = {"best": best.steps(), "last": last.steps()}
    if which == "best" and have["best"]:
        return best, have["best"][-1]
    if which in ("best", "last") and have["last"]:
        return last, have["last"][-1]
    if which.isdigit():
        for checkpoints in (best, last):
            if int(which) in checkpoints.steps():
                return checkpoints, int(which)
    raise UserError(
        f"no checkpoint {which!r} in {workdir}; there are steps best={have['best']}, "
        f"last={have['last']}. Give the folder that `cir-jax train` printed as its workdir"
    )


def git_hash() -> str:
    """The commit this code runs from, or "" outside a checkout."""
    try:
        return subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _names(tree: dict[str, Any], version: int = VERSION) -> list[str]:
    """The names on disk of the leaves of a tree, with a slash between levels."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path in paths]
    if version > 1:
        return names
    # Version 1: one level below the parts, with ":" for "/", and numbers in the optimizer.
    number = itertools.count()
    split = [name.split("/", 1) for name in names]
    return [
        f"{part}/{next(number):05d}" if part == "optimizer" else f"{part}/{path.replace('/', ':')}"
        for part, path in split
    ]


def _nested(tree: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """The leaves as nested dicts by their names. A part without leaves stays, as an empty one."""
    leaves = dict(zip(names, jax.tree.leaves(tree), strict=True))
    return {part: {} for part in tree} | unflatten_dict(leaves, sep="/")
