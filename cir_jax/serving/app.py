# SPDX-License-Identifier: Apache-2.0
"""The parts of a server put together."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException

from cir_jax.errors import UserError
from cir_jax.retrieval.clicks import HeldOut
from cir_jax.retrieval.search.asking import Question
from cir_jax.retrieval.search.results import Answer
from cir_jax.serving import (
    clicking,
    embeddings,
    listing,
    mcp,
    pages,
    pictures,
    refusals,
    reranking,
    searching,
)
from cir_jax.serving.batching import Batches
from cir_jax.serving.guard import Guard, Load
from cir_jax.serving.numbers import Numbers
from cir_jax.serving.served import Served
from cir_jax.serving.settings import Settings
from cir_jax.serving.state import State
from cir_jax.serving.thumbnails import Thumbnails
from cir_jax.serving.uploads import Uploads
from cir_jax.version import VERSION

_ROUTERS = (searching, pictures, listing, clicking, embeddings, reranking, pages)


def make(
    indexes: Mapping[str, Any],
    settings: Settings,
    *,
    warm: Callable[[Any], None] = lambda index: None,
    held_out: Iterable[HeldOut] = (),
    log: Callable[[str], None] | None = None,
) -> FastAPI:
    """A server over these indexes, as an ASGI app.

    Args:
      indexes: name -> index; the first is the one that is meant if none is named.
      settings: who may ask, and how much.
      warm: compiles what an index needs to answer; called with each before it answers.
      held_out: sets whose pictures are never saved as triplets.
      log: takes a line for each request; None writes them to standard error.
    """
    numbers, load = Numbers(), Load(settings.queue)
    batches = Batches(settings.batch, settings.gather, lambda: load.count, numbers)
    served = Served(dict(indexes), warm, numbers)
    numbers.watch(lambda: load.count, lambda: len(batches))
    state = State(
        settings,
        served,
        batches,
        load,
        Uploads(settings.kept_bytes),
        Thumbnails(settings.thumbnail_bytes),
        clicking.opened(served, held_out),
        numbers,
    )
    app = FastAPI(
        title="cir_jax",
        version=VERSION,
        summary="Find an image from a reference image and a text",
        docs_url=None,  # their scripts come from another host
        redoc_url=None,
        lifespan=_lifespan,
    )
    app.state.server = state
    for module in _ROUTERS:
        app.include_router(module.router)
    app.state.mcp = mcp.Mounted(_tools(state))
    app.router.routes.append(app.state.mcp.route)
    app.add_exception_handler(UserError, refusals.of_user_error)
    app.add_exception_handler(HTTPException, refusals.of_http)
    app.add_exception_handler(RequestValidationError, refusals.of_validation)
    app.add_middleware(Guard, settings=settings, numbers=numbers, load=load, log=log)
    app.openapi = partial(_described, app)  # type: ignore[method-assign]
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Warms up before the first request, looks for new generations, and ends what was begun."""
    state: State = app.state.server
    state.batches.start()
    await state.batches.alone(state.served.warm_up)
    state.load.ready = True
    watch = asyncio.create_task(_watch(state))
    try:
        async with app.state.mcp.running():
            yield
    finally:
        state.load.ready = False
        watch.cancel()
        with suppress(asyncio.CancelledError):
            await watch
        await state.batches.stop()
        state.threads.shutdown(wait=False, cancel_futures=True)


def _tools(state: State) -> mcp.Backend:
    """What agents ask with, in the same batches as everybody else."""

    async def answer(name: str, index: Any, question: Question) -> Answer:
        return await searching.answered(state, name, index, question)

    return mcp.Backend(tuple(state.served.indexes), state.served.find, answer, state.aside)


async def _watch(state: State) -> None:
    while True:
        await asyncio.sleep(state.settings.poll)
        await asyncio.to_thread(state.served.renew)


def _described(app: FastAPI) -> dict[str, Any]:
    """The description of the API; a body of another form gets 400, where FastAPI says 422."""
    if app.openapi_schema is None:
        found = get_openapi(
            title=app.title, version=app.version, summary=app.summary, routes=app.routes
        )
        for path in found["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            found["components"]["schemas"].pop(name, None)
        found["components"]["securitySchemes"] = {
            "token": {"type": "http", "scheme": "bearer", "description": "If the server has one."}
        }
        found["security"] = [{}, {"token": []}]
        app.openapi_schema = found
    return app.openapi_schema
