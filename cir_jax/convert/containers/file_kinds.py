# SPDX-License-Identifier: Apache-2.0
"""What lies where weights should be: a page, a pointer, an older format.

A failed download and a checkout without git-lfs leave files of the right name. Their first bytes
tell, and the message can then say what to do.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from cir_jax.errors import UserError

# A pickled 80-bit number (little-endian 10 bytes: opcode 0x8a, length 10) opens every file of
# torch.save before torch 1.6, and of torch.save(_use_new_zipfile_serialization=False).
_OLD_TORCH = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")
_HEAD = 512


def guarded(path: str | os.PathLike, work: Callable[[BinaryIO], Any]) -> Any:
    """What `work` returns for the open file.

    Raises:
      UserError: the file is missing or cannot be read, or what `work` raises.
    """
    try:
        with open(path, "rb") as file:
            return work(file)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror or error}); check the path"
        ) from None


def head(path: str | os.PathLike) -> bytes:
    """The first bytes of a file, at most 512; b"" for what is no readable file."""
    if not Path(path).is_file():
        return b""
    try:
        return guarded(path, lambda file: file.read(_HEAD))
    except UserError:
        return b""


def explain(path: str | os.PathLike, wanted: str) -> UserError:
    """The error for a file whose first bytes are not those of `wanted`, a format by name."""
    start = guarded(path, lambda file: file.read(_HEAD))
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if not start:
        return UserError(f"{path} is empty (0 bytes), as a broken download leaves it; fetch again")
    if start.startswith(b"version https://git-lfs"):
        return UserError(
            f"{path} is a git-lfs pointer, not the weights; run `git lfs pull` in its folder, or "
            "fetch the file itself"
        )
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return UserError(
            f"{path} is a web page, not weights: the download failed; open the address in a "
            "browser, and fetch the file again"
        )
    if _OLD_TORCH in start[:16] or start[257:262] == b"ustar":
        return UserError(
            f"{path} has the format of torch.save before torch 1.6, which cannot be read without "
            "running what it says; open it with torch where you trust it, and torch.save it again"
        )
    if start[:1] == b"\x80":
        return UserError(
            f"{path} is a bare pickle, not {wanted}; opening one runs what it says: load it where "
            "you trust it, and save its tensors with torch.save or as safetensors"
        )
    return UserError(f"{path} is not {wanted}: it starts with {start[:8]!r}; fetch the file again")
