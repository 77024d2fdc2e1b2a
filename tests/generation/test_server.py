# SPDX-License-Identifier: Apache-2.0
"""The client of a captioning server that works: what it asks, what it makes of replies."""

import functools
import gzip
import io
import json
import sys
import time
import zlib

import pytest
from PIL import Image

from cir_jax import progress
from cir_jax.errors import UserError
from cir_jax.generation import caption_inputs
from cir_jax.generation import captioner as contract
from cir_jax.generation.captioner import Reply, Request
from cir_jax.generation.captioners import server
from cir_jax.servers import client
from tests.generation.scripted import GOOD, Scripted, ask, completion, prompt, section, sent_image

pytestmark = pytest.mark.usefixtures("quick")


def test_plug_in():
    assert contract.load("server") is server
    captioner = server.Captioner.from_config(section(temperature=0.5), 3, ["a.png"])
    assert captioner.identity == {
        "captioner": "server", "model": "tiny", "temperature": 0.5, "top_p": 1.0,
        "max_side": 0,
    }  # fmt: skip


def test_replies():
    with Scripted() as fake:
        assert ask(fake) == GOOD
        assert ask(fake.url.removesuffix("/v1") + "/") == GOOD
        body = fake.bodies[0]
    assert body["max_tokens"] == 4 * 4 * 6 + 16 and body["temperature"] == 0
    assert body["model"] == "tiny" and "top_p" not in body
    assert isinstance(body["messages"][0]["content"], str)
    assert caption_inputs.token_limit(section(max_words=10)) == 56
    assert caption_inputs.token_limit(section(max_tokens=7)) == 7


def test_sampling():
    """A repetition is drawn, from a seed of the request alone; another run draws the same."""
    requests = [Request("a", "x", attempt=i) for i in range(2)] + [Request("b", "x", attempt=1)]
    with Scripted() as fake:
        for _ in range(2):
            ask(fake, requests, concurrency=1, top_p=0.9)
        drawn = [(b["seed"], b["temperature"], b.get("top_p")) for b in fake.bodies]
    assert drawn[:3] == drawn[3:] and len({seed for seed, *_ in drawn}) == 3
    assert [rest for _, *rest in drawn[:3]] == [[0.0, None], [0.7, 0.9], [0.7, 0.9]]


def test_without_the_http_client(monkeypatch):
    """Found with the config, before anything is asked, and only by who asks for a server."""
    for library in ("httpx2", "anyio"):
        with monkeypatch.context() as missing:
            missing.setitem(sys.modules, library, None)
            with pytest.raises(UserError, match=rf"caption.captioner=server needs {library}.*"
                               r"pip install 'cir_jax\[caption\]'"):  # fmt: skip
                contract.check(section(), "caption")


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
        (completion("a dress with", "length"), "a dress with", "cut at 5 tokens"),
        (completion(None), "", ""),
        (completion("a", "content_filter"), "", "withheld by the server's content filter"),
    ],
)
def test_endings(body, text, problem):
    with Scripted(lambda *_: (200, body, {})) as fake:
        replies = ask(fake, max_tokens=5)
    assert replies == {k: Reply(k, text, problem) for k in "abc"}


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


@functools.cache
def bomb(packing):
    """A few bytes that unpack to 32 MiB of JSON."""
    unpacked = b'{"choices": "' + b"a" * (32 << 20) + b'"}'
    return gzip.compress(unpacked, 1) if packing == "gzip" else zlib.compress(unpacked, 1)


@pytest.mark.parametrize("packing", ["gzip", "deflate"])
def test_packed_replies(packing):
    """Some proxies pack whatever they pass on."""
    pack = gzip.compress if packing == "gzip" else zlib.compress
    head = {"Content-Encoding": packing}
    body = pack(json.dumps(completion("a dress")).encode())
    with Scripted(lambda *_: (200, body, head)) as fake:
        assert ask(fake) == {k: Reply(k, "a dress") for k in "abc"}
        assert fake.headers[0]["Accept-Encoding"] == "identity"
    with Scripted(lambda number, _: (200, body if number else b"no such packing", head)) as fake:
        assert ask(fake, [Request("a", "x")]) == {"a": Reply("a", "a dress")}  # it is asked again


def endless():
    while True:
        yield b"a" * (1 << 16)


TOO_LONG = {
    "plain": (endless, {}, r"has over 4,194,304 bytes"),
    "gzip": (lambda: iter([bomb("gzip")]), {"Content-Encoding": "gzip"}, r"has over 4,194,304 by"),
    "deflate": (lambda: iter([bomb("deflate")]), {"Content-Encoding": "deflate"}, r"has over 4,19"),
    "br": (lambda: iter([b"x" * 99]), {"Content-Encoding": "br"}, r"packed by 'br', which was not"),
    "unknown": (endless, {"Content-Encoding": "gzip, gzip"}, r"packed by 'gzip, gzip'"),
}


class Counting:
    """zlib, and how much it unpacked at a time."""

    MAX_WBITS, error = zlib.MAX_WBITS, zlib.error

    def __init__(self):
        self.pieces = []

    def decompressobj(self, bits):
        self._unpacker = zlib.decompressobj(bits)
        return self

    def decompress(self, *arguments):
        piece = self._unpacker.decompress(*arguments)
        self.pieces.append(len(piece))
        return piece


@pytest.mark.parametrize(
    ("kind", "status"), [*((kind, 200) for kind in TOO_LONG), ("plain", 400), ("br", 400)]
)
def test_replies_are_read_to_a_limit(kind, status, monkeypatch):
    """No more is read or unpacked than the limit and what is on its way; then the client goes."""
    body, head, message = TOO_LONG[kind]
    unpacked = Counting()
    monkeypatch.setattr(client, "zlib", unpacked)
    with Scripted(lambda *_: (status, body(), head)) as fake:
        refusal = message if status == 200 else "refused by the server: 400"
        with pytest.raises(UserError, match=rf"served none of the first 3 requests, .*{refusal}"):
            ask(fake, [Request(str(i), "x") for i in range(3)], concurrency=1)
        sent = fake.sent
    assert len(fake.bodies) == 3 and sent < 3 * (16 << 20)
    assert sum(unpacked.pieces) <= 3 * (server.LONGEST_REPLY + 1)
    assert bool(unpacked.pieces) == (kind in ("gzip", "deflate"))


def test_no_redirect_is_followed(monkeypatch):
    monkeypatch.setenv("THE_KEY", "s3cret")
    with Scripted() as other:
        for status in (301, 302, 307, 308):
            for place in (f"{other.url}/chat/completions", "file:///etc/passwd", "//other/v1", ""):
                answer = (status, b"", {"Location": place} if place else {})
                with Scripted(lambda *_, answer=answer: answer) as fake:
                    message = rf"answered {status} .*leads to '{place or 'nowhere'}', and no redir"
                    with pytest.raises(UserError, match=message):
                        ask(fake, concurrency=1, key_variable="THE_KEY")
                    assert len(fake.bodies) == 1
        assert not other.bodies


def drip():
    while True:
        time.sleep(0.02)
        yield b" "


def test_a_reply_that_drips_is_late():
    """The time-out is for the whole reply, not for a piece of it."""
    with Scripted(lambda *_: (200, drip(), {})) as fake:
        with pytest.raises(UserError, match=r"no answer within 0.2 s"):
            ask(fake, [Request("a", "x")], timeout=0.2, wait=0.3)
        assert fake.until(lambda: fake.hung_up == len(fake.bodies))


@pytest.mark.parametrize(
    "body",
    [b"[" * 100_000, b"{" * 10, b'{"choices": []}', b'{"choices": [{"message": 3}]}', b"\xff\xfe",
     b'{"choices": [{"message": {"content": [1]}}]}', b"1" * 5000, b""],
    ids=str,
)  # fmt: skip
def test_replies_that_are_none(body):
    with Scripted(lambda *_: (200, body, {})) as fake:
        with pytest.raises(UserError, match=r"a reply without choices"):
            ask(fake, [Request("a", "x")], wait=0.02)


def test_odd_characters_of_a_reply_are_shown_escaped(capsys):
    answer = (403, {"error": "\x1b[31mno\u202e"}, {})
    with Scripted(lambda *_: answer) as fake:
        with pytest.raises(UserError) as raised:
            ask(fake, concurrency=1)
    progress.show(raised.value)
    assert "\\x1b[31mno\\u202e" in capsys.readouterr().out
