# SPDX-License-Identifier: Apache-2.0
"""Requests and answers of the page and of programs as JSON, with examples: what OpenAPI describes.

Values are as JSON types them: "12" is no number, and no number is infinite. An unknown field is an
error, so that a mistyped one is not passed over.
"""

import re
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    field_validator,
    model_validator,
)

Id = Annotated[int, Field(ge=0, lt=2**63, description="Number of an image in its index.")]
Weight = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]
Hash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, StringConstraints(max_length=500)]
_HALVES = re.compile("[\ud800-\udfff]")
FieldValue = str | int | float | bool | None


class Asked(BaseModel):
    """A part of a request."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @field_validator("*")
    @classmethod
    def _whole_characters(cls, value: Any) -> Any:
        """JSON can hold halves of characters, which no tokenizer reads and no file name has."""
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and _HALVES.search(text):
                raise ValueError("half a character of unicode (a lone surrogate); send whole ones")
        return value


class ImageRef(Asked):
    """An image: of an index, an upload, or the image itself. Exactly one of the three."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"id": 12}, {"data": "data:image/png;base64,iVBORw0KGgo..."}],
            "oneOf": [{"required": [name]} for name in ("id", "upload", "data")],
        }
    )

    id: Id | None = None
    upload: Hash | None = Field(default=None, description="What `POST /api/uploads` gave.")
    data: str | None = Field(default=None, description="A data URL: data:image/png;base64,...")
    index: Name | None = Field(
        default=None,
        description="With `id`: the index that the id is of, if it is another one that is served. "
        "The image of the same name is meant, or, if there is none, the picture itself.",
    )

    @model_validator(mode="after")
    def _one(self) -> "ImageRef":
        given = [name for name in ("id", "upload", "data") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"an image has one of id, upload and data, and this one has {len(given)}"
            )
        if self.index is not None and self.id is None:
            raise ValueError("an image with index has an id too")
        return self


class WeightsBody(Asked):
    """How much each part of a score counts; see `formula` of `/api/info`."""

    query: Weight | None = Field(default=None, description="Of the composed query; 1 if not given.")
    image: Weight | None = Field(
        default=None, description="Of likeness to the image; 0 if not given."
    )
    avoid: Weight | None = Field(
        default=None, description="Of the words to avoid; 0.5 if not given."
    )


class SearchBody(Asked):
    """A question: images, a text, or both."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"images": [{"id": 12}], "text": "but red", "not": "stripes", "k": 10},
                {"text": "a red chair", "where": "price < 50"},
            ]
        }
    )

    index: Name | None = Field(default=None, description="Which index; the first one if not given.")
    images: list[ImageRef] = Field(default=[], description="Reference images.")
    text: str = Field(default="", description="What to change, or, without an image, what to find.")
    avoid: str = Field(default="", alias="not", description="Words whose images come later.")
    weights: WeightsBody = Field(default_factory=WeightsBody)
    k: int = Field(default=10, ge=1, description="Results; see `limits` of `/api/info`.")
    offset: int = Field(default=0, ge=0, description="Results that an earlier page has shown.")
    where: str = Field(
        default="",
        description="Condition on fields.",
        examples=["category = 'shoes' and price < 50"],
    )
    min_score: float | None = Field(default=None, allow_inf_nan=False)
    fold: bool = Field(default=True, description="Show images that are nearly the same once.")
    keep_reference: bool = Field(
        default=False, description="Let the images of the question be found."
    )
    exact: bool = Field(
        default=True, description="False allows approximate ranking, where there is any."
    )
    why: bool = Field(
        default=False, description="The parts of each score, of models that are a sum."
    )
    query: int | None = Field(
        default=None,
        ge=0,
        description="Number of a query of the benchmark that the index holds. Without images and "
        "text it is asked; with them it says which right answers are marked.",
    )


class Why(BaseModel):
    """What each part of a question gives to a score; their sum is the score."""

    image: float
    text: float
    avoid: float | None = Field(default=None, description="With words to avoid.")


class Result(BaseModel):
    """An image that was found."""

    id: int
    name: str = Field(description="Path from the indexed folder.", examples=["shoes/12.jpg"])
    score: float
    rank: int = Field(description="From 1.")
    fields: dict[str, FieldValue]
    same: list[int] = Field(description="Ids of images that are nearly the same.")
    why: Why | None


class Target(BaseModel):
    """A right answer of a benchmark."""

    id: int
    rank: int | None = Field(description="From 1; null if it cannot be found by this question.")


class SearchAnswer(BaseModel):
    """What was found, best first."""

    index: str
    results: list[Result]
    candidates: int = Field(description="Images that could be found.")
    more: bool = Field(description="Whether there are further results.")
    formula: str = Field(description="How the scores came about.")
    seconds: dict[str, float] = Field(
        description="By part.", examples=[{"encode": 0.02, "rank": 0.01, "total": 0.04}]
    )
    targets: list[Target] | None = Field(default=None, description="With `query`.")


class FieldInfo(BaseModel):
    """A field of the images of an index."""

    name: str
    type: str = Field(examples=["text", "integer", "number", "boolean"])
    values: list[FieldValue] | None = Field(
        default=None, description="All there are, if they are few."
    )
    min: float | None = Field(default=None, description="Of numbers.")
    max: float | None = Field(default=None, description="Of numbers.")


class IndexInfo(BaseModel):
    """An index that is served."""

    name: str
    model: str = Field(examples=["clip_sum ViT-B/16"])
    images: int
    fields: list[FieldInfo]
    text_alone: bool = Field(description="Whether a question may be a text alone.")
    why: bool = Field(description="Whether scores can be explained.")
    queries: int = Field(description="Queries of a benchmark.")
    generation: int
    rows: int = Field(description="Vectors of an image, K.")
    dimensions: int = Field(description="Values of a vector, D.")


class Clicks(BaseModel):
    """Triplets that users of the page have saved."""

    triplets: int
    excluded: int


class Limits(BaseModel):
    """What a request may hold at most."""

    upload_bytes: int
    pixels: int
    text: int
    k: int
    images: int


class Info(BaseModel):
    """What is served."""

    indexes: list[IndexInfo]
    formula: str
    clicks: Clicks | None = Field(default=None, description="Null where triplets cannot be saved.")
    limits: Limits


class Image(BaseModel):
    """An image of an index."""

    id: int
    name: str
    fields: dict[str, FieldValue]


class Images(BaseModel):
    """A part of the images of an index, by id."""

    images: list[Image]
    total: int


class Upload(BaseModel):
    """An image that is kept for a while."""

    upload: str = Field(description="Its name in `images` of a search.")
    width: int
    height: int
    ids: dict[str, int] = Field(
        description="Its number in each index that has the very same file.",
        examples=[{"photos": 12}],
    )


class Query(BaseModel):
    """A query of a benchmark."""

    number: int
    reference: int
    text: str
    targets: list[int]


class Queries(BaseModel):
    """A part of the queries of a benchmark."""

    queries: list[Query]
    total: int


class Health(BaseModel):
    """Whether the server answers questions."""

    status: str = Field(examples=["ready"])


def plain(value: Any) -> FieldValue:
    """The value of a field as JSON can say it; a number that is none is null."""
    if isinstance(value, float) and value - value != 0:
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)
