# SPDX-License-Identifier: Apache-2.0
"""Files of ours: there whole or not at all, of a version that is read. Free of jax, for readers."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from cir_jax.errors import UserError


def full(path: Path, error: OSError) -> UserError:
    """What to say when a file cannot be written."""
    return UserError(
        f"{path} cannot be written ({error.strerror or error}); what it held is kept. Make room or "
        "correct that, then give the same command again"
    )


@contextmanager
def whole(
    path: str | Path, failed: Callable[[Path, OSError], UserError] = full
) -> Iterator[BinaryIO]:
    """Opens a file that takes the place of `path` only when all of it is written.

    Args:
      path: the file; its folder is made.
      failed: (path, error) -> what to raise.

    Raises:
      UserError: the disk is full or fails; `path` is as it was.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise failed(path, error) from None
        raise


def check_version(record: Mapping[str, Any], newest: int, what: str) -> None:
    """Checks the version of a format of ours, which is 1 where a record does not say any.

    Args:
      record: JSON, of which "version" is read.
      newest: the newest version that this code reads.
      what: the place of the record, for the message.

    Raises:
      UserError: it is of a newer version.
    """
    version = record.get("version", 1)
    if version not in range(1, newest + 1):
        known = "version 1" if newest == 1 else f"versions 1 to {newest}"
        raise UserError(
            f"{what} is of version {version!r} of its format, and this code reads {known}; update "
            "cir_jax, or use the version that wrote it"
        )
