# SPDX-License-Identifier: Apache-2.0
"""Who is let in, how much they may send, and what is written of it."""

import io
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from urllib.parse import urlsplit

import pytest
from starlette.testclient import TestClient

from cir_jax.serving import app
from cir_jax.serving.guard import Rates
from cir_jax.serving.refusals import Refusal
from cir_jax.serving.settings import Settings
from tests.serving import made
from tests.serving.conftest import listening, picture, problem, url

TOKEN = "a-token-of-some-length"
ASK = {"text": "a secret wish"}


@pytest.mark.parametrize("host", ["localhost", "localhost:9", "[::1]:9", "127.9.9.9"])
def test_names_of_this_machine(client, host):
    assert client.get("/healthz", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example:9", "192.168.1.5", "", "localhost@evil", "::1"]
)
def test_another_name_points_here(client, host):
    error = problem(client.get("/api/info", headers={"Host": host}), 403)
    assert error["code"] == "unknown_host"


def test_where_others_may_connect_addresses_and_given_names_are_right(start):
    client = start(host="0.0.0.0", token=TOKEN, names=("photos.lan",))
    for host, status in (("photos.lan:1", 200), ("192.168.1.5:1", 200), ("evil.example", 403)):
        assert client.get("/healthz", headers={"Host": host}).status_code == status


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:1", "x"])
def test_pages_of_others_may_not_ask(client, origin):
    response = client.post("/search", json=ASK, headers={"Origin": origin})
    assert problem(response, 403)["code"] == "other_origin"
    early = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    response = client.options("/search", headers=early)
    assert response.status_code == 403
    assert not [name for name in response.headers if name.startswith("access-control")]


def test_the_page_itself_may(client):
    response = client.post("/search", json=ASK, headers={"Origin": "http://localhost"})
    assert response.status_code == 200


def test_a_token_is_wanted_for_all_but_the_page_and_is_never_written(start, capfd):
    client = start(token=TOKEN)
    assert client.get("/healthz").status_code == 200
    right = {"Authorization": f"Bearer {TOKEN}"}
    for path in ("/api/info", "/images/3", "/metrics", "/openapi.json", "/v1/models", "/mcp"):
        response = client.get(path)
        assert problem(response, 401)["code"] == "no_token", path
        assert response.headers["www-authenticate"] == "Bearer"
    wrong = (
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        "Bearer",
        f"Basic {TOKEN}",
        TOKEN,
        "Bearer é",
    )
    for shown in wrong:
        headers = {"Authorization": shown.encode()}
        problem(client.get("/api/info", headers=headers), 401)
    problem(client.get(f"/api/info?token={TOKEN}"), 401)
    assert client.get("/api/info", headers=right).status_code == 200
    assert client.post("/search", json=ASK, headers=right).status_code == 200
    written = "".join(client.lines) + "".join(capfd.readouterr())
    assert TOKEN not in written and "secret" not in written
    assert TOKEN not in repr(client.app.state.server.settings)


def test_headers_that_a_browser_heeds(client):
    for response in (client.get("/healthz"), client.get("/nothing"), client.get("/images/3")):
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "no-referrer"
        assert "default-src 'self'" in response.headers["content-security-policy"]
        assert "set-cookie" not in response.headers
    assert client.post("/search", json=ASK).headers["cache-control"] == "no-store"


def test_a_line_for_each_request(client):
    client.post("/search", json=ASK)
    client.get("/images/3?size=64")
    client.get("/a/secret/address")
    lines = [json.loads(line) for line in client.lines]
    assert [(line["route"], line["status"]) for line in lines] == [
        ("/search", 200), ("/images/{id}", 200), ("none", 404)
    ]  # fmt: skip
    assert "secret" not in "".join(client.lines)
    assert {"time", "client", "method", "milliseconds", "bytes"} < set(lines[0])


def test_bodies_over_the_limit(start):
    client = start(body_bytes=10_000, upload_bytes=5_000)
    response = client.post("/api/uploads", files={"image": ("a.png", bytes(50_000))})
    assert problem(response, 413)["code"] == "too_large"
    error = problem(client.post("/search", content=iter([b"x" * 6_000] * 2)), 413)  # says no length
    assert "10,000" in error["message"]
    error = problem(client.post("/api/uploads", files={"image": ("a.png", bytes(6_000))}), 413)
    assert "5,000" in error["message"]
    error = problem(client.post("/search", json={"images": [{"data": url(bytes(6_000))}]}), 413)
    assert error["param"] == "images.0"


def test_fifty_megabytes_by_default(client):
    response = client.post("/api/uploads", files={"image": ("a.png", bytes(50_000_000))})
    problem(response, 413)


def _bomb():
    """A PNG whose header says 40,000 x 40,000 pixels, in some hundred bytes."""
    import struct
    import zlib

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    head = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'


@pytest.mark.parametrize(
    ("content", "status", "word"),
    [
        (_bomb(), 413, "1600000000 pixels"),
        (SVG, 400, "SVG"),
        (b"", 400, "empty"),
        (b"GIF89a", 400, "GIF"),
        (b"%PDF-1.7", 400, "PDF"),
        (b"%!PS-Adobe", 400, "PostScript"),
        (b"PK\x03\x04", 400, "zip"),
        (b"<html></html>", 400, "HTML"),
        (picture()[:60], 400, "decoded"),
        (b"\0" * 1000, 400, "decoded"),
    ],
)
def test_files_that_are_no_picture(client, content, status, word):
    error = problem(client.post("/api/uploads", files={"image": ("a.png", content)}), status)
    assert word in error["message"], error["message"]
    sent = {"images": [{"data": url(content)}]} if content else None
    if sent:
        assert word in problem(client.post("/search", json=sent), status)["message"]


def test_pixels_have_a_limit_of_this_server(start):
    client = start(pixels=1000)
    error = problem(client.post("/api/uploads", files={"image": ("a.png", picture())}), 413)
    assert "1,000" in error["message"]


def test_of_an_animation_the_first_picture_is_taken(client):
    from PIL import Image

    out = io.BytesIO()
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue")]
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    found = client.post("/search", json={"images": [{"data": url(out.getvalue(), "image/gif")}]})
    assert found.json()["results"][0]["fields"]["colour"] == "red"
    upload = client.post("/api/uploads", files={"image": ("a.gif", out.getvalue())}).json()
    assert client.get(f"/api/uploads/{upload['upload']}").headers["content-type"] == "image/webp"


def test_uploads_are_forgotten_when_there_is_no_room(start):
    one, two = picture("red", (300, 300), "BMP"), picture("blue", (300, 300), "BMP")
    client = start(kept_bytes=len(one) + 10)
    first = client.post("/api/uploads", files={"image": ("a.bmp", one)}).json()["upload"]
    assert client.get(f"/api/uploads/{first}").status_code == 200
    client.post("/api/uploads", files={"image": ("b.bmp", two)})
    problem(client.get(f"/api/uploads/{first}"), 404)


def test_a_client_that_comes_too_often(start):
    client = start(rate=1)
    statuses = [client.post("/search", json=ASK) for _ in range(4)]
    assert [response.status_code for response in statuses[:2]] == [200, 200]
    assert problem(statuses[3], 429)["type"] == "rate_limit_error"
    assert int(statuses[3].headers["retry-after"]) >= 1
    assert client.get("/images/3").status_code == 200  # pictures are not counted


def test_rates_fill_up_with_time_and_are_of_each_client():
    now = [0.0]
    rates = Rates(2, clock=lambda: now[0])
    for _ in range(4):
        rates.count("a")
    with pytest.raises(Refusal) as refused:
        rates.count("a")
    assert refused.value.status_code == 429
    rates.count("b")
    now[0] = 0.5
    rates.count("a")
    with pytest.raises(Refusal):
        rates.count("a")
    now[0] = 100
    for _ in range(4):
        rates.count("a")
    with pytest.raises(Refusal):
        rates.count("a")


def test_metrics(client):
    client.post("/search", json=ASK)
    client.post("/search", json={})
    text = client.get("/metrics").text
    assert 'cir_jax_requests_total{route="/search",status="200"} 1.0' in text
    assert 'cir_jax_requests_total{route="/search",status="400"} 1.0' in text
    assert 'cir_jax_index_generation{index="photos"} 1.0' in text
    assert 'cir_jax_seconds_count{part="encode"} 1.0' in text
    assert "cir_jax_batch_size_sum 1.0" in text and "cir_jax_queue_length 0.0" in text


def test_a_defect_of_ours_is_told_without_its_words(start, index, monkeypatch, capfd):
    def broken(queries, k, exact=True):
        raise RuntimeError("a secret of the server")

    monkeypatch.setattr(index.store, "top", broken)
    response = start().post("/search", json=ASK)
    assert problem(response, 500)["type"] == "server_error" and "secret" not in response.text
    assert "a secret of the server" in capfd.readouterr().err


def test_it_is_ready_only_after_it_has_warmed_up(index):
    warmed = []
    made_app = app.make({"x": index}, Settings(), warm=warmed.append, log=lambda line: None)
    cold = TestClient(made_app, "http://localhost")
    problem(cold.get("/healthz"), 503)
    response = cold.post("/search", json=ASK)
    assert problem(response, 503)["code"] == "starting" and response.headers["retry-after"]
    assert not warmed
    with cold:
        assert cold.get("/healthz").status_code == 200 and warmed == [index]


def test_a_client_that_sends_too_much_is_told_and_not_cut_off(index):
    """Over a connection: one that is closed while the client sends would be a reset to it."""
    settings = Settings(rate=0, port=0, body_bytes=4 << 20)
    made_app = app.make({"photos": index}, settings, log=lambda line: None)
    with listening(made_app, settings) as url:
        for length in (True, False):
            head = {"Content-Type": "application/json"}
            data = bytes(15 << 20) if length else iter([bytes(1 << 20)] * 15)  # without: in chunks
            request = urllib.request.Request(f"{url}search", data, head)
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(request, timeout=60)
            assert refused.value.code == 413


def test_a_connection_that_is_closed_frees_its_place_while_the_device_works(tmp_path, monkeypatch):
    index, busy, free = made.Index(tmp_path), threading.Event(), threading.Event()
    top = index.store.top

    def held(*given):
        busy.set()
        assert free.wait(60)
        return top(*given)

    monkeypatch.setattr(index.store, "top", held)
    settings, lines = Settings(port=0, queue=1), []
    made_app = app.make({"photos": index}, settings, log=lines.append)
    load = made_app.state.server.load
    with listening(made_app, settings) as url:
        host, port = urlsplit(url).hostname, urlsplit(url).port
        body = json.dumps(ASK).encode()
        head = f"POST /search HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        with socket.create_connection((host, port)) as gone:
            gone.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            assert busy.wait(60) and load.count == 1
        while load.count:
            time.sleep(0.01)
        free.set()
        request = urllib.request.Request(f"{url}search", body, {"Content-Type": "application/json"})
        assert urllib.request.urlopen(request, timeout=60).status == 200
    assert [json.loads(line)["status"] for line in lines] == [499, 200]
