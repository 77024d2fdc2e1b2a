# SPDX-License-Identifier: Apache-2.0
"""One process at a time writes an index; whoever reads one needs no lock."""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from cir_jax import files
from cir_jax.errors import UserError

LOCK = "lock"  # stays there: deleting it would let two writers in
WRITER = "writer.json"
# What a command may leave in a new folder that was stopped before it wrote a record.
OWN = {LOCK, WRITER, f"{WRITER}.partial", "index.json.partial"}


@contextlib.contextmanager
def alone(folder: str | Path) -> Iterator[None]:
    """Nobody else writes the index in this `with`; its folder is made.

    Raises:
      UserError: another process writes it, or the folder cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK)
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"{_writer(folder)} writes the index in {folder}; wait until it has ended, or give "
            "another --out"
        ) from None
    except OSError as error:
        raise UserError(
            f"the index in {folder} cannot be written ({error.strerror or error}); give a folder "
            "that can be written (an index that is only searched may be read-only)"
        ) from None
    try:
        who = {"process": os.getpid(), "host": socket.gethostname(), "since": time.time()}
        files.put(folder / WRITER, json.dumps(who).encode())
        yield
    finally:
        with contextlib.suppress(OSError):
            (folder / WRITER).unlink(missing_ok=True)
        lock.release()


def _writer(folder: Path) -> str:
    """Who writes, in words."""
    try:
        who = json.loads((folder / WRITER).read_bytes())
        since = time.strftime("%H:%M:%S", time.localtime(float(who["since"])))
        return f"another process ({who['process']} on {who['host']}, since {since})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
