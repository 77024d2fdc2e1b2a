# SPDX-License-Identifier: Apache-2.0
"""The folder of a bank: which run may build there, and which of its processes writes."""

import uuid
from pathlib import Path

import jax
import numpy as np
from filelock import FileLock, Timeout
from jax.experimental import multihost_utils

from cir_jax.errors import UserError

LOCK = ".lock"  # stays there: deleting it would let two runs in


def make(folder: str | Path) -> None:
    """Makes the folder of a bank.

    Raises:
      UserError: there can be no such folder.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unfit(folder, error) from None


def lock(folder: str | Path) -> FileLock:
    """Keeps other runs from building in `folder`, until it is released or the process ends.

    Raises:
      UserError: another run is building there, or the folder cannot be written.
    """
    file_lock = FileLock(Path(folder) / LOCK)
    try:
        file_lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"another run is building the bank in {folder}; wait for it, or set loss.bank_path to "
            "another folder"
        ) from None
    except OSError as error:
        raise _unfit(folder, error) from None
    return file_lock


def is_writer(folder: str | Path) -> bool:
    """Whether this process writes `folder`: the first of those that see the same one.

    Hosts may share the folder or have one each by the same path, so each process leaves a file of
    its own there and looks whose it finds.
    """
    if jax.process_count() == 1:
        return True
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    this = jax.process_index()
    drawn = np.frombuffer(uuid.uuid4().bytes[:4], np.int32)
    code = int(multihost_utils.broadcast_one_to_all(drawn)[0]) & 0xFFFFFFFF
    marks = [folder / f".{code:08x}-{i}" for i in range(jax.process_count())]
    marks[this].touch()
    multihost_utils.sync_global_devices(f"bank marks {code}")
    first = next(i for i, mark in enumerate(marks) if mark.exists())
    multihost_utils.sync_global_devices(f"bank marks seen {code}")
    marks[this].unlink()
    return first == this


def _unfit(folder: str | Path, error: OSError) -> UserError:
    return UserError(
        f"the bank cannot be in {folder} ({error.strerror or error}); set loss.bank_path to a "
        "folder that can be written"
    )
