# SPDX-License-Identifier: Apache-2.0
"""`/api/info` and `/api/images`: what is served, and what is in it."""

from typing import Annotated, Any
from weakref import WeakKeyDictionary

import numpy as np
import pyarrow.compute as pc
from fastapi import APIRouter
from fastapi import Query as InQuery

from cir_jax.retrieval.search import where as wheres
from cir_jax.retrieval.search.asking import FORMULA
from cir_jax.serving import clicking
from cir_jax.serving.bodies import (
    FieldInfo,
    Image,
    Images,
    IndexInfo,
    Info,
    Limits,
    Queries,
    Query,
    plain,
)
from cir_jax.serving.refusals import Refusal, declared
from cir_jax.serving.state import Here

router = APIRouter()
_told: WeakKeyDictionary[Any, IndexInfo] = WeakKeyDictionary()
_FEW = 50  # values of a field that are listed
_PAGE = 500  # images of one answer


@router.get("/api/info", responses=declared(), summary="What is served", tags=["images"])
async def info(here: Here) -> Info:
    """Indexes with their fields, the formula of scores, and limits."""
    settings = here.settings
    return Info(
        indexes=[await here.aside(_info, name, i) for name, i in here.served.indexes.items()],
        formula=FORMULA,
        clicks=await here.aside(clicking.counts, here),
        limits=Limits(
            upload_bytes=settings.upload_bytes,
            pixels=settings.pixels,
            text=settings.text,
            k=settings.k,
            images=settings.images,
        ),
    )


@router.get("/api/images", responses=declared(404), summary="Images by number", tags=["images"])
async def images(
    here: Here,
    index: Annotated[str | None, InQuery(max_length=500)] = None,
    offset: Annotated[int, InQuery(ge=0, lt=2**31)] = 0,
    limit: Annotated[int, InQuery(ge=1, le=_PAGE)] = 50,
    where: Annotated[str, InQuery(description="As in a search.")] = "",
) -> Images:
    """Images of an index, or those that `where` allows, in the order of their numbers."""
    if len(where) > here.settings.text:
        raise Refusal(400, f"where has more than {here.settings.text:,} characters", param="where")
    _, found = here.served.find(index)
    return await here.aside(_images, found, offset, limit, where)


@router.get(
    "/api/queries",
    responses=declared(404),
    summary="Queries of the benchmark that an index holds",
    tags=["images"],
)
async def queries(
    here: Here,
    index: Annotated[str | None, InQuery(max_length=500)] = None,
    offset: Annotated[int, InQuery(ge=0, lt=2**31)] = 0,
    limit: Annotated[int, InQuery(ge=1, le=_PAGE)] = 50,
) -> Queries:
    """Their numbers are what `query` of a search is; the list is empty where there is none."""
    _, found = here.served.find(index)
    chosen = list(enumerate(found.queries))[offset : offset + limit]
    return Queries(
        queries=[
            Query(number=n, reference=q["reference"], text=q["text"], targets=q["targets"])
            for n, q in chosen
        ],
        total=len(found.queries),
    )


def _images(index: Any, offset: int, limit: int, where: str) -> Images:
    catalogue = index.catalogue
    chosen = np.arange(len(catalogue.ids))
    if where.strip():
        chosen = np.flatnonzero(wheres.parse(where, catalogue.kinds).mask(catalogue.table))
    places = chosen[offset : offset + limit]
    images = []
    rows = catalogue.table.take(places).to_pylist()
    for id, row in zip(catalogue.ids[places], rows, strict=True):
        name = row.pop("name")
        fields = {key: plain(value) for key, value in row.items()}
        images.append(Image(id=int(id), name=name, fields=fields))
    return Images(images=images, total=len(chosen))


def _info(name: str, index: Any) -> IndexInfo:
    """What an index holds; read once for each generation, and forgotten with it."""
    if index not in _told:
        _told[index] = _described(name, index)
    return _told[index]


def _described(name: str, index: Any) -> IndexInfo:
    model = index.model
    return IndexInfo(
        name=name,
        model=f"{model.name} {model.tower}",
        images=len(index.catalogue.ids),
        fields=_fields(index.catalogue),
        text_alone=model.text_alone,
        why=model.explains,
        queries=len(index.queries),
        generation=int(index.generation),
        rows=model.rows_per_image,
        dimensions=model.embedding_dim,
    )


def _fields(catalogue: Any) -> list[FieldInfo]:
    found = []
    for name, kind in catalogue.kinds.items():
        if name == "name":
            continue
        values, info = catalogue.table[name].drop_null(), FieldInfo(name=name, type=kind)
        if kind == "number":
            values = values.filter(pc.is_finite(values))
        if kind in ("integer", "number"):
            least = pc.min_max(values).as_py()
            info.min, info.max = least["min"], least["max"]
        values = pc.unique(values)
        if 0 < len(values) <= _FEW:
            info.values = [plain(v) for v in sorted(values.to_pylist())]
        found.append(info)
    return found
