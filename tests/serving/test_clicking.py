# SPDX-License-Identifier: Apache-2.0
"""Clicks become triplets, are counted and taken back, and what is held out never gets in."""

import json

import pytest

from cir_jax.retrieval.clicks import HeldOut
from cir_jax.serving import app
from cir_jax.serving.settings import Settings
from tests.serving import made
from tests.serving.conftest import problem

CHOSEN = {"reference": 3, "text": "but new", "target": 7}
BAD = {"reference": 3, "text": "but new", "excluded": 4}


@pytest.fixture
def fresh(tmp_path):
    return made.Index(tmp_path)


def records(index, name="triplets.jsonl"):
    return [json.loads(x) for x in (index.folder / "clicks" / name).read_text().splitlines()]


def test_a_chosen_result_is_saved_and_taken_back(start, fresh):
    client = start({"photos": fresh})
    assert client.get("/api/info").json()["clicks"] == {"triplets": 0, "excluded": 0}
    saved = client.post("/triplets", json=CHOSEN).json()
    assert saved["clicks"] == {"triplets": 1, "excluded": 0}
    assert client.post("/triplets", json=CHOSEN).json() == saved  # the same again stands once
    [record] = records(fresh)
    assert (record["reference"], record["text"]) == ("red-0.png", "but new")
    assert record["target"] == "red-4.png"
    bad = client.post("/triplets", json=BAD).json()
    assert (
        bad["clicks"] == client.get("/api/info").json()["clicks"] == {"triplets": 1, "excluded": 1}
    )
    assert records(fresh, "excluded.jsonl")[0]["excluded"] == "green-1.png"
    undone = client.delete(f"/triplets/{saved['triplet']}")
    assert undone.json() == {"clicks": {"triplets": 0, "excluded": 1}} and not records(fresh)
    problem(client.delete(f"/triplets/{saved['triplet']}"), 404)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({**CHOSEN, "target": 99}, 404),
        ({**CHOSEN, "reference": 99}, 404),
        ({**CHOSEN, "index": "x"}, 404),
        ({**CHOSEN, "excluded": 4}, 400),
        ({"reference": 3, "text": "a"}, 400),
        ({**CHOSEN, "text": 5}, 400),
        ({**CHOSEN, "target": "../../x"}, 400),
        ({**CHOSEN, "text": " "}, 409),
        ({**CHOSEN, "text": "a" * 3000}, 409),
        ({**CHOSEN, "target": 3}, 409),
    ],
)
def test_what_is_no_triplet(client, body, status):
    problem(client.post("/triplets", json=body), status)


@pytest.mark.parametrize("key", ["x", "..%2f..", "0" * 17])
def test_keys_that_are_none(client, key):
    assert client.delete(f"/triplets/{key}").status_code in (400, 404)


def test_what_is_held_out_is_refused(fresh):
    from starlette.testclient import TestClient

    held_out = [HeldOut([str(fresh.places[4])], "the benchmark")]
    fresh.queries = [{"reference": 5, "text": "a", "targets": [6]}]
    made_app = app.make({"x": fresh}, Settings(), held_out=held_out, log=lambda line: None)
    with TestClient(made_app, "http://localhost") as client:
        for body in (CHOSEN, {**CHOSEN, "target": 5}, {**CHOSEN, "target": 6}):
            error = problem(client.post("/triplets", json=body), 409)
            assert "evaluated with" in error["message"]
        assert client.post("/triplets", json={**CHOSEN, "target": 8}).status_code == 200


def test_agents_ask_beside_the_api(start):
    client = start(token="a-token-of-some-length")
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call"}
    call["params"] = {"name": "search_images", "arguments": {"text": "a", "k": 2}}
    accept = {"Accept": "application/json, text/event-stream"}
    problem(client.post("/mcp", json=call, headers=accept), 401)
    right = {**accept, "Authorization": "Bearer a-token-of-some-length"}
    answer = client.post("/mcp", json=call, headers=right).json()
    assert len(answer["result"]["structuredContent"]["results"]) == 2
    assert json.loads(client.lines[-1])["route"] == "/mcp"
