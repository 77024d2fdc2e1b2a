# SPDX-License-Identifier: Apache-2.0
"""Questions in, ranked images out: check, encode, rank, fold, explain."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np

from cir_jax.errors import UserError, nearest
from cir_jax.retrieval.pictures import Picture
from cir_jax.retrieval.retriever import Retriever
from cir_jax.retrieval.search import checking, encoding, explaining, reaching
from cir_jax.retrieval.search.asking import REACH, Question, Weights
from cir_jax.retrieval.search.checking import Asked, Searched
from cir_jax.retrieval.search.reaching import Shown
from cir_jax.retrieval.search.results import Answer, Hit

_WEIGHTS = {f"{field.name}_weight": field.name for field in fields(Weights)}
_OPTIONS = [f.name for f in fields(Question) if f.name not in ("images", "text")]
_WORDS = {"query": "query", "image": "image", "avoid": "avoided"}


def search(
    index: Searched,
    image: Picture | int | Sequence[Picture | int] | None = None,
    text: str = "",
    **options: Any,
) -> list[Hit]:
    """The images that one question finds, best first.

    Args:
      index: see `cir_jax.open_index`.
      image: a reference image, an id of the index, or a list of them; None for a text alone.
      text: what to change; without an image, what to find.
      options: further fields of `Question` ("k", "avoid", "where", ...), and "query_weight",
        "image_weight" and "avoid_weight" of `Weights`.

    Raises:
      UserError: see `answer`; or there is no such option.
    """
    images = (image,) if not isinstance(image, list | tuple) else tuple(image)
    question = _question(() if image is None else images, text, options)
    return list(answer(index, [question])[0].hits)


def check(index: Searched, question: Question) -> None:
    """Raises what `answer` would of this question alone, but for what is wrong with its pixels."""
    one = checking.checked(index, question)
    checking.check_model(one, index.model.retriever(few=True))


def answer(index: Searched, questions: Sequence[Question]) -> list[Answer]:
    """The images that each of some questions finds; a batch shares the calls of the model.

    Args:
      index: see `cir_jax.open_index`.
      questions: any number.

    Raises:
      UserError: of any of them: a value of `Question` is no number, or beyond its limit; neither
        image nor text; a text longer than the model's context; a text alone, or words to avoid, for
        a model that needs a reference image; no such id or file, or it cannot be decoded; a `where`
        that is none, see `cir_jax.retrieval.search.where.parse`.
    """
    if not questions:
        return []
    asked, retriever = _checked(index, questions)
    started = time.perf_counter()
    parts = encoding.parts(asked, retriever, index.store)
    folds = retriever.functions.target_shape[0] == 1
    terms = [encoding.terms(p, one, folds) for p, one in zip(parts, asked, strict=True)]
    encoded = time.perf_counter()
    shown = reaching.reach(index, asked, terms)
    ranked = time.perf_counter()
    answers = []
    for one, part, found in zip(asked, parts, shown, strict=True):
        begin = time.perf_counter()
        last = one.question.offset + one.question.k
        hits = _hits(index, one, found[one.question.offset : last])
        if one.question.why and retriever.functions.sums:
            hits = explaining.explained(hits, part, retriever, index.store)
        seconds = {"encode": encoded - started, "rank": ranked - encoded}
        seconds["show"] = time.perf_counter() - begin
        answers.append(
            Answer(
                hits=tuple(hits),
                candidates=_candidates(index, one),
                formula=formula(one),
                more=len(found) > last,
                left_out=tuple(sorted(one.left_out)),
                seconds={**seconds, "total": sum(seconds.values())},
            )
        )
    return answers


def ranks(index: Searched, question: Question, ids: Sequence[int]) -> list[int | None]:
    """The rank, from 1, of each of some images among all candidates, none of them folded.

    None for an image that is no candidate, or not among the first `REACH`; `k`, `offset` and
    `min_score` of the question count for nothing.
    """
    alone = replace(question, fold=False, offset=0, k=1, min_score=None)
    [one], retriever = _checked(index, [alone])
    [part] = encoding.parts([one], retriever, index.store)
    terms = encoding.terms(part, one, retriever.functions.target_shape[0] == 1)
    reach = min(REACH, len(index.store))
    found = index.store.top([terms], reach, one.question.exact)[0][0] if reach else ()
    places = {int(id): rank for rank, id in enumerate(found, start=1)}
    return [places.get(int(id)) for id in ids]


def formula(one: Asked) -> str:
    """How the scores of a question come about, e.g. "score = query + 0.3 image - 0.5 avoided"."""
    text = ""
    for name, weight in one.weights.items():
        signed = -weight if name == "avoid" else weight
        size = "" if abs(signed) == 1 else f"{abs(signed):g} "
        sign = (" - " if signed < 0 else " + ") if text else ("-" if signed < 0 else "")
        text += f"{sign}{size}{_WORDS[name]}"
    return f"score = {text}"


def _question(images: tuple[Picture | int, ...], text: str, options: Mapping[str, Any]) -> Question:
    known = [*_OPTIONS, *_WEIGHTS]
    for name in options:
        if name not in known:
            raise UserError(
                f"search has no option {name!r}; there are: {', '.join(known)}."
                f"{nearest(name, known)}"
            )
    others = {name: value for name, value in options.items() if name not in _WEIGHTS}
    weights = {_WEIGHTS[name]: value for name, value in options.items() if name in _WEIGHTS}
    question = Question(images=images, text=text, **others)
    return replace(question, weights=replace(question.weights, **weights))


def _checked(index: Searched, questions: Sequence[Question]) -> tuple[list[Asked], Retriever]:
    """Each question checked, and what encodes them; of several the error names the one."""

    def where(number: int, error: UserError) -> UserError:
        return UserError(f"question {number}: {error}") if len(questions) > 1 else error

    asked = []
    for number, question in enumerate(questions):
        try:
            asked.append(checking.checked(index, question))
        except UserError as error:
            raise where(number, error) from None
    retriever = index.model.retriever(few=True)  # loads the model, if that was not done
    for number, one in enumerate(asked):
        try:
            checking.check_model(one, retriever)
        except UserError as error:
            raise where(number, error) from None
    return asked, retriever


def _hits(index: Searched, one: Asked, shown: Sequence[Shown]) -> list[Hit]:
    catalogue = index.catalogue
    places = np.searchsorted(catalogue.ids, [s.id for s in shown])
    records = catalogue.table.take(places).to_pylist() if shown else []
    hits = []
    for rank, (image, record) in enumerate(
        zip(shown, records, strict=True), start=one.question.offset + 1
    ):
        name = record.pop("name")
        values = {field: _value(value) for field, value in record.items()}
        hits.append(Hit(image.id, name, image.score, rank, values, image.same))
    return hits


def _value(value: Any) -> Any:
    """What is not a number has no value; JSON has no word for it."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _candidates(index: Searched, one: Asked) -> int:
    found = index.store.count(one.clause)
    if one.clause is None or not one.left_out:
        return found - len(one.left_out)
    places = np.searchsorted(index.catalogue.ids, sorted(one.left_out))
    return found - int(one.clause.mask(index.catalogue.table.take(places)).sum())
