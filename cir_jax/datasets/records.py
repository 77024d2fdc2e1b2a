# SPDX-License-Identifier: Apache-2.0
"""Images packed into ArrayRecord files: few large files instead of many small ones.

A packed data set keeps its annotation files as they are and holds its images in `packed/`, a TFDS
data set made by `cir-jax pack`. Readers find the images there by name; nothing else changes.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from cir_jax.data.annotations import image_names, read_json
from cir_jax.errors import UserError

FOLDER = "packed"
SPLIT = "pictures"  # of the TFDS data set; "all" is reserved
INDEX = "names.json"  # name -> record number; reading all records to find the names would be slow


@dataclass(frozen=True)
class RecordImage:
    """One packed image; opened where it is read, so it can be sent to another process.

    Attributes:
      folder: the TFDS data set.
      number: its record.
    """

    folder: str
    number: int

    def read_bytes(self) -> bytes:
        """The image file as it was packed.

        Raises:
          OSError: the files of the data set are damaged, or lack this record.
        """
        try:
            return _source(self.folder)[self.number]["image"]
        except (OSError, ImportError):
            raise
        except Exception as error:  # of its reader: RuntimeError, and errors of its own
            first = str(error).strip().partition("\n")[0]
            raise OSError(f"its file is damaged: {first or type(error).__name__}") from None

    def __str__(self) -> str:
        return f"{self.folder}[{self.number}]"


def images(root: str | Path) -> dict[str, RecordImage]:
    """Name -> record of a packed data set; {} if `root` is not packed."""
    index = Path(root) / FOLDER / INDEX
    if not index.is_file():
        return {}
    content = read_json(index, dict)
    inside, names = content.get("folder"), content.get("names")
    if not isinstance(inside, str) or not isinstance(names, list):
        raise UserError(f"{index} does not say which images are packed; pack the data set again")
    image_names(content, "names", str(index))
    folder = str(Path(root) / FOLDER / inside)
    return {name: RecordImage(folder, number) for number, name in enumerate(names)}


@lru_cache(maxsize=8)
def _source(folder: str) -> Any:
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(folder)
    # The file's own bytes: decoding here would lose the mode that preprocessing must see.
    decoders = {"image": tfds.decode.SkipDecoding()}
    return builder.as_data_source(split=SPLIT, decoders=decoders)
