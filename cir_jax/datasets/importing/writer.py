# SPDX-License-Identifier: Apache-2.0
"""A JSON-lines file that appears under its name when it is complete, and not before."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from cir_jax import files
from cir_jax.errors import UserError


@dataclass
class Writer:
    """The file while it is written; `written` records so far."""

    file: BinaryIO | None = None
    written: int = 0

    def write(self, record: dict[str, Any], anything: bool = False) -> None:
        """Appends one record.

        Args:
          record: the record.
          anything: also write what JSON or UTF-8 cannot hold, escaped or as text.

        Raises:
          ValueError: it holds such characters or numbers.
        """
        line = json.dumps(
            record, ensure_ascii=anything, allow_nan=anything, default=str if anything else None
        ).encode()
        assert self.file is not None  # inside the `with` of `open_writer`
        self.file.write(line + b"\n")
        self.written += 1


@contextmanager
def open_writer(path: str | Path, overwrite: bool = False, keep: bool = False) -> Iterator[Writer]:
    """`with open_writer("out.jsonl") as lines: lines.write(record)` writes out.jsonl.partial.

    Args:
      path: the file. Its folder is made.
      overwrite: whether there may be such a file; it is replaced at the end, not before.
      keep: whether what was written also appears when the block ends with a UserError (a list of
        what went wrong is worth most then).

    Raises:
      UserError: there is such a file; or it cannot be written (disk full), in which case nothing is
        left of it and a file that was there stays.
    """
    path, lines, stopped = Path(path), Writer(), None
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file")
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists; name another file, or replace it (--overwrite)")

    def failed(path: Path, error: OSError) -> UserError:
        return UserError(
            f"cannot write {path}.partial after {lines.written:,} records: "
            f"{error.strerror or error}; make room or choose another place. {path} was not touched"
        )

    with files.whole(path, failed) as lines.file:
        try:
            yield lines
        except UserError as error:
            if not (keep and lines.written):
                raise
            stopped = error
    if stopped:
        raise stopped
