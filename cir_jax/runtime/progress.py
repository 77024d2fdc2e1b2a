# SPDX-License-Identifier: Apache-2.0
"""Progress bars: on a terminal, on process 0, and nowhere else. Free of jax, so readers may use it.

Who is process 0 is told by `set_process` (`cir_jax.runtime.distributed` does), because asking jax
would start its backend.
"""

import sys
from collections.abc import Iterable, Iterator
from typing import Any

from tqdm import tqdm

_process = 0


def set_process(index: int) -> None:
    """Tells this module which process it runs in; only 0 shows bars and prints messages."""
    global _process
    _process = index


def bar(iterable: Iterable | None = None, total: int | None = None, title: str = "") -> Iterator:
    """`iterable` with a progress bar on standard error, if that is a terminal."""
    return tqdm(
        iterable,
        total=total,
        desc=title,
        disable=_process != 0 or not sys.stderr.isatty(),
        leave=False,
        dynamic_ncols=True,
    )


def counter(total: int, title: str, initial: int = 0) -> Any:
    """A bar that is moved by `update(n)`; use it in a `with`."""
    return tqdm(
        total=total,
        initial=initial,
        desc=title,
        disable=_process != 0 or not sys.stderr.isatty(),
        leave=False,
        dynamic_ncols=True,
    )


def say(*message: object, sep: str = " ") -> None:
    """Prints a line for people, once over all processes, without tearing a bar apart."""
    if _process == 0:
        tqdm.write(sep.join(str(m) for m in message), file=sys.stdout)
        sys.stdout.flush()
