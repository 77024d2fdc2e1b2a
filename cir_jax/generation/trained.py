# SPDX-License-Identifier: Apache-2.0
"""What pairing needs of a trained model; the caller passes the function that opens its run.

Making triplets comes before training and imports nothing of it; `cir-jax positives` joins the two.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from cir_jax.errors import UserError


class TrainedModel(Protocol):
    """A trained model, as `cir_jax.retrieval.retriever.Retriever` is one."""

    def encode_gallery(self, paths: Sequence[Any]) -> np.ndarray:
        """[G, K, D] target rows of images."""
        ...

    def encode_queries(
        self, references: Sequence[Any], texts: Sequence[str], where: Callable[[int], str]
    ) -> np.ndarray:
        """[Q, D] queries; `where` names a query in messages."""
        ...

    def top(
        self, query: np.ndarray, gallery: np.ndarray, k: int, removed: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows and scores [Q, k], best first, without the row `removed` [Q]."""
        ...


OpenRun = Callable[[str], TrainedModel]  # folder of a run -> its model


def no_run(run: str) -> TrainedModel:
    """The `OpenRun` of a caller that brings none.

    Raises:
      UserError: always.
    """
    raise UserError(
        f"pair.run={run} needs a function that opens a trained run; pass open_run, as "
        "`cir-jax positives` does"
    )
