# SPDX-License-Identifier: Apache-2.0
"""`POST /search`: a question about an index, and what it finds."""

from typing import Any

from fastapi import APIRouter

from cir_jax.retrieval.search.asking import Question, Weights
from cir_jax.retrieval.search.results import Answer
from cir_jax.retrieval.serving import uploads
from cir_jax.retrieval.serving.bodies import (
    ImageRef,
    Result,
    SearchAnswer,
    SearchBody,
    WeightsBody,
    Why,
    plain,
)
from cir_jax.retrieval.serving.pictures import place_of
from cir_jax.retrieval.serving.refusals import Refusal, declared
from cir_jax.retrieval.serving.settings import Settings
from cir_jax.retrieval.serving.state import Here, State

REACH = 5000  # offset and k together
router = APIRouter()


@router.post(
    "/search", responses=declared(404, 429, 503), summary="Find images", tags=["search"]
)
async def search(here: Here, body: SearchBody) -> SearchAnswer:
    """Images that are like those of the question but for what the text says."""
    check(body, here.settings)
    name, index = here.served.find(body.index)
    question = await _question(here, index, body)
    answer: Answer = await here.batches.result((name, id(index)), index.answer, question)
    for part, seconds in answer.seconds.items():
        here.numbers.part(part, seconds)
    return SearchAnswer(
        index=name,
        results=results_of(answer),
        candidates=answer.candidates,
        more=answer.more,
        formula=answer.formula,
        seconds=dict(answer.seconds),
    )


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


async def _question(here: State, index: Any, body: SearchBody) -> Question:
    return Question(
        images=tuple([await _image(here, index, ref, i) for i, ref in enumerate(body.images)]),
        text=body.text,
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
        content = await here.aside(
            uploads.content_of, ref.data or "", settings.upload_bytes, param
        )
    return await here.aside(
        uploads.opened, content, settings.pixels, settings.upload_bytes, param
    )


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
