# SPDX-License-Identifier: Apache-2.0
"""The client of a captioning server that fails in every way they do, and a run that is stopped."""

import contextlib
import io
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from PIL import Image

from cir_jax.errors import UserError
from cir_jax.generation.captioner import Reply, Request
from cir_jax.generation.captioners import server
from cir_jax.servers import retry
from tests.generation.scripted import (
    GOOD,
    Scripted,
    ask,
    completion,
    in_flight_threads,
    prompt,
    section,
    sent_image,
)
from tests.generation.tiny_vlm import free_port

REPOSITORY = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("quick")


BAD = {
    "429": (429, b"slow down", {"Retry-After": "0.01"}),
    "500": (500, {"error": {"message": "CUDA error"}}, {}),
    "503": (503, b"loading", {"Retry-After": "Fri, 01 Jan 2021 00:00:00 GMT"}),
    "garbage": (200, b"<html>it works</html>", {}),
    "list": (200, b"[1, 2]", {}),
    "no choices": (200, {"object": "error"}, {}),
    "empty choices": (200, {"choices": []}, {}),
    "hangs": None,
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_bad_answers_are_asked_again(bad):
    def behave(number, body):
        return bad if number < 4 else (200, completion(prompt(body)), {})

    with Scripted(behave) as fake:
        assert ask(fake, timeout=0.5 if bad is None else 20) == GOOD
        assert len(fake.bodies) >= 7


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (BAD["500"], r"500 Internal Server Error \(CUDA error\)"),
        (BAD["429"], r"429 Too Many Requests \(slow down\)"),
        (BAD["garbage"], r"a reply without choices: <html>it works</html>"),
        (None, r"no answer within 0.1 s"),
    ],
)
def test_gives_up(bad, reason, said):
    """Only time without any success counts; the line names who, why and what to do."""
    message = rf"server http://\S+/v1 has given no reply for .* wait=0.3. .*{reason}. What is wri"
    with Scripted(lambda *_: bad) as fake, pytest.raises(UserError, match=message):
        ask(fake, wait=0.3, timeout=0.1)
    assert any("trying again in" in line for line in said)
    assert not in_flight_threads()


def test_asks_for_too_long():
    bad = (429, b"quota", {"Retry-After": "3600"})
    with Scripted(lambda *_: bad) as fake, pytest.raises(UserError, match="asks to wait 3600 s"):
        ask(fake, wait=600)


def test_server_that_comes_up(monkeypatch):
    """Refused connections are waited out; each backoff is told once, and so is the return."""
    port, said, servers = free_port(), [], []

    def say(line):
        said.append(line)
        if not servers:
            servers.append(Scripted(port=port).__enter__())

    monkeypatch.setattr(retry.progress, "say", say)
    keys = [str(i) for i in range(12)]
    try:
        url = f"http://127.0.0.1:{port}/v1"
        replies = ask(url, [Request(k, k) for k in keys], concurrency=12)
    finally:
        servers[0].__exit__()
    assert replies == {k: Reply(k, k) for k in keys}
    assert "connection refused; trying again in" in said[0]
    assert "answers again, after" in said[-1] and len(said) <= 6


def test_one_request_breaks_the_server(tmp_path):
    """An error inside the server, again and again, for one image: a plain one tells them apart."""
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")

    def behave(number, body):
        if prompt(body) == "bad":
            return 500, b"oops", {}
        return 200, completion(prompt(body)), {}

    requests = [Request("bad", "bad", tmp_path / "a.png"), Request("a", "about a")]
    with Scripted(behave) as fake:
        replies = ask(fake, requests)
        plain = next(b for b in fake.bodies if prompt(b) == "Say yes.")
    assert replies["a"] == GOOD["a"]
    assert replies["bad"].final and "failed 5 times while others succeed: 500" in (
        replies["bad"].problem
    )
    assert Image.open(io.BytesIO(sent_image(plain)[1])).size == (224, 224)


def test_concurrency_and_laziness():
    """Never more in flight than asked for, and requests are drawn only as replies are taken."""
    together, drawn, taken = threading.Barrier(3), [], []

    def behave(number, body):
        with contextlib.suppress(threading.BrokenBarrierError):
            together.wait(5)
        return 200, completion(prompt(body)), {}

    def source():
        for i in range(24):
            drawn.append(i)
            assert len(drawn) - len(taken) <= 3
            yield Request(str(i), str(i))

    with Scripted(behave) as fake:
        captioner = server.Captioner.from_config(section(url=fake.url, concurrency=3), 0, [])
        for reply in captioner.generate(source()):
            taken.append(reply.key)
        assert fake.most == 3
    assert sorted(taken, key=int) == [str(i) for i in range(24)]
    assert not together.broken


def test_every_try_waits_its_turn():
    class Turns:
        count = 0

        async def wait(self):
            self.count += 1

    with Scripted(lambda n, b: BAD["500"] if n < 2 else (200, completion("x"), {})) as fake:
        captioner = server.Captioner.from_config(section(url=fake.url, per_minute=9), 0, [])
        captioner._client._rate_limit = Turns()
        assert len(list(captioner.generate([Request(k, k) for k in "abc"]))) == 3
        assert captioner._client._rate_limit.count == len(fake.bodies) == 5


def test_close_takes_back_what_is_in_flight():
    def behave(number, body):
        return (200, completion("x"), {}) if prompt(body) == "0" else None

    with Scripted(behave) as fake:
        captioner = server.Captioner.from_config(section(url=fake.url, concurrency=3), 0, [])
        replies = captioner.generate(Request(str(i), str(i)) for i in range(50))
        assert next(replies) == Reply("0", "x")
        assert fake.until(lambda: len(fake.bodies) >= 3)
        replies.close()
        assert not in_flight_threads()
        assert fake.until(lambda: fake.hung_up == len(fake.bodies) - 1)


def test_error_of_the_caller():
    """The source of requests may fail too."""

    def source():
        yield Request("a", "about a")
        raise OSError("disk full")

    with Scripted(lambda *_: None) as fake:
        captioner = server.Captioner.from_config(section(url=fake.url), 0, [])
        with pytest.raises(OSError, match="disk full"):
            list(captioner.generate(source()))
        assert not in_flight_threads()


def test_ctrl_c():
    """A run that hangs on a silent server ends at once, its requests taken back."""
    code = (
        "import signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # background jobs ignore it
        "from tests.generation.scripted import section\n"
        "from cir_jax.generation.captioners import server\n"
        "from cir_jax.generation.captioner import Request\n"
        "captioner = server.Captioner.from_config(section(url=sys.argv[1], timeout=3600.), 0, [])\n"
        "list(captioner.generate(Request(str(i), 'x') for i in range(9)))\n"
    )
    with Scripted(lambda *_: None) as fake:
        command = [sys.executable, "-c", code, fake.url]
        child = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE)
        try:
            assert fake.until(lambda: len(fake.bodies) == 4 or child.poll() is not None)
            child.send_signal(signal.SIGINT)
            _, errors = child.communicate(timeout=60)
        finally:
            child.kill()
        assert errors.decode().strip().endswith("KeyboardInterrupt")
        assert child.returncode == -signal.SIGINT
        assert fake.until(lambda: fake.hung_up == 4)
