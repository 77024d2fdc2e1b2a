# SPDX-License-Identifier: Apache-2.0
"""What a run logs: JSON lines and TensorBoard events, written by process 0."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import jax

from cir_jax import files

FILE = "metrics.jsonl"


class Logger:
    """Appends lines {"step": n, name: value, ...} to `folder`/metrics.jsonl and to TensorBoard.

    A run that resumes at `step` first drops the lines after it, so that the file reads as that of
    a run that was never stopped.
    """

    def __init__(self, folder: str | Path, step: int = 0):
        self._file: TextIO | None = None
        self._events: Any = None
        if jax.process_index() != 0:
            return
        with _no_import_of("torch"):
            from tensorboardX import SummaryWriter

        path = Path(folder) / FILE
        kept = [line for line in read(path) if line["step"] <= step]
        with files.whole(path) as file:
            file.write("".join(json.dumps(line) + "\n" for line in kept).encode())
        self._file = path.open("a")
        self._events = SummaryWriter(str(Path(folder) / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Logs scalars (TensorBoard) and anything that JSON holds (the file)."""
        if self._file is None:
            return
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            if isinstance(value, int | float):
                self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes and closes both files."""
        if self._file is not None:
            self._file.close()
            self._events.close()


def read(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; [] if there is none. A line cut by a kill is left out."""
    path = Path(path)
    lines = []
    for text in path.read_text().splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines


@contextmanager
def _no_import_of(package: str) -> Iterator[None]:
    """Lets an import go without an optional package: PyTorch takes longer to load than jax."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]  # Python's way to say "not there"
    try:
        yield
    finally:
        del sys.modules[package]
