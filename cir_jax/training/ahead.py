# SPDX-License-Identifier: Apache-2.0
"""Batches on the devices before their step comes: a thread reads them and places them."""

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from grain import DatasetIterator

AHEAD = 2  # batches that lie on the devices and wait
PATIENCE = 5.0  # seconds to wait at the end for a thread that still reads

Rows = dict[str, np.ndarray]


@dataclass(frozen=True)
class Batch:
    """A global batch.

    Attributes:
      rows: field -> the rows of this process [b, ...], on the host.
      placed: field -> all rows [B, ...], on the devices.
      state: of the iterator, from which the next batch follows: what belongs into a checkpoint
        once this batch has been trained on.
    """

    rows: Rows
    placed: dict[str, jax.Array]
    state: dict[str, Any]


class Ahead:
    """The batches of an iterator, of which `AHEAD` are placed before they are asked for.

    Placing starts no program and talks to no other process, so the thread needs no order with what
    the main thread does. It starts at the first `take`, and `close` ends it.

    Args:
      batches: nobody else may draw from it from here on.
      place: host rows -> arrays on the devices.
    """

    def __init__(self, batches: DatasetIterator, place: Callable[[Rows], dict[str, jax.Array]]):
        self._batches, self._place = batches, place
        self._placed: queue.SimpleQueue[Batch | BaseException] = queue.SimpleQueue()
        self._room = threading.Semaphore(AHEAD)
        self._closed = False
        self._thread = threading.Thread(target=self._run, daemon=True, name="input")

    def close(self) -> None:
        """Ends the thread."""
        self._closed = True
        self._room.release()
        if self._thread.is_alive():
            self._thread.join(PATIENCE)  # storage that does not answer must not keep a run alive

    def ready(self) -> bool:
        """Whether `take` returns at once."""
        return not self._placed.empty()

    def take(self) -> Batch:
        """The next batch.

        Raises:
          Exception: what reading or placing this batch has raised.
        """
        if self._thread.ident is None:
            self._thread.start()
        found = self._placed.get()
        if isinstance(found, BaseException):
            raise found
        self._room.release()
        return found

    def _run(self) -> None:
        try:
            while True:
                rows = next(self._batches)
                state = self._batches.get_state()
                self._room.acquire()
                if self._closed:
                    return
                self._placed.put(Batch(rows, self._place(rows), state))
        except BaseException as error:  # raised where the batch is asked for
            self._placed.put(error)
