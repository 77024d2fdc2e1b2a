# SPDX-License-Identifier: Apache-2.0
"""A server over made indexes, in this process."""

import base64
import io
import json
import threading
import time
from contextlib import contextmanager

import pytest
import uvicorn
from PIL import Image
from starlette.testclient import TestClient

from cir_jax.serving import app, running
from cir_jax.serving.settings import Settings
from tests.serving import made


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return made.Index(tmp_path_factory.mktemp("photos"))


@pytest.fixture
def start(index):
    """start(**settings): a client of a server that has begun, and what it wrote of requests."""
    open_now = []

    def begin(indexes=None, **settings):
        lines = []
        settings = Settings(**{"rate": 0, **settings})
        made_app = app.make(indexes or {"photos": index}, settings, log=lines.append)
        client = TestClient(made_app, "http://localhost", raise_server_exceptions=True)
        client.lines = lines
        client.__enter__()
        open_now.append(client)
        return client

    yield begin
    for client in open_now:
        client.__exit__(None, None, None)


@pytest.fixture
def client(start):
    return start()


@contextmanager
def listening(made_app, settings):
    """The address of an app that listens at a free port, in a thread of this process."""
    port = running.bound(settings)
    server = uvicorn.Server(uvicorn.Config(made_app, log_config=None, lifespan="on"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [port]})
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield running.address(port, settings)
    finally:
        server.should_exit = True
        thread.join()


def picture(colour="red", size=(40, 30), form="PNG", **options):
    """The bytes of an image file."""
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, form, **options)
    return out.getvalue()


def url(content=None, kind="image/png"):
    """A data URL of the bytes of a file."""
    return f"data:{kind};base64," + base64.b64encode(content or picture()).decode()


def problem(response, status=400):
    """The error of an answer, which must have this status and be of the form that all have."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    json.dumps(error)
    return error
