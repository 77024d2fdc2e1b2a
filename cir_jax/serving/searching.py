# SPDX-License-Identifier: Apache-2.0
"""`POST /search`: a question about an index, and what it finds."""

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import xxhash
from fastapi import APIRouter

from cir_jax.errors import UserError
from cir_jax.retrieval.search import answering
from cir_jax.retrieval.search.asking import REACH, Question, Weights
from cir_jax.retrieval.search.results import Answer
from cir_jax.serving import uploads
from cir_jax.serving.bodies import (
    ImageRef,
    Result,
    SearchAnswer,
    SearchBody,
    Target,
    WeightsBody,
    Why,
    plain,
)
from cir_jax.serving.pictures import place_of
from cir_jax.serving.refusals import Refusal, declared
from cir_jax.serving.settings import Settings
from cir_jax.serving.state import Here, State

router = APIRouter()
# How messages about a part of a question begin -> the part of the request.
_PARAMS = {"where": "where", "text": "text", "avoid": "not", "images": "images"}


@router.post("/search", responses=declared(404, 429, 503), summary="Find images", tags=["search"])
async def search(here: Here, body: SearchBody) -> SearchAnswer:
    """Images that are like those of the question but for what the text says."""
    check(body, here.settings)
    name, index = here.served.find(body.index)
    given, targets = _of_benchmark(index, body.query)
    question = await _question(here, index, body, given)
    answer = await answered(here, name, index, question)
    ranks = []
    if targets:
        ranks = await here.batches.alone(partial(answering.ranks, index, question, targets))
    return SearchAnswer(
        index=name,
        results=results_of(answer),
        candidates=answer.candidates,
        more=answer.more,
        formula=answer.formula,
        seconds=dict(answer.seconds),
        targets=None
        if body.query is None
        else [Target(id=i, rank=rank) for i, rank in zip(targets, ranks, strict=True)],
    )


async def answered(here: State, name: str, index: Any, question: Question) -> Answer:
    """What a question finds, in a batch with others.

    Raises:
      Refusal: it cannot be answered.
    """
    await here.aside(_fits, index, question)  # its fault is not that of its batch
    answer: Answer = await here.batches.result(
        (name, id(index)), partial(answering.answer, index), question
    )
    for part, seconds in answer.seconds.items():
        here.numbers.part(part, seconds)
    return answer


def check(body: SearchBody, settings: Settings) -> None:
    """Raises Refusal if a question asks for more than this server gives."""
    limits = (
        ("k", body.k, settings.k, "results are given at a time"),
        ("offset and k", body.offset + body.k, REACH, "results of a question can be seen"),
        ("images", len(body.images), settings.images, "images make one question"),
        ("text", len(body.text), settings.text, "characters are read"),
        ("not", len(body.avoid), settings.text, "characters are read"),
        ("where", len(body.where), settings.text, "characters are read"),
    )
    for param, given, most, words in limits:
        if given > most:
            raise Refusal(
                400,
                f"{param}: {given:,}, and at most {most:,} {words}; give less",
                param=param.partition(" ")[0],
            )
    if not (body.images or body.text.strip() or body.query is not None):
        raise Refusal(400, "a question needs an image, a text or both; give one", param="text")


def _fits(index: Any, question: Question) -> None:
    """Raises Refusal for what cannot be answered, with the part of the request that is wrong."""
    try:
        answering.check(index, question)
    except UserError as error:
        param = _PARAMS.get(re.split(r"\W", str(error), maxsplit=1)[0])
        raise Refusal(400, str(error), param=param) from None


def _of_benchmark(index: Any, number: int | None) -> tuple[dict[str, Any], list[int]]:
    """A query of the benchmark that an index holds, and its right answers."""
    if number is None:
        return {}, []
    if number >= len(index.queries):
        raise Refusal(
            404,
            f"there is no query {number}; the index holds {len(index.queries)} of a benchmark",
            param="query",
            code="no_such_query",
        )
    return index.queries[number], list(index.queries[number]["targets"])


async def _question(
    here: State, index: Any, body: SearchBody, given: Mapping[str, Any]
) -> Question:
    """The question; without images and text that of the benchmark."""
    images = [await _image(here, index, ref, i) for i, ref in enumerate(body.images)]
    text = body.text
    if given and not images and not text.strip():
        images, text = [given["reference"]], given["text"]
    return Question(
        images=tuple(images),
        text=text,
        avoid=body.avoid,
        weights=_weights(body.weights),
        k=body.k,
        offset=body.offset,
        min_score=body.min_score,
        where=body.where,
        fold=body.fold,
        keep_reference=body.keep_reference,
        exact=body.exact,
        why=body.why,
    )


async def _image(here: State, index: Any, ref: ImageRef, number: int) -> Any:
    """An image of a question as the index takes it: an id, a file of another index, a picture."""
    param, settings = f"images.{number}", here.settings
    if ref.id is not None:
        _, other = here.served.find(ref.index) if ref.index else ("", index)
        place = place_of(other, ref.id)
        if other is index:
            return ref.id
        same = index.catalogue.number_of(other.catalogue.name(ref.id))
        return str(place) if same is None else same
    if ref.upload is not None:
        content = here.uploads.find(ref.upload)
    else:
        content = await here.aside(uploads.content_of, ref.data or "", settings.upload_bytes, param)
    # An image that the index has is that image: it is not found by itself.
    for known in await here.aside(_same, index, content):
        return known
    return await here.aside(uploads.opened, content, settings.pixels, settings.upload_bytes, param)


def _same(index: Any, content: bytes) -> list[int]:
    """Ids of the images whose files have this content."""
    return [int(i) for i in index.catalogue.with_content(xxhash.xxh3_128_digest(content))]


def _weights(body: WeightsBody) -> Weights:
    given = {key: value for key, value in body.model_dump().items() if value is not None}
    return Weights(**given)


def results_of(answer: Answer) -> list[Result]:
    """What was found, as JSON."""
    return [
        Result(
            id=hit.id,
            name=hit.name,
            score=hit.score,
            rank=hit.rank,
            fields={key: plain(value) for key, value in hit.fields.items()},
            same=list(hit.same),
            why=None if hit.why is None else Why(**hit.why),
        )
        for hit in answer.hits
    ]
