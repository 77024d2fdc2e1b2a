# SPDX-License-Identifier: Apache-2.0
"""Vectors that were asked for once, on the disk of this host: by content, in a file per model.

Each answer is written at once, so that a run that is killed goes on where it was. A lock around
asking lets two runs on one machine ask for nothing twice.
"""

import json
import sqlite3
import threading
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from filelock import FileLock
from numpy.typing import NDArray

from cir_jax import files, progress
from cir_jax.errors import UserError

FOLDER = "embeddings"  # of the cache folder
_VERSION = 1
_AT_ONCE = 500  # keys of a question to the file
_TABLES = """
create table if not exists vectors (key blob primary key, value blob not null) without rowid;
create table if not exists facts (name text primary key, value text not null) without rowid;
"""


class Cache:
    """The vectors of one model.

    Args:
      folder: where its file lies; "" is the cache folder of this host.
      identity: what tells the model from others; JSON.

    Attributes:
      path: the file.

    Raises:
      UserError: the file cannot be made or used.
    """

    def __init__(self, folder: str, identity: Mapping[str, Any]):
        text = json.dumps({"version": _VERSION, **identity}, sort_keys=True)
        name = f"{xxhash.xxh3_64_hexdigest(text.encode())}.sqlite"
        self.path = (Path(folder) if folder else files.cache() / FOLDER) / name
        self._identity = text
        self._lock = threading.Lock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._base = self._opened()
        except (OSError, sqlite3.OperationalError) as error:
            raise self._unusable(error) from None
        except sqlite3.DatabaseError as error:  # no such file, or a damaged one
            progress.say(files.set_aside(self.path, str(error)))
            self._base = self._opened()
        self.asking = FileLock(f"{self.path}.lock")
        self._close = weakref.finalize(self, self._base.close)

    def _opened(self) -> sqlite3.Connection:
        base = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=60)
        try:
            # An answer is then written without waiting for the disk: what a process that is killed
            # has written is there, and a power failure takes the last answers, not the file.
            base.execute("pragma journal_mode = wal")
            base.execute("pragma synchronous = normal")
            base.executescript(_TABLES)
            base.execute("insert or ignore into facts values ('identity', ?)", [self._identity])
        except sqlite3.Error:
            base.close()
            raise
        return base

    def _unusable(self, error: Exception) -> UserError:
        return UserError(
            f"vectors cannot be kept in {self.path} ({error}); make room there, correct its "
            "permissions, or delete it if it is damaged, or name another folder, model.cache"
        )

    def get(self, keys: Iterable[bytes]) -> dict[bytes, NDArray[np.float32]]:
        """Those of the vectors that are there."""
        wanted, found = list(dict.fromkeys(keys)), dict[bytes, NDArray[np.float32]]()
        for start in range(0, len(wanted), _AT_ONCE):
            some = wanted[start : start + _AT_ONCE]
            marks = ",".join("?" * len(some))
            rows = self._run(f"select key, value from vectors where key in ({marks})", some)
            found |= {bytes(key): np.frombuffer(value, "<f4") for key, value in rows}
        return found

    def has(self, keys: Iterable[bytes]) -> set[bytes]:
        """Those of the keys whose vectors are there."""
        wanted, found = list(dict.fromkeys(keys)), set[bytes]()
        for start in range(0, len(wanted), _AT_ONCE):
            some = wanted[start : start + _AT_ONCE]
            marks = ",".join("?" * len(some))
            rows = self._run(f"select key from vectors where key in ({marks})", some)
            found |= {bytes(key) for (key,) in rows}
        return found

    def put(self, vectors: Mapping[bytes, NDArray[np.float32]]) -> None:
        """Keeps vectors: all of them, or none.

        Raises:
          UserError: the disk is full or fails.
        """
        rows = [(key, value.astype("<f4").tobytes()) for key, value in vectors.items()]
        with self._lock:
            try:
                with self._base:
                    self._base.execute("begin immediate")
                    self._base.executemany("insert or replace into vectors values (?, ?)", rows)
            except sqlite3.Error as error:
                raise self._unusable(error) from None

    def fact(self, name: str) -> Any:
        """What was noted under a name; None if nothing was."""
        rows = self._run("select value from facts where name = ?", [name])
        return json.loads(rows[0][0]) if rows else None

    def note(self, name: str, value: Any) -> None:
        """Notes a fact about all vectors."""
        self._run("insert or replace into facts values (?, ?)", [name, json.dumps(value)])

    def _run(self, command: str, values: list[Any]) -> list[tuple]:
        with self._lock:
            try:
                return self._base.execute(command, values).fetchall()
            except sqlite3.Error as error:
                raise self._unusable(error) from None

    def close(self) -> None:
        """Lets go of the file."""
        with self._lock:
            self._close()
