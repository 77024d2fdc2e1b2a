# SPDX-License-Identifier: Apache-2.0
"""`/triplets`: a chosen result becomes a triplet to train on, a bad one a pair that is none."""

from collections.abc import Iterable
from typing import Annotated, Any

from fastapi import APIRouter
from fastapi import Path as InPath
from pydantic import BaseModel, ConfigDict, Field, model_validator

from cir_jax.errors import UserError
from cir_jax.retrieval.clicks import Clicks, HeldOut, Refused
from cir_jax.serving import bodies
from cir_jax.serving.bodies import Asked, Id, Name
from cir_jax.serving.refusals import Refusal, declared
from cir_jax.serving.served import Served
from cir_jax.serving.state import Here, State

router = APIRouter()
Key = Annotated[str, InPath(pattern="^[0-9a-f]{16}$", description="What `POST /triplets` gave.")]


class TripletBody(Asked):
    """A result of a question: the answer, or no answer. One of `target` and `excluded`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"reference": 12, "text": "but red", "target": 7},
                {"reference": 12, "text": "but red", "excluded": 9},
            ],
            "oneOf": [{"required": ["target"]}, {"required": ["excluded"]}],
        }
    )

    index: Name | None = Field(default=None, description="The first one if not given.")
    reference: Id
    text: str
    target: Id | None = None
    excluded: Id | None = None

    @model_validator(mode="after")
    def _one(self) -> "TripletBody":
        if (self.target is None) == (self.excluded is None):
            raise ValueError("give one of target and excluded")
        return self


class Saved(BaseModel):
    """What was saved, and how much there is now."""

    triplet: str = Field(description="Its key, by which it is taken back.")
    clicks: bodies.Clicks


class Undone(BaseModel):
    """How much there is now."""

    clicks: bodies.Clicks


@router.post(
    "/triplets",
    responses=declared(404, 409, 429),
    summary="Save a result as a triplet, or as no answer",
    tags=["triplets"],
)
async def save(here: Here, body: TripletBody) -> Saved:
    """Pictures that somebody evaluates with are refused, since training would have seen them."""
    name, index = here.served.find(body.index)
    roles = {"reference": body.reference, "target": body.target, "excluded": body.excluded}
    names = {}
    for role, id in roles.items():
        if id is not None:
            try:
                names[role] = index.catalogue.name(id)
            except UserError as error:
                raise Refusal(404, str(error), param=role, code="no_such_image") from None
    clicks = here.clicks[name]
    keep = clicks.save if body.target is not None else clicks.exclude
    other = names["target"] if body.target is not None else names["excluded"]
    try:
        key = await here.aside(keep, names["reference"], body.text, other)
    except Refused as error:
        raise Refusal(409, str(error), code="refused") from None
    return Saved(triplet=key, clicks=await here.aside(counts, here))


@router.delete(
    "/triplets/{key}",
    responses=declared(404, 409, 429),
    summary="Take a click back",
    tags=["triplets"],
)
async def undo(here: Here, key: Key) -> Undone:
    """Nothing of it remains in the files that are trained on."""
    try:
        for clicks in here.clicks.values():
            if await here.aside(clicks.undo, key):
                return Undone(clicks=await here.aside(counts, here))
    except Refused as error:
        raise Refusal(409, str(error), code="refused") from None
    raise Refusal(404, f"no click {key} stands; it may have been taken back", param="key")


def counts(here: State) -> bodies.Clicks:
    """Clicks on all indexes together."""
    found = [clicks.counts() for clicks in here.clicks.values()]
    return bodies.Clicks(
        triplets=sum(one["triplets"] for one in found),
        excluded=sum(one["excluded"] for one in found),
    )


def opened(served: Served, held_out: Iterable[HeldOut]) -> dict[str, Clicks]:
    """The clicks of each index.

    Args:
      served: indexes.
      held_out: sets whose pictures never get in; the answers of a benchmark that an index holds
        never do either.

    Raises:
      UserError: a file of clicks is damaged.
    """
    sets = tuple(held_out)
    return {
        name: Clicks(index.folder, _places(served, name), (*sets, *_own(name, index)))
        for name, index in served.indexes.items()
    }


def _places(served: Served, name: str) -> Any:
    def path_of(image: str) -> str:
        index = served.indexes[name]  # the generation in use
        number = index.catalogue.number_of(image)
        if number is None:
            raise Refused(f"{image} is not in the index any more; search again")
        return str(index.path_of(number))

    return path_of


def _own(name: str, index: Any) -> list[HeldOut]:
    ids = {i for query in index.queries for i in (query["reference"], *query["targets"])}
    return [HeldOut([str(index.path_of(i)) for i in sorted(ids)], f"index {name}")] if ids else []
