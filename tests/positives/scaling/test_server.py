# SPDX-License-Identifier: Apache-2.0
"""The client of a captioning server, against servers that fail in every way they do in practice."""

import base64
import contextlib
import io
import signal
import subprocess
import sys
import threading

import pytest
from PIL import Image

from cir_jax.errors import UserError
from cir_jax.positives.scaling.captioners import contract, inputs, patience, server
from cir_jax.positives.scaling.captioners.contract import Reply, Request
from tests.positives.scaling.scripted import Scripted, completion, prompt, section
from tests.positives.scaling.tiny_vlm import free_port


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Backoff in hundredths of a second."""
    monkeypatch.setattr(patience, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(patience, "LONGEST_DELAY", 0.05)
    monkeypatch.setattr(patience, "OUTAGE", 0.02)


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr(patience.progress, "say", lambda *m: lines.append(" ".join(map(str, m))))
    return lines


def ask(where, requests=None, **changes):
    """{key: reply} of requests, by default three texts."""
    if requests is None:
        requests = [Request(k, f"about {k}") for k in "abc"]
    url = where if isinstance(where, str) else where.url
    captioner = server.Captioner.from_config(section(url=url, **changes), 0, [])
    return {reply.key: reply for reply in captioner.generate(requests)}


def threads():
    return [t for t in threading.enumerate() if t.name == "in flight" or "asyncio" in t.name]


GOOD = {k: Reply(k, f"about {k}") for k in "abc"}


def test_plug_in():
    assert contract.load("server") is server
    captioner = server.Captioner.from_config(section(temperature=0.5), 3, ["a.png"])
    assert captioner.identity == {
        "captioner": "server", "model": "tiny", "temperature": 0.5, "top_p": 1.0,
    }  # fmt: skip


def test_replies():
    with Scripted() as fake:
        assert ask(fake) == GOOD
        assert ask(fake.url.removesuffix("/v1") + "/") == GOOD
        body = fake.bodies[0]
    assert body["max_tokens"] == 4 * 4 * 6 + 16 and body["temperature"] == 0
    assert body["model"] == "tiny" and "top_p" not in body
    assert isinstance(body["messages"][0]["content"], str)
    assert inputs.token_limit(section(max_words=10)) == 56
    assert inputs.token_limit(section(max_tokens=7)) == 7


def test_sampling():
    """A repetition is drawn, from a seed of the request alone; another run draws the same."""
    requests = [Request("a", "x", attempt=i) for i in range(2)] + [Request("b", "x", attempt=1)]
    with Scripted() as fake:
        for _ in range(2):
            ask(fake, requests, concurrency=1, top_p=0.9)
        drawn = [(b["seed"], b["temperature"], b.get("top_p")) for b in fake.bodies]
    assert drawn[:3] == drawn[3:] and len({seed for seed, *_ in drawn}) == 3
    assert [rest for _, *rest in drawn[:3]] == [[0.0, None], [0.7, 0.9], [0.7, 0.9]]


def sent_image(body):
    head, _, data = body["messages"][0]["content"][0]["image_url"]["url"].partition(",")
    return head, base64.b64decode(data)


def test_images(tmp_path):
    """Own bytes where they fit; otherwise RGB within max_side."""
    files = {}
    for name, mode, size in (
        ("fits.png", "RGB", (40, 30)), ("fits.jpg", "RGB", (40, 30)), ("wide.jpg", "RGB", (90, 30)),
        ("clear.png", "RGBA", (40, 30)), ("moving.gif", "P", (40, 30)),
    ):  # fmt: skip
        files[name] = tmp_path / name
        Image.new(mode, size, 5).save(files[name])
    requests = [Request(n, n, p) for n, p in files.items()]
    requests[0] = Request("fits.png", "fits.png", str(files["fits.png"]))
    with Scripted() as fake:
        assert len(ask(fake, requests, max_side=60)) == 5
        sent = {prompt(b): sent_image(b) for b in fake.bodies}
    assert sent["fits.png"] == ("data:image/png;base64", files["fits.png"].read_bytes())
    assert sent["fits.jpg"] == ("data:image/jpeg;base64", files["fits.jpg"].read_bytes())
    shown = {n: Image.open(io.BytesIO(content)) for n, (_, content) in sent.items()}
    assert shown["wide.jpg"].size == (60, 20) and shown["wide.jpg"].format == "JPEG"
    for name in ("clear.png", "moving.gif"):
        assert (shown[name].format, shown[name].mode) == ("PNG", "RGB")
        assert sent[name][0] == "data:image/png;base64"


def test_unreadable_image(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    requests = [Request(n, n, tmp_path / n) for n in ("broken.png", "missing.png")]
    with Scripted() as fake:
        replies = ask(fake, [*requests, Request("c", "about c")])
        assert len(fake.bodies) == 1
    assert replies["c"] == GOOD["c"]
    assert replies["broken.png"].final and "cannot be decoded" in replies["broken.png"].problem
    assert replies["missing.png"].final and "does not exist" in replies["missing.png"].problem


@pytest.mark.parametrize(
    ("body", "text", "problem"),
    [
        (completion(" a dress\n"), "a dress", ""),
        (completion("a dress with", "length"), "", "cut at 5 tokens"),
        (completion(None), "", ""),
        (completion("a", "content_filter"), "", "withheld by the server's content filter"),
    ],
)
def test_endings(body, text, problem):
    with Scripted(lambda *_: (200, body, {})) as fake:
        replies = ask(fake, max_tokens=5)
    assert replies == {k: Reply(k, text, problem) for k in "abc"}


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
        assert ask(fake, timeout=0.2 if bad is None else 20) == GOOD
        assert len(fake.bodies) == 7


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
    assert not threads()


def test_asks_for_too_long():
    bad = (429, b"quota", {"Retry-After": "3600"})
    with Scripted(lambda *_: bad) as fake, pytest.raises(UserError, match="asks to wait 3600 s"):
        ask(fake, wait=600)


def test_server_that_comes_up(said):
    """Refused connections are waited out; each backoff is told once, and so is the return."""
    port = free_port()
    servers = []

    def start():
        servers.append(Scripted(port=port).__enter__())

    late = threading.Timer(0.4, start)
    late.start()
    try:
        keys = [str(i) for i in range(12)]
        url = f"http://127.0.0.1:{port}/v1"
        replies = ask(url, [Request(k, k) for k in keys], concurrency=12)
    finally:
        late.join()
        servers[0].__exit__()
    assert replies == {k: Reply(k, k) for k in keys}
    assert any("connection refused; trying again in" in line for line in said)
    assert "answers again, after" in said[-1] and len(said) <= 6


@pytest.mark.parametrize(
    ("status", "said_by_server", "changes", "message"),
    [
        (401, "wrong key s3cret", {}, r"401 .*wrong key \*\*\*.*variable THE_KEY .* is not accept"),
        (401, "who?", {"key_variable": "NO_KEY"}, r"variable NO_KEY \(key_variable\) is not set"),
        (403, "no", {"key_variable": ""}, r"403 .*name the environment variable .* key_variable"),
        (404, "no such model", {"model": "tinny"}, r"404 .*offers: tiny, large. Did you mean 'tin"),
        (301, "", {}, r"301 .*correct url"),
    ],
)
def test_no_request_can_succeed(status, said_by_server, changes, message, monkeypatch):
    monkeypatch.setenv("THE_KEY", "s3cret")
    changes = {"key_variable": "THE_KEY"} | changes
    answer = (status, {"error": {"message": said_by_server + "x" * 500}}, {})
    with Scripted(lambda *_: answer, models=("tiny", "large")) as fake:
        with pytest.raises(UserError, match=message) as raised:
            ask(fake, concurrency=1, **changes)
        assert len(fake.bodies) == 1
        bearer = fake.headers[0].get("Authorization")
    assert bearer == ("Bearer s3cret" if changes["key_variable"] == "THE_KEY" else None)
    assert "s3cret" not in str(raised.value) and len(str(raised.value)) < 700


def test_not_found_without_a_list():
    with Scripted(lambda *_: (404, b"", {}), models=()) as fake:
        with pytest.raises(UserError, match="correct url, which usually ends in /v1, or model="):
            ask(fake)


def test_one_request_is_refused():
    """Too large for the server: listed, and the others go on."""

    def behave(number, body):
        if prompt(body) == "about c":
            return 413, b"at most 1 MB", {}
        return 200, completion(prompt(body)), {}

    with Scripted(behave) as fake:
        replies = ask(fake, concurrency=1)
    problem = "refused by the server: 413 Request Entity Too Large (at most 1 MB)"
    assert replies.pop("c") in (
        Reply("c", "", problem, final=True),
        Reply("c", "", problem.replace("Request Entity", "Content"), final=True),
    )
    assert replies == {k: GOOD[k] for k in "ab"}


def test_every_request_is_refused():
    answer = (400, {"detail": "pinned to 'other'"}, {})
    with Scripted(lambda *_: answer) as fake:
        with pytest.raises(UserError, match=r"none of the first 3 .*pinned to 'other'.*model='tin"):
            ask(fake, [Request(str(i), "x") for i in range(9)])


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

        async def turn(self):
            self.count += 1

    with Scripted(lambda n, b: BAD["500"] if n < 2 else (200, completion("x"), {})) as fake:
        captioner = server.Captioner.from_config(section(url=fake.url, per_minute=9), 0, [])
        captioner._pace = Turns()
        assert len(list(captioner.generate([Request(k, k) for k in "abc"]))) == 3
        assert captioner._pace.count == len(fake.bodies) == 5


def test_close_takes_back_what_is_in_flight():
    def behave(number, body):
        return (200, completion("x"), {}) if prompt(body) == "0" else None

    with Scripted(behave) as fake:
        captioner = server.Captioner.from_config(section(url=fake.url, concurrency=3), 0, [])
        replies = captioner.generate(Request(str(i), str(i)) for i in range(50))
        assert next(replies) == Reply("0", "x")
        assert fake.until(lambda: len(fake.bodies) >= 3)
        replies.close()
        assert not threads()
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
        assert not threads()


def test_ctrl_c():
    """A run that hangs on a silent server ends at once, its requests taken back."""
    code = (
        "import sys\n"
        "from tests.positives.scaling.scripted import section\n"
        "from cir_jax.positives.scaling.captioners import server\n"
        "from cir_jax.positives.scaling.captioners.contract import Request\n"
        "captioner = server.Captioner.from_config(section(url=sys.argv[1], timeout=3600.), 0, [])\n"
        "list(captioner.generate(Request(str(i), 'x') for i in range(9)))\n"
    )
    with Scripted(lambda *_: None) as fake:
        child = subprocess.Popen([sys.executable, "-c", code, fake.url], stderr=subprocess.PIPE)
        try:
            assert fake.until(lambda: len(fake.bodies) == 4 or child.poll() is not None)
            child.send_signal(signal.SIGINT)
            _, errors = child.communicate(timeout=60)
        finally:
            child.kill()
        assert errors.decode().strip().endswith("KeyboardInterrupt")
        assert child.returncode == -signal.SIGINT
        assert fake.until(lambda: fake.hung_up == 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": ""}, "model is empty"),
        ({"url": ""}, "url='' is no address"),
        ({"url": "localhost:8000/v1"}, "is no address of a server; give one like http://"),
        ({"url": "http://host:port"}, "is no address"),
        ({"url": "http://host/v1/chat/completions/"}, "must end before /chat/completions"),
        ({"url": "http://me:pw@host/v1"}, "url on host holds a user name or password"),
        ({"concurrency": 0}, "concurrency=0 is below 1"),
        ({"per_minute": -1}, "per_minute=-1 is below 0"),
        ({"timeout": 0.0}, "timeout=0.0 is no time"),
        ({"wait": -1.0}, "wait=-1.0 is below 0"),
        ({"temperature": -1.0}, "temperature=-1.0 is below 0"),
        ({"max_tokens": -1}, "max_tokens=-1 is below 0"),
        ({"max_side": -1}, "max_side=-1 is below 0"),
        ({"top_p": 0.0}, "top_p=0.0 is outside"),
        ({"words": -9}, "words=-9 leaves no token"),
        ({"key_variable": "ODD_KEY"}, "variable ODD_KEY .* holds characters"),
    ],
)
def test_config_errors(changes, message, monkeypatch):
    monkeypatch.setenv("ODD_KEY", "a\nb")
    with pytest.raises(UserError, match=message) as raised:
        server.Captioner.from_config(section(**changes), 0, [])
    assert "pw" not in str(raised.value)
