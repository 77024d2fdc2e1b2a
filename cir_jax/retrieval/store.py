# SPDX-License-Identifier: Apache-2.0
"""What a store is: the rows of an index, ranked by the terms of questions.

A store is one module of `cir_jax.retrieval.stores` (or a file of yours) that defines

    opened(index) -> Store     the store of an index that is there

and, where the rows that it ranks are not the segments of the index folder,

    writer(folder, place, rows_per_image, embedding) -> Writer    a new one, or one to go on with

Axis letters: N images, K rows of an image, D embedding, Q questions.
"""

from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from cir_jax import plugins
from cir_jax.retrieval.search.asking import Terms
from cir_jax.retrieval.search.where import Clause

if TYPE_CHECKING:
    import pyarrow

PACKAGE = "cir_jax.retrieval.stores"
RECALL = 0.95  # of the best, that an approximate ranking aims at


class Store(Protocol):
    """Images by their ids; `len` is the number of them that can be found."""

    def __len__(self) -> int: ...

    def top(
        self, queries: Sequence[Terms], k: int, exact: bool = True
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The best images of each question: (ids, scores), both [Q, k], best first.

        Equal scores are ordered by id. A score that is no number counts as the worst, -inf. Where a
        question has fewer than k candidates, ids of -1 with scores of -inf fill up.

        Args:
          queries: what to score by; see `Terms` for the score, and for what is no candidate.
          k: images to find, at least 1.
          exact: False allows a store to rank approximately, if it was made to.

        Raises:
          UserError: k below 1, vectors of another width, or vectors or weights that are not finite.
        """
        ...

    def rows(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """[n, K, D]: the rows of these images, as they are scored.

        Raises:
          UserError: an id is none of the store.
        """
        ...

    def count(self, where: Clause | None) -> int:
        """The images that a condition leaves; all of them for None."""
        ...


class Writer(Store, Protocol):
    """A store that keeps rows of its own; only the writer of an index calls these."""

    def add(self, ids: Sequence[int], rows: NDArray[np.float32], fields: "pyarrow.Table") -> None:
        """Adds images; one that is there is replaced, so that a second call changes nothing.

        Args:
          ids: n of them.
          rows: [n, K, D].
          fields: n lines of the fields of the index.
        """
        ...

    def remove(self, ids: Sequence[int]) -> None:
        """Removes images; an id that is not there is none to remove."""
        ...

    def commit(self) -> None:
        """Returns when all that was added and removed is kept, and is what `top` ranks."""
        ...


def load(name: str) -> ModuleType:
    """The module of a store, see above.

    Raises:
      UserError: no such store; the message lists what exists.
    """
    return plugins.load(PACKAGE, name, "opened")
