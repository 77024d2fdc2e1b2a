# SPDX-License-Identifier: Apache-2.0
"""A question about an index, and the terms that a store scores images by.

Axis letters: N images, K rows of an image, D embedding, P vectors of a question.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cir_jax.retrieval.pictures import Picture
from cir_jax.retrieval.search import where as wheres

FORMULA = "score = query weight * query + image weight * image - avoid weight * avoided"
K_MOST = 1000
REACH = 5000  # offset and k together
IMAGES_MOST = 16
TEXT_MOST = 10_000  # characters; the context of a model is far shorter
WEIGHT_MOST = 1000.0


@dataclass(frozen=True)
class Weights:
    """How much each part of a score counts.

    The score of image n is `query * compose(n) + image * image(n) - avoid * avoided(n)`, where
    compose(n) is the largest product of the query that the model composes of image and text with
    the K rows of n; image(n) the largest product of the reference's own rows with those of n; and
    avoided(n) as compose(n), of the words to avoid alone. Of several reference images each part is
    the mean. A question of an image alone has no composed query and one of a text alone no image:
    what remains has the weight 1.

    Attributes:
      query: of the composed query.
      image: of the likeness to the reference itself.
      avoid: of the words to avoid; they take away.
    """

    query: float = 1.0
    image: float = 0.0
    avoid: float = 0.5


@dataclass(frozen=True, eq=False)
class Question:
    """What somebody looks for; see `Index.answer`.

    Attributes:
      images: reference images: files, PIL images or uint8 arrays [H, W, 3], as a model takes them,
        or ids (int) of images of the index. Empty for a text alone.
      text: what to change, or, without an image, what to find.
      avoid: words whose images come later; "" for none.
      weights: see `Weights`.
      k: images to find, from 1 to `K_MOST`.
      offset: images that an earlier page has shown: the answer goes on after so many. Offset and k
        together are at most `REACH`.
      min_score: worst score that may be found; None for no limit.
      where: which images may be found, see `cir_jax.retrieval.search.where`; "" for all.
      fold: show images that are nearly the same once, under the best of them.
      keep_reference: let the reference images be found too.
      exact: False allows a store to rank approximately, where it can; a second page may then repeat
        or miss an image.
      why: of a model whose query is a sum, also the parts of each score, see `Hit.why`.
    """

    images: tuple[Picture | int, ...] = ()
    text: str = ""
    avoid: str = ""
    weights: Weights = field(default_factory=Weights)
    k: int = 10
    offset: int = 0
    min_score: float | None = None
    where: str = ""
    fold: bool = True
    keep_reference: bool = False
    exact: bool = True
    why: bool = False


@dataclass(frozen=True, eq=False)
class Terms:
    """One question as a store scores it.

    score(n) = sum over groups g of weights[g] * max over p in g, k of <vectors[p], rows[n, k]>

    Where K is 1 everything is folded into one vector of weight 1, which has any length.

    Attributes:
      vectors: [P, D] float32.
      groups: [P] int32, the group of each vector, from 0, in ascending order; none is empty.
      weights: [groups] float32; one below 0 takes away.
      where: images that may be found; None for all.
      leave_out: ids of images that must not be found.
    """

    vectors: NDArray[np.float32]
    groups: NDArray[np.int32]
    weights: NDArray[np.float32]
    where: wheres.Clause | None = None
    leave_out: frozenset[int] = frozenset()

    @property
    def folded(self) -> bool:
        """True if it is one vector of weight 1, so that the score is its product with a row."""
        return len(self.vectors) == 1 and self.weights.tolist() == [1.0]
