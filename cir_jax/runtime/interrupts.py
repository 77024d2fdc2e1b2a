# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C and SIGTERM as a request to stop at the next step, on every process at the same one."""

import signal
import threading
from types import FrameType
from typing import Any

import jax

from cir_jax.runtime import distributed, supervision
from cir_jax.runtime.limits import Limits


class StopRequest:
    """Context manager: `now(step)` is True once a signal has come.

    Within a command the thread of `supervision` hears the signals. In a program that uses the
    library they are heard here, if this is its main thread: the first one is a request, and what
    the program did with them before is what the next one does (a second Ctrl-C raises
    KeyboardInterrupt). Nothing ends the program.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self._asked = False
        self._before: dict[int, Any] = {}
        self._watcher = supervision.current()
        several = jax.process_count() > 1
        self._cluster = distributed.join(limits or Limits()) if several else None

    def __enter__(self) -> "StopRequest":
        if self._watcher is None and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def now(self, step: int) -> bool:
        """True on all processes after the same `step`, after any of them got a signal."""
        if self._cluster is not None:
            if self._asked and self._cluster.stop is None:
                self._cluster.ask_to_stop("a signal")
            return not self._cluster.may_go_on(step)
        return self._asked or (self._watcher is not None and self._watcher.asked)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
