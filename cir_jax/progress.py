# SPDX-License-Identifier: Apache-2.0
"""Progress bars: on a terminal, on process 0, and nowhere else. Free of jax, so readers may use it.

Who is process 0 is told by `set_process` (`cir_jax.runtime.distributed` does), because asking jax
would start its backend.
"""

import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

from tqdm import tqdm

EVERY = 60.0  # seconds between two lines where there is no terminal

_process = 0


def set_process(index: int) -> None:
    """Tells this module which process it runs in; only 0 shows bars and prints messages."""
    global _process
    _process = index


def bar(
    iterable: Iterable | None = None, total: int | None = None, title: str = "", initial: int = 0
) -> tqdm:
    """`iterable` with a progress bar on standard error, if that is a terminal."""
    return tqdm(
        iterable,
        total=total,
        initial=initial,
        desc=title,
        disable=_process != 0 or not sys.stderr.isatty(),
        leave=False,
        dynamic_ncols=True,
    )


def counter(total: int, title: str, initial: int = 0) -> Any:
    """A bar that is moved by `update(n)`; use it in a `with`.

    Where there is no terminal, in the log of a job for hours, a line every minute takes its place.
    """
    if not sys.stderr.isatty():
        return _Lines(total, title, initial)
    return bar(total=total, title=title, initial=initial)


class _Lines:
    """Says how far it is, not more often than every `EVERY` seconds."""

    def __init__(self, total: int, title: str, done: int, clock: Callable = time.monotonic):
        self._total, self._title, self._done, self._clock = total, title, done, clock
        self._first = self._last = clock()
        self._start = done

    def __enter__(self) -> "_Lines":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, count: int) -> None:
        self._done += count
        now = self._clock()
        if now - self._last < EVERY:
            return
        self._last = now
        left = (self._total - self._done) * (now - self._first) / (self._done - self._start)
        say(f"{self._title}: {self._done:,} of {self._total:,}, {left / 60:,.0f} min left")


def say(*message: object, sep: str = " ") -> None:
    """Prints a line for people, once over all processes, without tearing a bar apart."""
    if _process == 0:
        tqdm.write(sep.join(str(m) for m in message), file=sys.stdout)
        sys.stdout.flush()
