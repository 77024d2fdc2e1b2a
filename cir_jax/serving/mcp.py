# SPDX-License-Identifier: Apache-2.0
"""Search for agents: the tools `search_images` and `get_image` of the Model Context Protocol.

The same tools stand behind standard input and output (`cir-jax mcp`) and behind `/mcp` of a server.
Both only read. A picture is asked for by its number, and a file of this machine is opened only
below the folders of the indexes and those that were named for it.
"""

import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from mcp.server.mcpserver import Image, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.tools import Tool
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.types import ToolAnnotations
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from cir_jax.data import picture_files, places
from cir_jax.errors import UserError
from cir_jax.retrieval.search.asking import FORMULA, Question
from cir_jax.retrieval.search.results import Answer
from cir_jax.serving import thumbnails
from cir_jax.version import VERSION

MOST = 100  # results of one call: more than an agent reads
LONGEST = 2_000  # characters of a text
PATH = "/mcp"

_ABOUT = (
    "Finds images of an index from a reference image, a text that says what is different about the "
    "wanted image, or both. Ask get_image to see one. {formula}."
)
_SEARCH = (
    "Find images that look like a reference image but for what the text says ('the same, but "
    "red'). Give image_id (of an earlier result) or image_path, and text; or one of them alone. "
    "The best come first."
)
_GET = "See one image of the index, by the id that search_images gives."
_READS = ToolAnnotations(
    read_only_hint=True, idempotent_hint=True, destructive_hint=False, open_world_hint=False
)


@dataclass(frozen=True)
class Backend:
    """What stands behind the tools.

    Attributes:
      names: of the indexes; the first is meant if none is named.
      find: name or None -> (name, index); it raises UserError or HTTPException.
      answer: (name, index, question) -> its answer, while others are served.
      aside: (work, argument) -> its result, from a thread.
      folders: from which files may be given, beside those of the indexes.
    """

    names: tuple[str, ...]
    find: Callable[[str | None], tuple[str, Any]]
    answer: Callable[[str, Any, Question], Awaitable[Answer]]
    aside: Callable[..., Awaitable[Any]]
    folders: tuple[str, ...] = ()


class Found(BaseModel):
    """One image."""

    id: int
    name: str = Field(description="Path in the indexed folder.")
    score: float
    rank: int
    fields: dict[str, str | int | float | bool | None] = Field(description="What is known of it.")
    same: list[int] = Field(description="Ids of nearly the same images, which are not listed.")


class FoundImages(BaseModel):
    """What a search finds."""

    index: str
    results: list[Found]
    candidates: int = Field(description="Images that could be found.")
    more: bool = Field(description="Whether a larger offset finds more.")
    formula: str = Field(description="How the scores came about.")


def server(backend: Backend, begun: Callable[[], Any] = lambda: None) -> MCPServer:
    """The tools over a backend, for any transport; `begun` is called once that is open."""

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        begun()
        yield

    # The library gives the root logger coloured boxes, unless it has a handler already.
    logging.basicConfig(level=logging.ERROR, format="%(name)s: %(message)s")
    listed = ", ".join(backend.names)
    about = _ABOUT.format(formula=FORMULA[0].upper() + FORMULA[1:])
    if len(backend.names) > 1:
        about += f" There are the indexes {listed}; the first is searched if none is named."
    return MCPServer(
        "cir_jax",
        title="Composed image search",
        instructions=about,
        version=VERSION,
        tools=[_strict(_search(backend), _SEARCH), _strict(_get(backend), _GET)],
        log_level="ERROR",
        lifespan=lifespan,
    )


class Mounted:
    """The tools behind HTTP, for an app of Starlette.

    Attributes:
      route: of the app, at PATH; requests are answered inside `running`.
    """

    def __init__(self, backend: Backend):
        self._backend = backend
        self._manager: StreamableHTTPSessionManager | None = None
        self.route = Route(PATH, endpoint=self)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request; who may ask has been looked at before."""
        if self._manager is None:
            raise HTTPException(503, "the server has not started; come again")
        await self._manager.asgi_app(scope, receive, send)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The time in which requests are answered."""
        made = server(self._backend)
        # Every request stands alone, so that nothing is kept of a client that does not come back.
        made.streamable_http_app(stateless_http=True, json_response=True, host="")
        async with made.session_manager.run():
            self._manager = made.session_manager
            try:
                yield
            finally:
                self._manager = None


def _search(backend: Backend) -> Callable[..., Awaitable[FoundImages]]:
    async def search_images(
        text: Annotated[
            str,
            Field(max_length=LONGEST, description="What is different, e.g. 'red, without logo'."),
        ] = "",
        image_id: Annotated[
            int | None, Field(description="The reference: id of an image of the index.")
        ] = None,
        image_path: Annotated[
            str | None,
            Field(max_length=4096, description="Or the reference is a file, below the indexed "
            "folder; a path in that folder, or an absolute one."),
        ] = None,
        avoid: Annotated[
            str,
            Field(alias="not", max_length=LONGEST, description="Words to avoid, e.g. 'stripes'."),
        ] = "",
        k: Annotated[int, Field(ge=1, le=MOST, description="How many images.")] = 10,
        offset: Annotated[int, Field(ge=0, description="Results that were seen already.")] = 0,
        where: Annotated[
            str,
            Field(max_length=LONGEST, description="Which images may be found, by their fields and "
            "name, e.g. \"category = 'shoes' and price < 50\"."),
        ] = "",
        index: Annotated[str | None, Field(description="Name of the index.")] = None,
    ) -> FoundImages:  # fmt: skip
        with _told():
            name, found = backend.find(index)
            images: list[Any] = [] if image_id is None else [image_id]
            if image_path is not None:
                images.append(await backend.aside(_file(found, backend.folders), image_path))
            question = Question(
                images=tuple(images), text=text, avoid=avoid, k=k, offset=offset, where=where
            )
            answer = await backend.answer(name, found, question)
        return FoundImages(
            index=name,
            results=[
                Found(
                    id=hit.id, name=hit.name, score=hit.score, rank=hit.rank,
                    fields={key: _plain(value) for key, value in hit.fields.items()},
                    same=list(hit.same),
                )
                for hit in answer.hits
            ],
            candidates=answer.candidates, more=answer.more, formula=answer.formula,
        )  # fmt: skip

    return search_images


def _get(backend: Backend) -> Callable[..., Awaitable[list[str | Image]]]:
    async def get_image(
        id: Annotated[int, Field(description="Number of the image.")],
        size: Annotated[
            Literal[64, 128, 256, 512, 1024], Field(description="Longest side in pixels.")
        ] = 512,
        index: Annotated[str | None, Field(description="Name of the index.")] = None,
    ) -> list[str | Image]:
        def small(place: str) -> bytes:
            image = picture_files.decoded(Path(place), picture_files.NATURAL_FORMATS)
            return thumbnails.small(image, size)

        with _told():
            _, found = backend.find(index)
            content = await backend.aside(small, found.path_of(id))
            return [found.catalogue.name(id), Image(data=content, format="webp")]

    return get_image


def _strict(tool: Callable[..., Any], description: str) -> Tool:
    """A tool that refuses an argument that it does not have, where the library would drop it.

    Its argument `avoid` is called "not" outside, which no argument of Python can be.
    """
    made = Tool.from_function(
        tool, description=description, annotations=_READS,
        structured_output=None if tool.__annotations__["return"] is FoundImages else False,
    )  # fmt: skip

    class Arguments(made.fn_metadata.arg_model):  # type: ignore[name-defined,misc]
        model_config = ConfigDict(extra="forbid")

    async def call(**given: Any) -> Any:
        if "not" in given:
            given["avoid"] = given.pop("not")
        return await tool(**given)

    made.fn_metadata = made.fn_metadata.model_copy(update={"arg_model": Arguments})
    made.parameters = Arguments.model_json_schema(by_alias=True)
    made.fn = call
    return made


@contextmanager
def _told() -> Iterator[None]:
    """What a user can mend is the answer of the tool, without a traceback in the log."""
    try:
        yield
    except UserError as error:
        raise ToolError(str(error)) from None
    except HTTPException as error:
        raise ToolError(str(error.detail)) from None


def _file(index: Any, folders: Sequence[str]) -> Callable[[str], str]:
    def found(path: str) -> str:
        """A file below the folders; what lies elsewhere is not even looked for.

        Raises:
          UserError: it is elsewhere, or not there.
        """
        allowed = [str(index.root), *folders]
        roots = places.Roots(allowed)
        try:
            # A path from the first folder that has it; an absolute one is itself.
            real = [os.path.realpath(os.path.join(folder, path)) for folder in allowed]
        except ValueError:  # a character that no path holds
            real = []
        for one in real:
            if roots.hold(one) and os.path.isfile(one):
                return one
        raise UserError(
            f"no image file {path[:200]!r} in the folder of the index"
            f"{' or those of --files' if folders else ''}; only files below it can be given. "
            "Another folder is opened by `cir-jax mcp --files FOLDER`"
        )

    return found


def _plain(value: Any) -> Any:
    """The value of a field as JSON can say it; a number that is none is null."""
    if isinstance(value, float) and value - value != 0:
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)
