# SPDX-License-Identifier: Apache-2.0
"""Requests and answers that other programs already speak: OpenAI's embeddings and models, and the
rerankers of Cohere and Jina. Where a query or a document may hold an image, it is written as in
chat messages."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cir_jax.serving.bodies import Asked, Id, Name

_TINY = "data:image/png;base64,iVBORw0KGgo..."


class TextPart(Asked):
    """A piece of text."""

    type: Literal["text"]
    text: str


class ImageUrl(Asked):
    """An image."""

    url: str = Field(description="A data URL; no address is opened.", examples=[_TINY])
    detail: str | None = Field(default=None, description="Read and not used.")


class ImagePart(Asked):
    """An image among pieces of text."""

    type: Literal["image_url"]
    image_url: ImageUrl | str


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Content(Asked):
    """An image, a text, or both: at most one image; pieces of text are joined."""

    content: str | list[Part]


class Message(Content):
    """A message of a chat."""

    role: Literal["user"]


class EmbeddingsBody(Asked):
    """What is to be embedded: one of `input` and `messages`.

    An image and a text make a composed query, a text alone is a query without an image, and an
    image alone is its own row: what composed queries are compared with.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "photos", "input": ["a red chair"]},
                {
                    "model": "photos",
                    "messages": [
                        {
                            "role": "user",
                            "content": [
                                {"type": "image_url", "image_url": {"url": _TINY}},
                                {"type": "text", "text": "but red"},
                            ],
                        }
                    ],
                },
            ],
            "oneOf": [{"required": ["input"]}, {"required": ["messages"]}],
        }
    )

    model: Name = Field(description="Name of an index, of whose model the vectors are.")
    input: str | list[str | Content | int | list[int]] | None = Field(
        default=None,
        description="A text, or a list of texts or contents. Lists of tokens are refused.",
    )
    messages: list[Message] | None = Field(default=None, description="One message, for one vector.")
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(
        default=None,
        ge=1,
        description="Values of a vector: those that the model has, and no other.",
    )
    user: str | None = Field(default=None, description="Read and not used.")

    @model_validator(mode="after")
    def _one(self) -> "EmbeddingsBody":
        if (self.input is None) == (self.messages is None):
            raise ValueError("give one of input and messages")
        return self


class Embedding(BaseModel):
    """One vector."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str = Field(
        description="Values, or with base64 the bytes of little-endian float32."
    )
    of: Literal["image", "query", "text"] = Field(
        description="image: an image's own row; query: composed of image and text; text: a text."
    )


class Usage(BaseModel):
    """Tokens of all texts, start and end included."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsAnswer(BaseModel):
    """Vectors of length 1, in the order of the input."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage


class ModelInfo(BaseModel):
    """A model that is served: that of an index."""

    id: str = Field(examples=["photos"])
    object: Literal["model"] = "model"
    created: int = Field(description="When this server took it, in seconds since 1970.")
    owned_by: str = "cir_jax"
    root: str = Field(description="The model.", examples=["clip_sum ViT-B/16"])
    dimensions: int
    rows: int = Field(description="Vectors of an image.")


class Models(BaseModel):
    """Models that are served."""

    object: Literal["list"] = "list"
    data: list[ModelInfo]


class Document(Asked):
    """An image that is ranked: of the index, or itself. Exactly one of the fields."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"id": 12}, {"image": _TINY}], "maxProperties": 1}
    )

    id: Id | None = None
    image: str | None = Field(default=None, description="A data URL.")
    content: list[Part] | None = None
    text: str | None = Field(default=None, description="Refused: what is ranked are images.")

    @model_validator(mode="after")
    def _one(self) -> "Document":
        if len(self.model_dump(exclude_none=True)) != 1:
            raise ValueError("a document has one of id, image and content")
        return self


class RerankQuery(Asked):
    """A query of an image, a text, or both."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"id": 12, "text": "but red"}]})

    id: Id | None = None
    image: str | None = Field(default=None, description="A data URL.")
    text: str | None = None


class RerankBody(Asked):
    """Images to be ordered by how well they answer a query."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"query": {"id": 12, "text": "but red"}, "documents": [{"id": 3}, {"id": 4}]}
            ]
        }
    )

    model: Name | None = Field(
        default=None, description="Name of an index; the first if not given."
    )
    query: str | RerankQuery | Content
    documents: list[str | Document] = Field(
        description="A plain string is a data URL of an image.", min_length=1
    )
    top_n: int | None = Field(default=None, ge=1, description="Results; all if not given.")
    return_documents: bool = Field(default=False, description="Give the ids of documents back.")


class Ranked(BaseModel):
    """A document that was ranked."""

    index: int = Field(description="Its place among the documents, from 0.")
    relevance_score: float = Field(
        description="The largest inner product of the query with a row of the image, -1 to 1."
    )
    document: dict[str, Any] | None = Field(default=None, description="With `return_documents`.")


class RerankAnswer(BaseModel):
    """Documents, best first; equal ones in the order in which they came."""

    model: str
    results: list[Ranked]
    usage: Usage
