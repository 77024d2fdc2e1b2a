# SPDX-License-Identifier: Apache-2.0
"""A question, checked against the index: what is wrong with it is said before it is encoded."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import xxhash
from numpy.typing import NDArray

from cir_jax.data import picture_files
from cir_jax.errors import UserError
from cir_jax.retrieval import pictures
from cir_jax.retrieval.retriever import Retriever
from cir_jax.retrieval.search import where as wheres
from cir_jax.retrieval.search.asking import (
    IMAGES_MOST,
    K_MOST,
    REACH,
    TEXT_MOST,
    WEIGHT_MOST,
    Question,
    Weights,
)
from cir_jax.retrieval.search.conditions import Kind
from cir_jax.retrieval.store import Store

if TYPE_CHECKING:
    import pyarrow


class Catalogue(Protocol):
    """What an index knows about its images, in the order of their ids."""

    @property
    def ids(self) -> NDArray[np.int64]:
        """[N], ascending."""
        ...

    @property
    def kinds(self) -> Mapping[str, Kind]:
        """What a `where` may ask for: the columns of `table`."""
        ...

    @property
    def table(self) -> "pyarrow.Table":
        """Column "name", then the fields."""
        ...

    def contents(self, ids: Sequence[int], /) -> Sequence[bytes]:
        """Hashes of the files of images."""
        ...

    def with_content(self, content: bytes, /) -> Sequence[int]:
        """Ids of the images whose files have this hash."""
        ...


class Searched(Protocol):
    """An index, as far as a search needs it."""

    @property
    def model(self) -> Any: ...
    @property
    def catalogue(self) -> Catalogue: ...
    @property
    def store(self) -> Store: ...
    def path_of(self, id: int, /) -> str: ...


@dataclass(frozen=True, eq=False)
class Asked:
    """A question that fits an index.

    Attributes:
      question: it.
      text, avoid: without white space around.
      weights: "query", "image" and "avoid" -> weight, of the parts that count.
      keys: of each reference image what a retriever reads; None where it is an image of the index
        and its rows are enough.
      ids: of each reference image its id; None for those that are not named by one.
      clause: the `where`; None for none.
      left_out: ids of images that are the reference.
    """

    question: Question
    text: str
    avoid: str
    weights: Mapping[str, float]
    keys: tuple[str | pictures.Decoded | None, ...]
    ids: tuple[int | None, ...]
    clause: wheres.Clause | None
    left_out: frozenset[int]


def checked(index: Searched, question: Question) -> Asked:
    """The question, if it can be answered, as far as that can be told without the model.

    Raises:
      UserError: see `cir_jax.retrieval.search.answering.answer`.
    """
    _numbers(question)
    text, avoid = _text(question.text, "text"), _text(question.avoid, "avoid")
    if isinstance(question.images, str | os.PathLike) or not isinstance(question.images, Sequence):
        raise UserError(f"images is {question.images!r}; give a tuple of images: (image,)")
    if len(question.images) > IMAGES_MOST:
        raise UserError(
            f"{len(question.images)} reference images; a question may have {IMAGES_MOST}"
        )
    if not question.images and not text:
        more = "; words to avoid only take away" if avoid else ""
        raise UserError(f"a question needs an image, a text or both{more}")
    weights = _weights(question, bool(text), bool(avoid))
    clause = wheres.parse(question.where, index.catalogue.kinds) if question.where else None
    ids = tuple(_id(image, index.catalogue) for image in question.images)
    both = zip(question.images, ids, strict=True)
    keys = tuple(_key(index, image, id, text) for image, id in both)
    left_out = frozenset() if question.keep_reference else _same_files(index.catalogue, ids, keys)
    return Asked(question, text, avoid, weights, keys, ids, clause, left_out)


def check_model(one: Asked, retriever: Retriever) -> None:
    """Raises UserError if the model has no meaning for the question, or its texts are too long."""
    if (one.avoid or not one.question.images) and not retriever.functions.text_alone:
        what = "words to avoid have" if one.question.images else "a text alone has"
        raise UserError(
            f"{retriever.functions.config.name} composes a text with what it sees in the reference "
            f"image, so {what} no meaning for it; give a reference image and a text, or use a "
            "model on CLIP"
        )
    _check_length(one.text, "text", retriever)
    _check_length(one.avoid, "avoid", retriever)


def _numbers(question: Question) -> None:
    for name, value, least, most in (
        ("k", question.k, 1, K_MOST),
        ("offset", question.offset, 0, REACH - 1),
    ):
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise UserError(f"{name}={value!r} is no whole number; give one from {least} to {most}")
        if not least <= value <= most:
            raise UserError(f"{name}={value} is not within {least} to {most}")
    if question.offset + question.k > REACH:
        raise UserError(
            f"offset={question.offset} and k={question.k} reach beyond the first {REACH} images; "
            "narrow the question by `where`, or ask for fewer"
        )
    if question.min_score is not None and not _is_finite(question.min_score):
        raise UserError(f"min_score={question.min_score!r} is no number; give one, or None")


def _weights(question: Question, text: bool, avoid: bool) -> dict[str, float]:
    """The weight of each part that counts; what a question has one of, image or text, weighs 1."""
    if not isinstance(question.weights, Weights):
        raise UserError(
            f"weights is {question.weights!r}; give Weights(query=1, image=0, avoid=0.5)"
        )
    given = asdict(question.weights)
    for name, value in given.items():
        if not _is_finite(value) or abs(value) > WEIGHT_MOST:
            limit = f"{WEIGHT_MOST:g}"
            raise UserError(
                f"the {name} weight is {value!r}; give a number from -{limit} to {limit}"
            )
    if not question.images:
        found = {"query": 1.0}
    elif not text:
        found = {"image": 1.0}
    else:
        found = {name: float(given[name]) for name in ("query", "image") if given[name]}
    if avoid and given["avoid"]:
        found["avoid"] = float(given["avoid"])
    if not found:
        raise UserError(
            "all weights are 0, which ranks nothing; give another query or image weight"
        )
    return found


def _is_finite(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _text(text: Any, name: str) -> str:
    if not isinstance(text, str):
        raise UserError(f"{name} is {text!r}, a {type(text).__name__}; give a text")
    if len(text) > TEXT_MOST:
        raise UserError(f"{name} has {len(text):,} characters, the limit is {TEXT_MOST:,}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{name} holds half a character ({text[error.start]!r} at {error.start}); remove it"
        ) from None
    return text.strip()


def _check_length(text: str, name: str, retriever: Retriever) -> None:
    tokenizer = retriever.tokenizer
    if retriever.on_long == "truncate" or tokenizer.cuts:
        return
    [count] = tokenizer.lengths([text])
    if count > tokenizer.context:
        raise UserError(
            f"{name}: {count} tokens, the limit is {tokenizer.context} with start and end: "
            f"{text[:80]!r}...; shorten it"
        )


def _id(image: Any, catalogue: Catalogue) -> int | None:
    if isinstance(image, bool) or not isinstance(image, int | np.integer):
        return None
    ids = catalogue.ids
    place = int(np.searchsorted(ids, image)) if -(2**63) <= image < 2**63 else len(ids)
    if place == len(ids) or ids[place] != image:
        raise UserError(f"there is no image with the id {image}; the index has {len(ids)} images")
    return int(image)


def _key(index: Searched, image: Any, id: int | None, text: str) -> str | pictures.Decoded | None:
    if id is not None:
        return index.path_of(id) if text else None
    [key] = pictures.items([image])
    if isinstance(key, str) and not Path(key).exists():
        raise UserError(f"image {key} does not exist; give the path of an image file")
    return key


def _same_files(
    catalogue: Catalogue,
    ids: Sequence[int | None],
    keys: Sequence[str | pictures.Decoded | None],
) -> frozenset[int]:
    """Ids of the reference images, and of those whose files hold the very same bytes."""
    found: set[int] = set()
    for id, key in zip(ids, keys, strict=True):
        if id is not None:
            found |= {id, *catalogue.with_content(catalogue.contents([id])[0])}
        elif isinstance(key, str):
            content = xxhash.xxh3_128_digest(picture_files.read(key))
            found |= {*catalogue.with_content(content)}
    return frozenset(found)
