# SPDX-License-Identifier: Apache-2.0
"""The client against `transformers serve` with a tiny LLaVA: a real process that really dies."""

import threading

import pytest

from cir_jax.errors import UserError
from cir_jax.generation.captioner import Request
from cir_jax.generation.captioners import local, server
from cir_jax.servers import retry
from tests import runs
from tests.generation import tiny_vlm
from tests.generation.scripted import section


@pytest.fixture(scope="module")
def requests(tmp_path_factory):
    """24 images, the last two of which are no images, and a text."""
    root = tmp_path_factory.mktemp("images")
    for i, color in enumerate([*runs.COLORS.values()] * 6):
        runs.write_image(root / f"{i}.png", color, seed=i, size=(30 + i, 40))
    (root / "22.png").write_bytes(b"")
    (root / "23.png").write_bytes(b"GIF89a, not")
    asked = [Request(f"{i}.png", "Describe the dress", root / f"{i}.png") for i in range(24)]
    return [*asked, Request("text", "Say what changes")]


@pytest.fixture(scope="module")
def process(vlm):
    with tiny_vlm.serve(vlm) as running:
        yield running


@pytest.fixture(scope="module")
def expected(vlm, requests):
    """What the same model says in this process."""
    captioner = local.Captioner.from_config(section(captioner="local", model=vlm), 0, ["0.png"])
    return plain(list(captioner.generate(requests)))


def plain(replies):
    """{key: (text, final)}, for each key once."""
    found = {r.key: (r.text, r.final) for r in replies}
    assert len(found) == len(replies)
    return found


def captioner(process, **changes):
    changes = {"model": process.folder, "url": process.url} | changes
    return server.Captioner.from_config(section(**changes), 0, ["0.png"])


def test_says_what_the_same_model_says_here(process, requests, expected):
    """The server gets the same pixels and the same prompt, and its replies come back by key."""
    replies = list(captioner(process).generate(requests))
    assert plain(replies) == expected
    texts = [r.text for r in replies if not r.problem]
    assert len(texts) == 23 and len(set(texts)) > 6 and all(texts)
    assert sorted(r.key for r in replies if r.final) == ["22.png", "23.png"]


def test_limits_and_draws(process, requests):
    cut = list(captioner(process, max_tokens=2).generate(requests[:3]))
    assert [r.problem for r in cut] == ["cut at 2 tokens"] * 3
    again = [Request(r.key, r.prompt, r.image, attempt=1) for r in requests[:6]]
    # This server seeds one generator for all requests, so only one at a time is repeatable.
    drawn = [list(captioner(process, concurrency=1).generate(a)) for a in (again, again)]
    assert drawn[0] == drawn[1] and all(r.text for r in drawn[0])


def test_wrong_model_and_path(process, requests):
    with pytest.raises(UserError, match=r"none of the first 3 .*400 .*pinned to .*model='other'"):
        list(captioner(process, model="other").generate(requests))
    with pytest.raises(UserError, match=r"answered 404 .*correct url, which usually ends in /v1"):
        list(captioner(process, url=process.url + "/v2").generate(requests))


def test_killed_in_the_middle(process, requests, expected, monkeypatch):
    """SIGKILL with requests in flight; started again on its port only once the client has said
    that it waits. Every reply comes, once, and is what it would have been."""
    said, waits = [], threading.Event()

    def say(line):
        said.append(line)
        if "trying again" in line and not waits.is_set():
            waits.set()
            process.start()

    monkeypatch.setattr(retry.progress, "say", say)
    monkeypatch.setattr(retry, "FIRST_DELAY", 0.2)
    monkeypatch.setattr(retry, "LONGEST_DELAY", 1.0)
    monkeypatch.setattr(retry, "OUTAGE", 0.5)
    replies = []
    for reply in captioner(process, concurrency=3, wait=tiny_vlm.START_SECONDS).generate(requests):
        replies.append(reply)
        if len(replies) == 7:
            process.kill()
    assert waits.is_set()
    assert plain(replies) == expected
    assert any("connection refused; trying again in" in line for line in said)
    assert "answers again, after" in said[-1]


def test_stays_away(process, requests):
    """The last test of this module: the server is not started again."""
    message = r"given no reply for .*connection refused. What is written is kept"
    with pytest.raises(UserError, match=message):
        for _ in captioner(process, concurrency=3, wait=1.5).generate(requests):
            process.kill()
    assert not [t for t in threading.enumerate() if t.name == retry.THREAD]
