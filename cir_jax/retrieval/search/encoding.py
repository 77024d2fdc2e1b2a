# SPDX-License-Identifier: Apache-2.0
"""Questions -> terms: everything that a batch of questions needs is encoded in few model calls.

    compose(n) = max over K of <query, row>          weight `query`
    image(n)   = max over K, K' of <own row, row>    weight `image`
    avoided(n) = max over K of <avoided, row>        weight -`avoid`

Of m reference images each of the first two is their mean: weight / m each. Where K is 1 a maximum
is over one product, so the sum of products is the product with the weighted sum of vectors.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cir_jax.errors import UserError
from cir_jax.retrieval import pictures
from cir_jax.retrieval.retriever import Retriever
from cir_jax.retrieval.search.asking import Terms
from cir_jax.retrieval.search.checking import Asked
from cir_jax.retrieval.store import Store

Key: TypeAlias = str | pictures.Decoded  # of an image, as a retriever takes it
_Pair: TypeAlias = tuple[Key | None, str]  # a reference image, None for none; and the text


@dataclass(frozen=True, eq=False)
class Part:
    """One term of a score.

    Attributes:
      name: "query", "image" or "avoid".
      weight: with its sign.
      vectors: [p, D]; the best of them counts.
      text, key: of a "query", what it was composed of.
    """

    name: str
    weight: float
    vectors: NDArray[np.float32]
    text: str = ""
    key: Key | None = None


def parts(asked: Sequence[Asked], retriever: Retriever, store: Store) -> list[list[Part]]:
    """The terms of each question.

    Raises:
      UserError: an image cannot be read, or the model gives what is no number.
    """
    # First: where the model keeps references, the same pass makes those of the queries.
    own, queries = _own_rows(asked, retriever, store), _queries(asked, retriever)
    found = [_parts(one, own, queries) for one in asked]
    if not all(np.isfinite(part.vectors).all() for one in found for part in one):
        raise UserError(
            "the model gives values that are no numbers for this question; its weights are of a "
            "run that diverged, or damaged"
        )
    return found


def terms(found: Sequence[Part], one: Asked, folds: bool) -> Terms:
    """What a store scores images by; `folds` where K is 1."""
    weights = np.asarray([part.weight for part in found], np.float32)
    vectors = np.concatenate([part.vectors for part in found])
    if folds:
        # In float64, so that nothing but the last rounding is lost.
        total = sum(part.weight * part.vectors[0].astype(np.float64) for part in found)
        vectors, weights = np.asarray(total, np.float32)[None], np.ones(1, np.float32)
        return Terms(vectors, np.zeros(1, np.int32), weights, one.clause, one.left_out)
    sizes = [len(part.vectors) for part in found]
    groups = np.repeat(np.arange(len(found), dtype=np.int32), sizes)
    return Terms(vectors, groups, weights, one.clause, one.left_out)


def _parts(one: Asked, own: Mapping[Any, NDArray], queries: Mapping[_Pair, NDArray]) -> list[Part]:
    found = []
    composed = _pairs(one)
    for key, text in composed:
        weight = one.weights["query"] / len(composed)
        found.append(Part("query", weight, queries[key, text][None], text, key))
    if "image" in one.weights:
        for key, id in zip(one.keys, one.ids, strict=True):
            rows = own[key if id is None else id]
            found.append(Part("image", one.weights["image"] / len(one.keys), rows))
    if "avoid" in one.weights:
        found.append(Part("avoid", -one.weights["avoid"], queries[None, one.avoid][None]))
    return found


def _own_rows(
    asked: Sequence[Asked], retriever: Retriever, store: Store
) -> dict[Any, NDArray[np.float32]]:
    """Id or key -> [K, D] of the reference images whose own rows count."""
    images = [
        (key, id)
        for one in asked
        if "image" in one.weights
        for key, id in zip(one.keys, one.ids, strict=True)
    ]
    ids = list(dict.fromkeys(id for _, id in images if id is not None))
    keys = list(dict.fromkeys(key for key, id in images if id is None))
    found: dict[Any, NDArray[np.float32]] = {}
    if ids:
        found |= dict(zip(ids, store.rows(ids), strict=True))
    if keys:
        found |= dict(zip(keys, retriever.encode_gallery(keys), strict=True))
    return found


def _pairs(one: Asked) -> list[_Pair]:
    """The queries that the model composes for a question."""
    return [(key, one.text) for key in one.keys or (None,)] if "query" in one.weights else []


def _queries(asked: Sequence[Asked], retriever: Retriever) -> dict[_Pair, NDArray[np.float32]]:
    wanted = [pair for one in asked for pair in _pairs(one)]
    wanted += [(None, one.avoid) for one in asked if "avoid" in one.weights]
    return by_pair(wanted, retriever.encode_queries)


def by_pair(
    wanted: Sequence[_Pair], encode: Callable[..., NDArray[np.float32]]
) -> dict[_Pair, NDArray[np.float32]]:
    """What `encode(references or None, texts)` gives, in two calls: with images, and without."""
    unique = list(dict.fromkeys(wanted))
    composed = [pair for pair in unique if pair[0] is not None]
    alone = [pair for pair in unique if pair[0] is None]
    found: dict[_Pair, NDArray[np.float32]] = {}
    if composed:
        rows = encode([key for key, _ in composed], [text for _, text in composed])
        found |= dict(zip(composed, rows, strict=True))
    if alone:
        found |= dict(zip(alone, encode(None, [text for _, text in alone]), strict=True))
    return found
