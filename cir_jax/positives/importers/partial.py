# SPDX-License-Identifier: Apache-2.0
"""A JSON-lines file that appears under its name when it is complete, and not before."""

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from cir_jax.errors import UserError


class Partial:
    """`with Partial("out.jsonl") as file: file.write(record)` writes out.jsonl.partial.

    Args:
      path: the file. Its folder is made.
      overwrite: whether there may be such a file; it is replaced at the end, not before.
      keep: whether what was written also appears when the block ends with a UserError (a list of
        what went wrong is worth most then).

    Raises:
      UserError: there is such a file; or it cannot be written (disk full), in which case nothing is
        left of it and a file that was there stays.
    """

    def __init__(self, path: str | Path, overwrite: bool = False, keep: bool = False):
        self.path, self.keep, self.written, self.file = Path(path), keep, 0, None
        self.partial = self.path.with_name(f"{self.path.name}.partial")
        if self.path.is_dir():
            raise UserError(f"{self.path} is a folder; name a file")
        if self.path.exists() and not overwrite:
            raise UserError(f"{self.path} exists; name another file, or replace it (--overwrite)")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = self.partial.open("wb")
        except OSError as error:
            raise self._failed(error) from None

    def write(self, record: dict[str, Any], anything: bool = False) -> None:
        """Appends one record.

        Args:
          record: the record.
          anything: write what JSON and UTF-8 have no form for nevertheless, escaped or as text.

        Raises:
          ValueError: it holds such characters or numbers.
        """
        line = json.dumps(
            record, ensure_ascii=anything, allow_nan=anything, default=str if anything else None
        ).encode()
        try:
            self.file.write(line + b"\n")
        except OSError as error:
            raise self._failed(error) from None
        self.written += 1

    def __enter__(self) -> "Partial":
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        complete = kind is None or bool(self.keep and self.written and issubclass(kind, UserError))
        try:
            self.file.flush()
            os.fsync(self.file.fileno())
            self.file.close()
            if complete:
                self.partial.replace(self.path)
        except OSError as problem:
            complete = False
            if kind is None:
                raise self._failed(problem) from None
        finally:
            if not complete:
                self._drop()

    def _drop(self) -> None:
        try:
            self.file.close()
        except OSError:  # what is still in its buffer cannot be written either
            pass
        self.partial.unlink(missing_ok=True)

    def _failed(self, error: OSError) -> UserError:
        return UserError(
            f"cannot write {self.partial} after {self.written:,} records: "
            f"{error.strerror}; make room or choose another place. {self.path} was not touched"
        )
