# SPDX-License-Identifier: Apache-2.0
"""What Pillow warns of while it opens a file: one line that names the file, once a file.

Of each kind of warning the first files are named: a data set may have a hundred thousand of one.

Python's own way to collect warnings changes the whole process and is not for threads; here each
thread has a list while it works on a file, and `warnings.showwarning` puts what it hears into it.
"""

import re
import threading
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cir_jax import progress

FIRST = 20  # files that are named for each kind of warning
_now = threading.local()
_installing = threading.Lock()
_said: set[str] = set()  # files whose line was printed
_counts: Counter[str] = Counter()  # kind of warning -> files
_show: Any = None  # what showed warnings before


@contextmanager
def named(source: Any) -> Iterator[None]:
    """Warnings of this thread are about the file `source`; inside another `named` about that one's.

    Args:
      source: a path, or anything whose text names it; bytes are named by their number.
    """
    if getattr(_now, "texts", None) is not None:
        yield
        return
    _install()
    texts: list[str] = []
    _now.texts = texts
    try:
        yield
    finally:
        _now.texts = None
        if texts:
            name = f"{len(source)} bytes" if isinstance(source, bytes) else str(source)
            _say(name, texts)


def note(text: str) -> None:
    """Adds to what is said of the file that this thread works on."""
    texts = getattr(_now, "texts", None)
    if texts is not None:
        texts.append(text)


def _say(name: str, texts: list[str]) -> None:
    what = "; ".join(" ".join(text.split()).rstrip(".") for text in dict.fromkeys(texts))
    kind = re.sub(r"[0-9]+", "0", what)
    with _installing:
        if name in _said or _counts[kind] == FIRST:
            return
        _said.add(name)
        _counts[kind] += 1
        last = _counts[kind] == FIRST
    more = " (further images with this warning are not named)" if last else ""
    progress.say(f"warning: image {name}: {what}{more}")


def _install() -> None:
    """Listens, if nobody does: tests and other libraries put back what they found."""
    global _show
    if warnings.showwarning is _hear:
        return
    with _installing:
        if warnings.showwarning is _hear:
            return
        _show = warnings.showwarning
        # Python shows a text once per line of code, which would be of one file only. Deprecations,
        # which are for programmers, stay as they are.
        for category in (UserWarning, RuntimeWarning):
            warnings.filterwarnings("always", category=category, module=r"PIL\.")
        warnings.showwarning = _hear


def _hear(message: Any, category: Any, filename: str, lineno: int, *rest: Any, **more: Any) -> None:
    texts = getattr(_now, "texts", None)
    if texts is None:
        _show(message, category, filename, lineno, *rest, **more)
    else:
        texts.append(str(message))
