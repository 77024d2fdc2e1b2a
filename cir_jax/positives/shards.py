# SPDX-License-Identifier: Apache-2.0
"""Images inside .tar files, as large web-crawled sets come: NAME.jpg, NAME.txt and NAME.json each.

An image in a shard is written as `shard.tar@OFFSET+SIZE`, so that a triplet can name it like a
file, and opening it needs neither the shard's index nor a copy.
"""

import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from cir_jax.errors import UserError
from cir_jax.positives.annotations import SUFFIXES

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


def place(path: str) -> Any:
    """`path`, or the image in a shard that it names."""
    found = _PLACE.fullmatch(path)
    return TarImage(found[1], int(found[2]), int(found[3])) if found else path


def samples(shard: str | Path) -> Iterator[tuple[str, TarImage, dict[str, Any]]]:
    """(name, image, record) of every image of a shard; the record holds .json and .txt.

    Members of one sample follow each other, as the format demands.

    Raises:
      UserError: the shard is cut off or no .tar file.
    """
    name, image, record = "", None, {}
    try:
        with tarfile.open(shard) as archive:
            for member in archive:
                path = PurePosixPath(member.name)
                if not member.isfile():
                    continue
                stem = str(path.with_suffix(""))
                if stem != name:
                    if image:
                        yield name, image, record
                    name, image, record = stem, None, {}
                if path.suffix.lower() in SUFFIXES:
                    image = TarImage(str(shard), member.offset_data, member.size)
                elif path.suffix == ".txt":
                    record["text"] = archive.extractfile(member).read().decode("utf-8")
                elif path.suffix == ".json":
                    record = json.loads(archive.extractfile(member).read()) | record
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise UserError(
            f"{shard} cannot be read after sample {name!r} ({error}); fetch it again"
        ) from None
    if image:
        yield name, image, record
