# SPDX-License-Identifier: Apache-2.0
"""`/` and `/page/`, the page; `/healthz` and `/metrics`, how the server is."""

from importlib import resources
from typing import Annotated

from fastapi import APIRouter
from fastapi import Path as InPath
from starlette.responses import Response

from cir_jax.serving.bodies import Health
from cir_jax.serving.numbers import CONTENT_TYPE
from cir_jax.serving.refusals import ErrorBody, Refusal, declared
from cir_jax.serving.state import Here

router = APIRouter()
_PAGE = "cir_jax.serving.page"
_MEDIA = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "png": "image/png",
    "ico": "image/x-icon",
    "webmanifest": "application/manifest+json",
}


@router.get("/", include_in_schema=False)
def page() -> Response:
    """The page."""
    return _file("index.html")


@router.get("/page/{name}", include_in_schema=False)
def page_file(name: Annotated[str, InPath(pattern=r"^[a-z0-9_-]+\.[a-z]+$")]) -> Response:
    """A file of the page."""
    return _file(name)


@router.get(
    "/healthz",
    response_model=Health,
    responses={503: {"model": ErrorBody, "description": "It starts, or stops."}},
    summary="Whether questions are answered",
    tags=["operation"],
)
async def health(here: Here) -> Health | Response:
    """200 once all programs are compiled."""
    if not here.load.ready:
        raise Refusal(503, "the server has not started; come again", code="starting")
    return Health(status="ready")


@router.get(
    "/metrics",
    responses={
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Text."},
        **declared(),
    },
    response_class=Response,
    summary="Numbers for Prometheus",
    tags=["operation"],
)
async def metrics(here: Here) -> Response:
    """Requests, queue, batches, seconds by part, generations."""
    return Response(here.numbers.text(), media_type=CONTENT_TYPE)


def _file(name: str) -> Response:
    """A file of the page's folder; a name with a "/" or ".." does not get here."""
    media = _MEDIA.get(name.rpartition(".")[2])
    file = resources.files(_PAGE) / name
    if media is None or not file.is_file():
        raise Refusal(404, f"the page has no file {name!r}", code="no_such_file")
    return Response(file.read_bytes(), media_type=media, headers={"Cache-Control": "no-cache"})
