# SPDX-License-Identifier: Apache-2.0
"""The indexes that a server serves, each with the generation in use.

An index that is rebuilt goes on being served as it was: its files are mapped. When the new
generation is whole it is opened and warmed up beside the old one, and takes its place between two
batches; questions under way end with the one they began with.
"""

import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from cir_jax import progress
from cir_jax.errors import UserError, nearest
from cir_jax.serving.numbers import Numbers
from cir_jax.serving.refusals import Refusal


@dataclass
class Served:
    """Indexes by name, in the order in which they were given.

    Attributes:
      indexes: name -> index in use.
      warm: what is to be called with a new index before it answers.
      numbers: where generations are noted.
    """

    indexes: dict[str, Any]
    warm: Callable[[Any], None]
    numbers: Numbers

    def __post_init__(self) -> None:
        self._refused: dict[str, str] = {}
        self._warmed: set[str] = set()
        for name in self.indexes:
            self._note(name)

    def warm_up(self) -> None:
        """Warms up each index that is not warm."""
        for name, index in self.indexes.items():
            if name not in self._warmed:
                self.warm(index)
                self._warmed.add(name)

    def find(self, name: str | None, param: str = "index") -> tuple[str, Any]:
        """(name, index); the first one if no name is given.

        Raises:
          Refusal: 404, there is none of that name.
        """
        if name is None:
            return next(iter(self.indexes.items()))
        if name not in self.indexes:
            raise Refusal(
                404,
                f"there is no index {name[:80]!r}; there are: {', '.join(self.indexes)}."
                f"{nearest(name[:80], self.indexes)}",
                param=param,
                code="no_such_index",
            )
        return name, self.indexes[name]

    def ids(self, content: bytes) -> dict[str, int]:
        """Of each index that has an image file of this content, the (first) id of it."""
        digest = xxhash.xxh3_128_digest(content)
        found = {name: one.catalogue.with_content(digest) for name, one in self.indexes.items()}
        return {name: int(ids[0]) for name, ids in found.items() if len(ids)}

    def renew(self) -> None:
        """Takes the new generations there are; one that cannot be opened is told of once."""
        for name, index in list(self.indexes.items()):
            try:
                found = index.newer()
                if found is None:
                    continue
                self.warm(found)
            except Exception as error:  # whatever it is, the old one is whole
                if self._refused.get(name) != str(error):
                    progress.say(f"index {name} goes on as it is: {error}")
                    if not isinstance(error, UserError | OSError):
                        traceback.print_exception(error)
                self._refused[name] = str(error)
                continue
            self.indexes[name] = found
            self._refused.pop(name, None)
            self._note(name)
            progress.say(
                f"index {name}: generation {found.generation}, {len(found.catalogue.ids):,} images"
            )

    def _note(self, name: str) -> None:
        index = self.indexes[name]
        self.numbers.index(name, int(index.generation), len(index.catalogue.ids))


def named(places: Iterable[str]) -> list[str]:
    """A name for each index: that of its folder, with a number where two have the same."""
    names: list[str] = []
    for place in places:
        own = Path(place).resolve().name or "index"
        name, number = own, 2
        while name in names:
            name, number = f"{own}-{number}", number + 1
        names.append(name)
    return names
