# SPDX-License-Identifier: Apache-2.0
"""A file that is there whole or not at all. Free of jax, so readers may use it."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

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
