# SPDX-License-Identifier: Apache-2.0
"""Search for agents by the official client: in this process, over HTTP, over standard streams."""

import asyncio
import base64
import contextlib
import io
import json
import logging
import sys
import threading

import jax
import pytest
import uvicorn
from mcp import Client
from mcp.client.stdio import StdioServerParameters
from PIL import Image
from starlette.testclient import TestClient

import cir_jax
from cir_jax.errors import UserError
from cir_jax.retrieval.search import answering
from cir_jax.serving import agents, app, mcp
from cir_jax.serving.refusals import Refusal
from cir_jax.serving.settings import Settings
from tests import runs
from tests.convert import published
from tests.serving import made


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    (root / "in").mkdir()
    found = made.Index(root / "in")
    found.root = root / "in"
    (root / "out").mkdir()
    made.folder(root / "out", 2)
    (root / "in" / "deep").mkdir()
    (root / "in" / "deep" / "link.png").symlink_to(root / "out" / "red-0.png")
    return found


@pytest.fixture(scope="module")
def backend(index):
    def find(name):
        if name not in (None, "made"):
            raise Refusal(404, f"there is no index {name}")
        return "made", index

    async def answer(name, index, question):
        return await asyncio.to_thread(lambda: answering.answer(index, [question])[0])

    return mcp.Backend(("made",), find, answer, asyncio.to_thread)


def asked(server, *calls):
    """The results of calls of tools, (name, arguments), by the client over a transport."""

    async def ask():
        async with Client(server) as client:
            return [await client.call_tool(*call) for call in calls]

    return asyncio.run(ask())


def ids(result):
    assert not result.is_error, result.content
    return [one["id"] for one in result.structured_content["results"]]


def test_the_tools_say_what_they_take(backend):
    async def ask():
        async with Client(mcp.server(backend)) as client:
            return client.instructions, (await client.list_tools()).tools

    about, tools = asyncio.run(ask())
    assert "query weight * query" in about
    search, get = tools
    assert (search.name, get.name) == ("search_images", "get_image")
    assert set(search.input_schema["properties"]) == {
        "text", "image_id", "image_path", "not", "k", "offset", "where", "index",
    }  # fmt: skip
    assert search.output_schema["properties"]["results"]
    assert all(tool.annotations.read_only_hint for tool in tools)
    assert all(tool.input_schema["additionalProperties"] is False for tool in tools)


def test_a_search_is_that_of_the_index(backend, index):
    where = "colour = 'red' or price > 30"
    results = asked(
        mcp.server(backend),
        ("search_images", {"text": "darker", "image_id": 3, "k": 4}),
        ("search_images", {"text": "darker", "image_id": 3, "k": 3, "offset": 1, "not": "red"}),
        ("search_images", {"text": "darker", "image_path": "red-0.png", "k": 4, "where": where}),
        ("search_images", {"text": "darker", "image_path": str(index.places[0]), "index": "made"}),
    )
    search = lambda image, **options: [
        hit.id for hit in answering.search(index, image, "darker", **options)
    ]
    assert ids(results[0]) == search(3, k=4)
    assert ids(results[1]) == search(3, k=3, offset=1, avoid="red")
    assert ids(results[2]) == search(index.places[0], k=4, where=where)
    assert ids(results[3]) == search(index.places[0])
    found = results[0].structured_content
    assert found["index"] == "made" and found["candidates"] == 11 and "query" in found["formula"]
    first = found["results"][0]
    assert first["rank"] == 1 and first["fields"]["broken"] is None and first["fields"]["colour"]
    assert json.loads(results[0].content[0].text) == found  # for clients that read only texts


def test_an_image_is_seen(backend, index):
    [result] = asked(mcp.server(backend), ("get_image", {"id": 4, "size": 64}))
    name, picture = result.content
    assert name.text == index.places[1].name and picture.mime_type == "image/webp"
    image = Image.open(io.BytesIO(base64.b64decode(picture.data)))
    assert max(image.size) <= 64


OUTSIDE = "only files below it can be given"


@pytest.mark.parametrize(
    "tool, given, message",
    [
        ("search_images", {}, "image"),
        ("search_images", {"text": "x", "k": 0}, "greater than or equal to 1"),
        ("search_images", {"text": "x", "k": 1e9}, "less than or equal to 100"),
        ("search_images", {"text": "x", "offset": -1}, "greater than or equal to 0"),
        ("search_images", {"text": "x" * 2001}, "at most 2000 characters"),
        ("search_images", {"text": "x", "imag_id": 3}, "Extra inputs are not permitted"),
        ("search_images", {"text": "x", "image_id": 99}, "no image with the id 99"),
        ("search_images", {"text": "x", "where": "colour = 'red"}, "where, character"),
        ("search_images", {"text": "x", "index": "other"}, "there is no index other"),
        ("search_images", {"image_path": "../out/red-0.png"}, OUTSIDE),
        ("search_images", {"image_path": "/etc/passwd"}, OUTSIDE),
        ("search_images", {"image_path": "deep/link.png"}, OUTSIDE),
        ("search_images", {"image_path": "nothing.png"}, OUTSIDE),
        ("search_images", {"image_path": "in\0.png"}, OUTSIDE),
        ("search_images", {"image_path": "deep"}, OUTSIDE),
        ("get_image", {"id": 99}, "no image 99"),
        ("get_image", {"id": 3, "size": 4096}, "64, 128, 256, 512 or 1024"),
        ("get_image", {"id": "../in"}, "valid integer"),
    ],
)
def test_what_cannot_be_done_is_told(backend, tool, given, message, caplog):
    [result] = asked(mcp.server(backend), (tool, given))
    assert result.is_error and message in result.content[0].text
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]  # nothing of ours broke


def test_a_folder_that_was_named_is_open(backend, index):
    out = index.root.parent / "out"
    more = mcp.Backend(("made",), backend.find, backend.answer, backend.aside, (str(out),))
    results = asked(
        mcp.server(more),
        ("search_images", {"text": "darker", "image_path": str(out / "red-0.png")}),
        ("search_images", {"text": "darker", "image_path": "red-0.png"}),
    )
    assert ids(results[0]) == [h.id for h in answering.search(index, out / "red-0.png", "darker")]
    assert ids(results[1])  # the folder of the index comes first


@contextlib.contextmanager
def served(app):
    """The address of an app that answers in a thread."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="on"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
        [socket] = server.servers[0].sockets
        yield f"http://127.0.0.1:{socket.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def test_over_http(backend, index):
    question = ("search_images", {"text": "darker", "image_id": 3, "k": 4})
    server = app.make({"made": index}, Settings(rate=0), log=lambda line: None)
    with served(server) as address:
        over = asked(
            f"{address}/mcp", question, ("get_image", {"id": 3}), ("get_image", {"id": 99})
        )
    [here] = asked(mcp.server(backend), question)
    assert ids(over[0]) == ids(here)
    assert [part.type for part in over[1].content] == ["text", "image"]
    assert over[2].is_error and "no image 99" in over[2].content[0].text


@pytest.mark.parametrize(
    "host, token, status", [("http://example.org", "", 403), ("http://localhost", "t" * 20, 401)]
)
def test_agents_are_let_in_as_others_are(index, host, token, status):
    server = app.make({"made": index}, Settings(token=token), log=lambda line: None)
    with TestClient(server, host) as client:
        refused = client.post(mcp.PATH, json={"jsonrpc": "2.0", "id": 1, "method": "ping"})
    assert refused.status_code == status


def test_a_server_may_be_started_again(backend):
    asyncio.run(_running_twice(mcp.Mounted(backend)))


async def _running_twice(mounted):
    for _ in range(2):
        async with mounted.running():
            pass


def test_over_standard_streams(tmp_path):
    """A real index and a real model; what they print is not in the way of the protocol."""
    for number in range(4):
        runs.write_image(tmp_path / "in" / f"{number}.png", (60 * number, 80, 120), number)
    weights = published.write("spn", tmp_path, published.state())
    model = cir_jax.load(weights, device=jax.devices()[0])
    index = model.index(tmp_path / "in", out=tmp_path / "index")
    (tmp_path / "in" / "text.png").write_text("no picture")
    command = StdioServerParameters(
        command=sys.executable,
        args=["-m", "cir_jax.main", "mcp", str(tmp_path / "index")],
        env=runs.one_device(),
    )
    searched, picture, no_picture = asked(
        command,
        ("search_images", {"text": "is red", "image_path": "2.png", "k": 3}),
        ("get_image", {"id": 1, "size": 64}),
        ("search_images", {"text": "is red", "image_path": "text.png"}),
    )
    assert sorted(ids(searched)) == [0, 1, 3]  # the reference is left out
    assert picture.content[0].text == index.catalogue.name(1)
    assert no_picture.is_error and "text.png" in no_picture.content[0].text


def test_what_is_served_is_checked_first(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="--files: there is no folder /nowhere"):
        agents.serve([str(tmp_path)], ["/nowhere"], None)
    monkeypatch.setitem(sys.modules, "mcp", None)
    with pytest.raises(UserError, match=r"pip install 'cir_jax\[serve\]'"):
        agents.serve([str(tmp_path)], [], None)


def test_a_newer_generation_is_taken(index, tmp_path):
    newer = made.Index(tmp_path, generation=2, count=3)
    older = made.Index(tmp_path, generation=1, count=3)
    older.next = newer
    one = agents.Indexes(["a/made", "b/made"], {"a/made": older, "b/made": index}.get)
    assert list(one.opened) == ["made", "made-2"]
    question = mcp.Question(text="red", k=1)
    assert one.answer("made", question).hits and one.find(None) == ("made", newer)
    with pytest.raises(UserError, match=r"no index 'mad'; .*Did you mean 'made'"):
        one.find("mad")
