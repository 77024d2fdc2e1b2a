# SPDX-License-Identifier: Apache-2.0
"""What a question finds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Hit:
    """An image that was found.

    Attributes:
      id: number of the image in its index.
      name: its path from the indexed folder, with "/".
      score: see `cir_jax.retrieval.search.asking.Weights`.
      rank: from 1, over all pages.
      fields: name -> value (text, int, float, bool or None) of what the index knows about it.
      same: ids of images that are nearly the same and are not shown by themselves, best first.
      why: {"image": x, "text": y}, and "avoid" where there were words to avoid: what each gives to
        the score, which is their sum. Of a model whose query is a sum, if the question asked for
        it; else None.
    """

    id: int
    name: str
    score: float
    rank: int
    fields: Mapping[str, Any] = field(default_factory=dict)
    same: tuple[int, ...] = ()
    why: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Answer:
    """The images that one question finds, best first.

    Attributes:
      hits: at most k; fewer where there are no more.
      candidates: images that could be found: those that `where` allows, without the references.
      formula: how the scores came about, with the weights as numbers.
      more: whether a next page (offset + k) shows at least one image.
      left_out: ids of the images that were left out because they are the reference.
      seconds: "encode", "rank" (which a batch of questions shares), "show" (fields and why) and
        their "total" -> seconds.
    """

    hits: tuple[Hit, ...]
    candidates: int
    formula: str
    more: bool = False
    left_out: tuple[int, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
