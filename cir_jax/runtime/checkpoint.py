# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: everything a resume needs in one Orbax step, and a way around a damaged one.

A run folder holds `checkpoints/last/<step>` (parameters, optimizer, data position, config; the
newest few) and `checkpoints/best/<step>` (parameters and config of the best evaluation). A step
that exists was written to its end, and has checksums of all of its files: see `commits`.

A step has `record`, JSON, and `state`, arrays by the names they have in memory, one level of dicts
for each part of a name:

    fixed/<path>       parameters that do not train: fixed/visual/blocks/mlp/fc1/kernel
    trained/<path>     those that do
    optimizer/...      the state of optax by its own fields: optimizer/0/0/mu/text/position

Every step is checked before it is read, by all processes together. Damage is a file that is
missing, short, or not what was written: then the step is moved aside and the one before it used. A
step that is whole and cannot be restored all the same stays where it is.
"""

import itertools
import json
import logging
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict, unflatten_dict

from cir_jax import files, progress
from cir_jax.errors import UserError
from cir_jax.runtime import agreement, checksums, commits, storage

LAST = "checkpoints/last"
BEST = "checkpoints/best"
DAMAGED = "damaged"  # beside them
# Of what a step holds. Version 1 had other names for the arrays, see `_names`; version 2 had no
# checksums.
VERSION = 3
_CHECKED_FROM = 3
_RECORD = "record/metadata"
_NO_RECORD = (
    *(FileNotFoundError, IsADirectoryError, NotADirectoryError),
    *(ValueError, TypeError, RecursionError),
)


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
        self._writes = False  # whether `_opened` may
        self._writing = (0, 0)  # step and bytes of the last save

    def steps(self) -> list[int]:
        """Steps that were written to their end, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(int(p.name) for p in self.folder.iterdir() if commits.is_step(p))

    def set_aside_before(self) -> list[Path]:
        """Damaged steps of this folder that were moved out of the way, see `set_aside`."""
        return sorted((self.folder.parent / DAMAGED).glob(f"{self.folder.name}-*"))

    def save(self, step: int, tree: dict[str, Any], record: dict[str, Any]) -> None:
        """Starts writing `tree` (arrays) and `record` (JSON) as `step`; returns once copied.

        A step that is there already is left alone: a run is deterministic.

        Raises:
          UserError: the disk is full, now or when the step before this one was written.
        """
        if step in self._steps_of_first():
            return
        self.wait()
        self._writing = (step, sum(x.nbytes for x in jax.tree.leaves(tree)))
        with self._failing():
            self._open(writes=True).save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(_nested(tree, _names(tree))),
                    record=ocp.args.JsonSave({"version": VERSION} | record),
                ),
            )

    def record(self, step: int) -> dict[str, Any]:
        """The JSON record of `step`.

        Raises:
          UserError: it is damaged, cannot be read, or is of a newer version than this code reads.
        """
        folder = self._folder(step)
        try:
            if checksums.exists(folder):
                checksums.check_file(folder, _RECORD)
            record = dict(json.loads((folder / _RECORD).read_text()))
        except checksums.Damaged as error:
            raise self.damaged(step, str(error)) from None
        except UserError:
            raise
        except _NO_RECORD:
            raise self.damaged(step, f"{_RECORD} is missing or no record") from None
        except OSError as error:
            raise UserError(f"step {step} in {self.folder} could not be read ({error})") from error
        files.check_version(record, VERSION, f"step {step} in {self.folder}")
        return record

    def damage(self, step: int) -> str:
        """What is damaged in a step, in words; "" for nothing. Each process checks a part of it.

        Raises:
          UserError: a process could not read it, which is no damage.
        """

        def here() -> list[str]:
            folder = self._folder(step)
            try:
                if checksums.exists(folder):
                    return checksums.check(folder, (jax.process_index(), jax.process_count()))
                version = dict(json.loads((folder / _RECORD).read_text())).get("version", 1)
            except checksums.Damaged as error:
                return [str(error)]
            except UserError:
                raise
            except _NO_RECORD:
                return [f"{_RECORD} is missing or no record"]
            except OSError as error:
                raise UserError(
                    f"step {step} in {self.folder} could not be read ({error}); nothing was moved. "
                    "If the storage was away for a moment, give the same command again"
                ) from error
            return [f"{checksums.NAME} is missing"] if version >= _CHECKED_FROM else []

        found = agreement.everywhere(here, "could not check a checkpoint")
        told = agreement.tell("; ".join(found[:3]) + ", and more" * (len(found) > 3))
        return "; ".join(filter(None, told))

    def restore(self, step: int, abstract: dict[str, Any], partial: bool = False) -> dict[str, Any]:
        """The arrays of `step`, placed as the shardings in `abstract` say, after a check of it.

        Args:
          step: one of `steps()`.
          abstract: the tree, of jax.ShapeDtypeStruct with shardings.
          partial: `abstract` may lack parts of what was saved (the optimizer).

        Raises:
          UserError: the step is damaged, or cannot be restored for another reason.
        """
        if reason := self.damage(step):
            raise self.damaged(step, reason)
        return self.restore_checked(step, abstract, partial)

    def restore_checked(
        self, step: int, abstract: dict[str, Any], partial: bool = False
    ) -> dict[str, Any]:
        """As `restore`, of a step that `damage` has found whole."""
        names = _names(abstract, self.record(step).get("version", 1))
        wanted = _nested(abstract, names)
        try:
            arguments = ocp.args.PyTreeRestore(
                item=wanted,
                restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
                partial_restore=partial,
            )
            restored = self._open(writes=False).restore(
                step, args=ocp.args.Composite(state=arguments)
            )
            arrays = flatten_dict(restored["state"], sep="/")
            leaves = [arrays[name] for name in names]
        except Exception as error:  # Orbax and TensorStore raise bare Exceptions here
            raise UserError(self._unread(step, error)) from error
        return jax.tree.unflatten(jax.tree.structure(abstract), leaves)

    def has_checksums(self, step: int) -> bool:
        """False for steps that were made before there were any."""
        return checksums.exists(self._folder(step))

    def forget(self, step: int) -> None:
        """Deletes a step."""
        self._open(writes=True).delete(step)

    def set_aside(self, step: int) -> str:
        """Moves a damaged step out of the way, to `damaged/` beside the folder; nothing is lost.

        Process 0 does so, and the others wait for it.
        """
        self.close()

        def move() -> str:
            place = self.folder.parent / DAMAGED / f"{self.folder.name}-{step}"
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                while place.exists():
                    place = place.with_name(place.name + "-again")
                self._folder(step).rename(place)
            except OSError as error:
                raise UserError(
                    f"step {step} in {self.folder} is damaged and cannot be moved to {place} "
                    f"({error.strerror or error}); move it away, then give the same command again"
                ) from None
            return str(place)

        return agreement.first(move, "could not move a damaged checkpoint")

    def wait(self) -> None:
        """Waits until everything is on disk.

        Raises:
          UserError: the disk is full.
        """
        if self._opened is not None:
            with self._failing():
                self._opened.wait_until_finished()

    def close(self) -> None:
        """Waits until everything is on disk, and lets go of the folder.

        Raises:
          UserError: the disk is full.
        """
        opened, self._opened = self._opened, None
        if opened is not None:
            with self._failing():
                try:
                    opened.wait_until_finished()
                finally:
                    opened.close()

    def _folder(self, step: int) -> Path:
        return self.folder / str(step)

    def _steps_of_first(self) -> list[int]:
        """The steps that process 0 sees: shared storage may show others another state of it."""
        return json.loads(agreement.tell(json.dumps(self.steps()))[0])

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """Says which step could not be written, and what it lacks."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            step, need = self._writing
            if not files.lacks_room(error):
                error.add_note(f"while step {step} was written to {self.folder}")
                raise
            opened, self._opened = self._opened, None  # it counts the step among those it wrote
            if opened is not None:
                with suppress(Exception):
                    opened.close()
            self._drop_unfinished()
            before = ", ".join(str(s) for s in self.steps()) or "none"
            room = files.room_for(need, self.folder)
            raise UserError(
                f"step {step} in {self.folder} could not be saved: the disk is full. {room}; steps "
                f"there that are kept: {before}. Make room, then give the same command again"
            ) from error

    def _drop_unfinished(self) -> None:
        """Gives the room of what was never finished back. Only the writer of a folder may do so."""
        if jax.process_index() == 0 and self.folder.is_dir():
            for place in self.folder.iterdir():
                name = place.name.partition(commits.UNFINISHED)[0]
                if name.isdigit() and not commits.is_step(place):
                    shutil.rmtree(place, ignore_errors=True)

    def damaged(self, step: int, reason: str) -> UserError:
        """What to say of a step that is not what was written."""
        if not commits.is_step(self._folder(step)):
            return UserError(
                f"step {step} in {self.folder} is not there any more: a run that trains deletes "
                "older steps. Give the same command again"
            )
        others = [str(s) for s in self.steps() if s != step]
        return UserError(
            f"step {step} in {self.folder} is damaged ({reason}); restore it from a copy, or use "
            f"another step of the run (here: {', '.join(others) or 'none'})"
        )

    def _unread(self, step: int, error: Exception) -> str:
        """What to say of a step that is whole and could not be restored."""
        told = str(error).strip() or repr(error)
        said = (
            f"step {step} in {self.folder} could not be restored ({told.splitlines()[0][:300]}). "
            "Nothing was moved. "
        )
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in told:
            return said + (
                "There is too little memory: end what else runs on these devices, or shard the "
                "parameters over more of them (mesh.model), then give the same command again"
            )
        if not self.has_checksums(step):
            return said + (
                "It was made before steps had checksums, so it may be damaged: if the same comes "
                f"again, move {self._folder(step)} away, and the step before it is used"
            )
        wrote = checksums.read(self._folder(step))["about"].get("orbax-checkpoint")
        if wrote != ocp.__version__:
            return said + (
                f"Its files are what was written, by orbax-checkpoint {wrote}; this is "
                f"{ocp.__version__}: install that version, or give another step"
            )
        return said + (
            "Its files are what was written: if the storage was away for a moment, give the same "
            "command again; if the model's code has changed since, use the one that wrote it"
        )

    def _open(self, writes: bool) -> ocp.CheckpointManager:
        """The manager of Orbax. Only one that writes clears away what was never finished: another
        run may be at it while this one reads."""
        if self._opened is not None and writes and not self._writes:
            self.close()
        if self._opened is None:
            self._writes = writes
            logging.getLogger("absl").addFilter(_not_raised)
            if writes:
                self._drop_unfinished()
            marked = storage.is_bucket(self.folder)
            options = ocp.CheckpointManagerOptions(
                max_to_keep=self._keep,
                create=writes,
                cleanup_tmp_directories=writes,
                temporary_path_class=commits.Marked if marked else commits.Renamed,
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
    """(step, tree, record) of the newest step that is whole; None if there is no step at all.

    A damaged step is named, moved aside and the one before it is used, by all processes alike.

    Args:
      checkpoints: where to look.
      abstract: shapes, types and shardings of the tree.
      check: called with the record first; raises UserError if it belongs to another run.

    Raises:
      UserError: there are steps, or were, and all are damaged; or a whole one cannot be restored.
    """
    damaged = []
    for step in reversed(checkpoints._steps_of_first()):
        if reason := checkpoints.damage(step):
            place = checkpoints.set_aside(step)
            damaged.append(f"step {step} ({reason}), moved to {place}")
            progress.say(f"damaged checkpoint: {damaged[-1]}; trying the one before it")
            continue
        record = checkpoints.record(step)
        check(record)
        return step, checkpoints.restore_checked(step, abstract), record
    if not damaged:
        damaged = [str(place) for place in checkpoints.set_aside_before()]
    if damaged:
        raise UserError(
            f"no checkpoint in {checkpoints.folder} can be read: {'; '.join(damaged)}. Restore the "
            "files from a copy, or start again in another workdir; to start from step 0 in this "
            f"one, delete {checkpoints.folder.parent / DAMAGED}"
        )
    return None


def _not_raised(record: logging.LogRecord) -> bool:
    """False for what Orbax logs as an error, a page of it: it raises the same, and that is told."""
    return record.levelno < logging.ERROR or "orbax" not in record.pathname


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
