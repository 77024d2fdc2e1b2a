# SPDX-License-Identifier: Apache-2.0
"""Progress bars: on a terminal, on process 0, and nowhere else. Free of jax, so readers may use it.

Everything that is printed goes through `shown`: names and texts come from strangers' files, and a
terminal obeys what they may hold.

Who is process 0 is told by `set_process` (`cir_jax.runtime.distributed` does), because asking jax
would start its backend.
"""

import re
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, TextIO

from tqdm import tqdm

EVERY = 60.0  # seconds between two lines where there is no terminal

# Control characters (but LF and tab), marks that turn the direction of text, separators of lines
# and paragraphs, and halves of surrogate pairs. Joiners and tags are parts of emoji, and stay.
_OBEYED = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)

_process = 0


def set_process(index: int) -> None:
    """Tells this module which process it runs in; only 0 shows bars and prints messages."""
    global _process
    _process = index


def shown(text: object, one_line: bool = False) -> str:
    """A text as it may be printed: what a terminal or browser would obey is written as an escape.

    Args:
      text: anything.
      one_line: escape line ends and tabs as well, where the text is a name in a table.
    """
    text = str(text)
    if text.isprintable():
        return text
    text = _OBEYED.sub(_escape, text)
    return re.sub("[\n\t]", _escape, text) if one_line else text


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


def show(*message: object, sep: str = " ", file: TextIO | None = None) -> None:
    """Prints a line of this process for people.

    Args:
      message: its parts.
      sep: what stands between them.
      file: standard output if None.
    """
    file = file or sys.stdout
    print(_fitting(sep.join(map(str, message)), file), file=file, flush=True)


def _fitting(text: str, file: TextIO) -> str:
    """A text that a stream can write: one of ASCII or of a code page has few letters."""
    codec = getattr(file, "encoding", None) or "utf-8"
    return shown(text).encode(codec, "backslashreplace").decode(codec)


def bar(
    iterable: Iterable | None = None, total: int | None = None, title: str = "", initial: int = 0
) -> tqdm:
    """`iterable` with a progress bar on standard error, if that is a terminal."""
    return tqdm(
        iterable,
        total=total,
        initial=initial,
        desc=shown(title, one_line=True),
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
        tqdm.write(_fitting(sep.join(map(str, message)), sys.stdout), file=sys.stdout)
        sys.stdout.flush()
