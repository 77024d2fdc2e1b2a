# SPDX-License-Identifier: Apache-2.0
"""`/v1/rerank` and `/rerank`: the form of Cohere and Jina, for documents that are images."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from fastapi import APIRouter
from numpy.typing import NDArray

from cir_jax.serving import embeddings
from cir_jax.serving.embeddings import Item
from cir_jax.serving.openai_bodies import (
    Content,
    Document,
    Ranked,
    RerankAnswer,
    RerankBody,
    RerankQuery,
    Usage,
)
from cir_jax.serving.pictures import place_of
from cir_jax.serving.refusals import Refusal, declared
from cir_jax.serving.state import Here, State

router = APIRouter()


@router.post(
    "/v1/rerank",
    responses=declared(404, 429, 503),
    summary="Order images by a query",
    tags=["rerank"],
)
@router.post(
    "/rerank",
    responses=declared(404, 429, 503),
    summary="The same as /v1/rerank",
    tags=["rerank"],
)
async def rerank(here: Here, body: RerankBody) -> RerankAnswer:
    """Images of the index are named by their ids; others are sent."""
    name, index = here.served.find(body.model, "model")
    most = here.settings.inputs
    if len(body.documents) > most:
        raise Refusal(
            400,
            f"documents has {len(body.documents)} items, and at most {most} are ranked at a time",
            param="documents",
        )
    query = await _query(here, index, body.query)
    used = await here.aside(embeddings.used_tokens, index.model, [query], "query")
    if query.kind == "text":
        embeddings.check(query, index.model, "query")
    given = [
        await _document(here, index, each, f"documents.{i}")
        for i, each in enumerate(body.documents)
    ]
    scores = await _scores(here, index, query, given)
    order = np.argsort(-scores, kind="stable")[: body.top_n]
    return RerankAnswer(
        model=name,
        results=[
            Ranked(
                index=int(place),
                relevance_score=float(scores[place]),
                document=_told(body.documents[place]) if body.return_documents else None,
            )
            for place in order
        ],
        usage=Usage(prompt_tokens=used, total_tokens=used),
    )


async def _scores(
    here: State, index: Any, query: Item, documents: Sequence[int | Item]
) -> NDArray[np.float32]:
    """[n] the best product of the query with the rows of each document."""
    sent = [each for each in documents if isinstance(each, Item)]
    held = [each for each in documents if isinstance(each, int)]
    [vectors, *encoded] = await embeddings.vectors_of(here, index.model, [query, *sent])
    kept = await here.aside(index.store.rows, held) if held else []
    of_sent, of_held = iter(encoded), iter(kept)
    rows = [next(of_held) if isinstance(each, int) else next(of_sent) for each in documents]
    return np.asarray([(each @ vectors.T).max() for each in rows], np.float32)


async def _query(here: State, index: Any, given: str | RerankQuery | Content) -> Item:
    if isinstance(given, str):
        return Item(None, embeddings.checked(here, given, "query"))
    if isinstance(given, Content):
        if isinstance(given.content, str):
            return Item(None, embeddings.checked(here, given.content, "query"))
        return await embeddings.of_parts(here, given.content, "query")
    text = embeddings.checked(here, given.text or "", "query.text")
    if given.id is not None and given.image is not None:
        raise Refusal(400, "query has an id and an image; give one", param="query")
    if given.id is not None:
        return Item(str(place_of(index, given.id)), text)
    if given.image is not None:
        return Item(await embeddings.picture(here, given.image, "query.image"), text)
    return Item(None, text)


async def _document(here: State, index: Any, given: str | Document, param: str) -> int | Item:
    """The id of an image of the index, or a picture that was sent."""
    if isinstance(given, Document) and given.id is not None:
        place_of(index, given.id)
        return given.id
    if isinstance(given, Document) and given.content is not None:
        found = await embeddings.of_parts(here, given.content, param)
        if found.kind == "image":
            return found
        raise _no_image(param)
    url = given if isinstance(given, str) else given.image
    if url is None or not url.startswith("data:"):
        raise _no_image(param)
    return Item(await embeddings.picture(here, url, param), "")


def _no_image(param: str) -> Refusal:
    return Refusal(
        400,
        f'{param} is no image; give the id of one of the index, {{"id": 12}}, or one as '
        "data:image/png;base64,...",
        param=param,
        code="no_image",
    )


def _told(document: str | Document) -> dict[str, Any] | None:
    """What is given back of a document: its id, not the picture that the client has."""
    if isinstance(document, Document) and document.id is not None:
        return {"id": document.id}
    return None
