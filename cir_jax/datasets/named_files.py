# SPDX-License-Identifier: Apache-2.0
"""Images by name, where annotations write one name with its suffix and another without.

Names come out in one form, however they were written: one file under two names would be two images
of the bank.
"""

import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from cir_jax.data.annotations import SUFFIXES
from cir_jax.data.pixels import ImageFile
from cir_jax.errors import UserError


class NamedFiles:
    """The images a data set knows.

    Attributes:
      files: name, in the one form it is used in -> file.
    """

    def __init__(self, files: Mapping[str, ImageFile]):
        self.files = dict(files)
        self._short: dict[str, list[str]] = {}
        for name in self.files:
            stem = _stem(name)
            if stem != name:
                self._short.setdefault(stem, []).append(name)

    @classmethod
    def below(cls, folder: str | Path) -> "NamedFiles":
        """All image files below `folder`; a name is the path from there, with its suffix."""
        base = Path(folder)
        found = sorted(
            Path(where, file)
            for where, _, files in os.walk(base)  # which tells files from folders without asking
            for file in files
            if os.path.splitext(file)[1].lower() in SUFFIXES
        )
        return cls({f.relative_to(base).as_posix(): str(f) for f in found})

    def name(self, written: str, where: str) -> str:
        """The name that `written` means; itself if there is no such image.

        Raises:
          UserError: it fits two files.
        """
        if written in self.files:
            return written
        fitting = self._short.get(written, [])
        if len(fitting) > 1:
            raise UserError(
                f"{where}: image {written!r} may be {' or '.join(fitting)}; write the suffix"
            )
        if fitting:
            return fitting[0]
        stem = _stem(written)
        return stem if stem in self.files else written


def _stem(name: str) -> str:
    suffix = PurePosixPath(name).suffix
    return name[: -len(suffix)] if suffix.lower() in SUFFIXES else name
