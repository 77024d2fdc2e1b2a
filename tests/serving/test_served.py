# SPDX-License-Identifier: Apache-2.0
"""An index that is rebuilt goes on as it was until the new one is whole."""

import gc
import weakref

import pytest

from cir_jax.errors import UserError
from cir_jax.serving import served
from cir_jax.serving.numbers import Numbers
from tests.serving import made
from tests.serving.conftest import problem


@pytest.fixture
def two(tmp_path):
    return pair(tmp_path)


def pair(tmp_path):
    """An index, and the generation after it."""
    for name in "ab":
        (tmp_path / name).mkdir()
    return made.Index(tmp_path / "a"), made.Index(tmp_path / "b", generation=2, count=13)


def test_the_new_generation_is_warmed_up_and_taken(two):
    old, new = two
    warmed = []
    held = served.Served({"x": old}, warmed.append, Numbers())
    held.renew()
    assert held.find("x") == ("x", old) and not warmed
    old.next = new
    held.renew()
    assert held.find(None) == ("x", new) and warmed == [new]


def test_one_that_cannot_be_opened_is_told_of_once(two, capsys):
    old, new = two

    def damaged():
        raise UserError("rows of 3 images are damaged")

    old.newer = damaged
    held = served.Served({"x": old}, lambda index: None, Numbers())
    held.renew()
    held.renew()
    assert capsys.readouterr().out.count("goes on as it is: rows of 3 images") == 1
    assert held.find("x")[1] is old
    old.newer = lambda: new
    held.renew()
    assert held.find("x")[1] is new


def test_whatever_is_wrong_with_it_the_old_one_answers(two, capsys):
    old, new = two
    old.next = new

    def warm(index):
        raise KeyError("a defect")

    held = served.Served({"x": old}, warm, Numbers())
    held.renew()
    held.renew()
    said = capsys.readouterr()
    assert held.find("x")[1] is old and said.out.count("goes on as it is") == 1
    assert said.err.count("Traceback") == 1


def test_nothing_holds_an_old_generation(start, tmp_path):
    old, new = pair(tmp_path)
    client, gone = start({"x": old}, poll=0.01), weakref.ref(old)
    client.get("/api/info")
    client.post("/search", json={"text": "a"})
    old.next = new
    del old
    while client.get("/api/info").json()["indexes"][0]["generation"] == 1:
        pass
    client.post("/search", json={"text": "a"})
    gc.collect()
    assert gone() is None


def test_a_server_takes_it_while_it_runs(start, two):
    old, new = two
    client = start({"x": old}, poll=0.01)
    assert client.get("/api/info").json()["indexes"][0]["images"] == 12
    problem(client.get("/images/15"), 404)
    old.next = new
    while client.get("/api/info").json()["indexes"][0]["generation"] == 1:
        pass
    assert client.get("/api/info").json()["indexes"][0]["images"] == 13
    assert client.get("/images/15").status_code == 200
    assert 'cir_jax_index_generation{index="x"} 2.0' in client.get("/metrics").text


def test_names_of_indexes(tmp_path):
    places = [str(tmp_path / "a" / "photos"), str(tmp_path / "b" / "photos"), f"{tmp_path}/c/"]
    assert served.named(places) == ["photos", "photos-2", "c"]
