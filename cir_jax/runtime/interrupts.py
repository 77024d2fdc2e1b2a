# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C and SIGTERM as a request to stop at the next step, on every process at the same one."""

import signal
import threading
from types import FrameType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

EVERY = 20  # steps between two questions to the other processes; asking costs a round trip


class StopRequest:
    """Context manager: `now(step)` is True once a signal has come. A second signal kills."""

    def __init__(self) -> None:
        self._asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def now(self, step: int) -> bool:
        """True on all processes at the same step after any of them got a signal."""
        if jax.process_count() == 1:
            return self._asked
        if step % EVERY:
            return False
        return bool(multihost_utils.process_allgather(np.asarray(self._asked)).any())

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
