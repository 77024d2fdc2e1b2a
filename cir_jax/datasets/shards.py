# SPDX-License-Identifier: Apache-2.0
"""Images inside .tar files, as large web-crawled sets come.

An image in a shard is written as `shard.tar@OFFSET+SIZE`, so that a triplet can name it like a
file, and opening it needs neither the shard's index nor a copy.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

_PLACE = re.compile(r"(.+\.tar)@(\d+)\+(\d+)")


@dataclass(frozen=True)
class TarImage:
    """One image of a shard.

    Attributes:
      shard: the .tar file.
      offset: where its bytes begin.
      size: how many there are.
    """

    shard: str
    offset: int
    size: int

    def read_bytes(self) -> bytes:
        """The image file as it was packed."""
        with open(self.shard, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size)

    def __str__(self) -> str:
        return f"{self.shard}@{self.offset}+{self.size}"


def place(path: str, file_of: Callable[[str], str] = str) -> str | TarImage:
    """The file that `path` names, or the image in a shard.

    Args:
      path: as it is written.
      file_of: written path of a file or a shard -> its path.
    """
    found = _PLACE.fullmatch(path)
    if not found:
        return file_of(path)
    return TarImage(file_of(found[1]), int(found[2]), int(found[3]))
