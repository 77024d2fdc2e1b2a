# SPDX-License-Identifier: Apache-2.0
"""Why an image was found: what reference image, text and words to avoid each give to its score.

Only of models whose composed query is a sum, see `halves` of `cir_jax.contract`. The parts of an
image's score add up to it.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cir_jax.retrieval.retriever import Retriever
from cir_jax.retrieval.search import encoding
from cir_jax.retrieval.search.encoding import Part
from cir_jax.retrieval.search.results import Hit
from cir_jax.retrieval.store import Store


def explained(
    hits: Sequence[Hit], parts: Sequence[Part], retriever: Retriever, store: Store
) -> list[Hit]:
    """The hits with their `why`."""
    if not hits:
        return []
    rows = store.rows([hit.id for hit in hits])
    why = {"image": np.zeros(len(hits)), "text": np.zeros(len(hits))}
    pairs = [(part.key, part.text) for part in parts if part.name == "query"]
    halves = encoding.by_pair(pairs, retriever.encode_halves)
    for part in parts:
        best = _best(part.vectors, rows)
        if part.name == "query":
            both = np.einsum("hd,nd->hn", halves[part.key, part.text], best)
            why["image"] += part.weight * both[0]
            why["text"] += part.weight * both[1]
        else:
            product = np.einsum("pd,nd->np", part.vectors, best).max(axis=1)
            why[part.name] = why.get(part.name, 0.0) + part.weight * product
    return [
        replace(hit, why={name: float(values[i]) for name, values in why.items()})
        for i, hit in enumerate(hits)
    ]


def _best(vectors: NDArray[np.float32], rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """[p, D] and [n, K, D] -> [n, D]: of each image the row with the largest product with any."""
    products = np.einsum("pd,nkd->nkp", vectors, rows).max(axis=-1)
    return rows[np.arange(len(rows)), products.argmax(axis=1)]
