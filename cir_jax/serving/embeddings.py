# SPDX-License-Identifier: Apache-2.0
"""`/v1/embeddings` and `/v1/models`, as clients of OpenAI ask for them.

A vector is that of the model, unchanged: an image and a text give the composed query, a text alone
one composed with zeros, an image alone its target row. A model with several rows an image has no
one vector for an image alone, which is refused.
"""

import asyncio
import base64
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter
from fastapi import Path as InPath
from numpy.typing import NDArray
from PIL import Image
from starlette.responses import JSONResponse, Response

from cir_jax.serving import uploads
from cir_jax.serving.openai_bodies import (
    Content,
    EmbeddingsAnswer,
    EmbeddingsBody,
    ModelInfo,
    Models,
    Part,
    TextPart,
)
from cir_jax.serving.refusals import Refusal, declared
from cir_jax.serving.state import Here, State

router = APIRouter()
Kind = Literal["image", "query", "text"]
_STARTED = int(time.time())


@dataclass(frozen=True, eq=False)
class Item:
    """One thing to embed.

    Attributes:
      image: a picture, the file of one, or None.
      text: "" for none.
    """

    image: Image.Image | str | None
    text: str

    @property
    def kind(self) -> Kind:
        """What its vector is of."""
        if self.image is None:
            return "text"
        return "query" if self.text.strip() else "image"


@router.post(
    "/v1/embeddings",
    response_model=EmbeddingsAnswer,
    responses=declared(404, 429, 503),
    summary="Vectors of texts, images and composed queries",
    tags=["openai"],
)
async def embeddings(here: Here, body: EmbeddingsBody) -> Response:
    """As OpenAI's; images and images with texts are written as in chat messages."""
    _, index = here.served.find(body.model, "model")
    model = index.model
    _check_dimensions(body.dimensions, model)
    given, param = _given(body, here)
    items = [await _item(here, each, f"{param}.{i}") for i, each in enumerate(given)]
    used = await here.aside(used_tokens, model, items, param)
    for number, item in enumerate(items):
        check(item, model, f"{param}.{number}")
    vectors = await vectors_of(here, model, items)
    data = [
        {
            "object": "embedding",
            "index": number,
            "embedding": _encoded(vector[0], body.encoding_format),
            "of": item.kind,
        }
        for number, (item, vector) in enumerate(zip(items, vectors, strict=True))
    ]
    usage = {"prompt_tokens": used, "total_tokens": used}
    return JSONResponse({"object": "list", "data": data, "model": body.model, "usage": usage})


@router.get("/v1/models", responses=declared(), summary="Models that are served", tags=["openai"])
async def models(here: Here) -> Models:
    """Each is named as its index."""
    return Models(data=[_described(name, index) for name, index in here.served.indexes.items()])


@router.get("/v1/models/{model}", responses=declared(404), summary="One of them", tags=["openai"])
async def model(here: Here, model: Annotated[str, InPath(max_length=500)]) -> ModelInfo:
    """The model of an index."""
    return _described(*here.served.find(model, "model"))


def used_tokens(model: Any, items: Sequence[Item], param: str) -> int:
    """Tokens of all texts.

    Raises:
      Refusal: one has more than the model reads.
    """
    texts = {number: item.text for number, item in enumerate(items) if item.kind != "image"}
    counts = model.count_tokens(list(texts.values()))
    retriever = model.retriever(few=True)
    context = retriever.tokenizer.context
    if retriever.on_long == "error" and not retriever.tokenizer.cuts:
        for number, count in zip(texts, counts, strict=True):
            if count > context:
                raise Refusal(
                    400,
                    f"{param}.{number} has {count} tokens, the limit of {model.name} is {context} "
                    "with start and end; shorten it",
                    param=f"{param}.{number}",
                    code="too_long",
                )
    return sum(min(count, context) for count in counts)


def check(item: Item, model: Any, param: str) -> None:
    """Raises Refusal for what a model has no vector for."""
    if item.kind == "image" and model.rows_per_image > 1:
        raise Refusal(
            400,
            f"{param} is an image alone, which {model.name} gives {model.rows_per_image} rows and "
            "no single vector; add a text, or ask /search or /v1/rerank, which take the best row",
            param=param,
            code="several_rows",
        )
    if item.kind == "text":
        if not item.text.strip():
            raise Refusal(400, f"{param} is empty; give a text or an image", param=param)
        if not model.text_alone:
            raise Refusal(
                400,
                f"{param} is a text alone, and {model.name} composes a text with what it sees in a "
                "reference image; add one",
                param=param,
                code="no_text_alone",
            )


async def vectors_of(here: State, model: Any, items: Sequence[Item]) -> list[NDArray[np.float32]]:
    """Of each item [1, D], or [K, D] of an image alone."""
    result = here.batches.result
    work = [
        result(("embed", item.kind, id(model)), partial(_embed, model, item.kind), item)
        for item in items
    ]
    return list(await asyncio.gather(*work))


def _embed(model: Any, kind: Kind, items: Sequence[Item]) -> list[NDArray[np.float32]]:
    """The vectors of items of one kind, in the device's thread."""
    images = [item.image for item in items]
    if kind == "image":
        return list(model.encode_images(images))
    texts = [item.text for item in items]
    queries = model.encode_queries(None if kind == "text" else images, texts)
    return [row[None] for row in queries]


def _given(body: EmbeddingsBody, here: State) -> tuple[list[str | Content], str]:
    """The texts and contents of a request, and what it calls them."""
    if body.messages is not None:
        if len(body.messages) != 1:
            raise Refusal(
                400,
                f"messages has {len(body.messages)}; one message makes one vector; several are "
                'given as input: [{"content": [...]}, ...]',
                param="messages",
            )
        return list(body.messages), "messages"
    given = [body.input] if isinstance(body.input, str) else body.input or []
    if not 1 <= len(given) <= here.settings.inputs:
        raise Refusal(
            400,
            f"input has {len(given)} items; give 1 to {here.settings.inputs}",
            param="input",
        )
    texts = [each for each in given if isinstance(each, str | Content)]
    if len(texts) < len(given):
        raise Refusal(
            400,
            "input holds tokens, and those of another model mean something else here; send texts",
            param="input",
        )
    return texts, "input"


async def _item(here: State, given: str | Content, param: str) -> Item:
    content = given.content if isinstance(given, Content) else given
    if isinstance(content, str):
        return Item(None, checked(here, content, param))
    return await of_parts(here, content, param)


async def of_parts(here: State, parts: Sequence[Part], param: str) -> Item:
    """What a list of pieces says together.

    Raises:
      Refusal: more than one image, too long a text, or an image that cannot be opened.
    """
    texts = [part.text for part in parts if isinstance(part, TextPart)]
    urls = [part.image_url for part in parts if not isinstance(part, TextPart)]
    if len(urls) > 1:
        raise Refusal(
            400, f"{param} has {len(urls)} images; one vector is of one image", param=param
        )
    text = checked(here, " ".join(texts), param)
    if not urls:
        return Item(None, text)
    url = urls[0] if isinstance(urls[0], str) else urls[0].url
    return Item(await picture(here, url, param), text)


def checked(here: State, text: str, param: str) -> str:
    """The text, unless it is too long."""
    if len(text) > here.settings.text:
        raise Refusal(
            400,
            f"{param} has {len(text):,} characters, and at most {here.settings.text:,} are read; "
            "shorten it",
            param=param,
        )
    return text


async def picture(here: State, url: str, param: str) -> Image.Image:
    """The picture in a data URL."""
    settings = here.settings
    content = await here.aside(uploads.content_of, url, settings.upload_bytes, param)
    return await here.aside(uploads.opened, content, settings.pixels, settings.upload_bytes, param)


def _check_dimensions(dimensions: int | None, model: Any) -> None:
    if dimensions not in (None, model.embedding_dim):
        raise Refusal(
            400,
            f"dimensions is {dimensions}, and the vectors of {model.name} have "
            f"{model.embedding_dim} values; fewer of them would be vectors that it was not trained "
            "for; leave dimensions out",
            param="dimensions",
        )


def _encoded(vector: NDArray[np.float32], form: str) -> list[float] | str:
    if form == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return [float(x) for x in vector]


def _described(name: str, index: Any) -> ModelInfo:
    model = index.model
    return ModelInfo(
        id=name,
        created=_STARTED,
        root=f"{model.name} {model.tower}",
        dimensions=model.embedding_dim,
        rows=model.rows_per_image,
    )
