# SPDX-License-Identifier: Apache-2.0
"""A server that misbehaves on demand, listening on loopback, and the config section of a client."""

import base64
import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from ml_collections import ConfigDict

from cir_jax.generation.captioner import Reply, Request
from cir_jax.generation.captioners import server
from cir_jax.servers import retry

SECTION = {
    "captioner": "server", "model": "tiny", "url": "http://127.0.0.1:1/v1", "prompt": "Describe",
    "words": 6, "max_words": 0, "attempts": 3, "batch": 4, "max_tokens": 0, "temperature": 0.0,
    "top_p": 1.0, "max_side": 0, "device": "cpu", "dtype": "auto", "concurrency": 4,
    "per_minute": 0, "timeout": 20.0, "wait": 60.0, "key_variable": "", "file": "", "unknown": "",
    "duplicates": "",
}  # fmt: skip


def section(**changes):
    """A config section with these keys changed."""
    return ConfigDict(SECTION | changes)


def completion(text, reason="stop"):
    """The body of a good reply."""
    message = {"role": "assistant", "content": text}
    return {"choices": [{"index": 0, "message": message, "finish_reason": reason}]}


def prompt(body):
    """The text of a request's only message."""
    content = body["messages"][0]["content"]
    return content if isinstance(content, str) else content[-1]["text"]


def ask(where, requests=None, **changes):
    """{key: reply} of requests, by default three texts."""
    if requests is None:
        requests = [Request(k, f"about {k}") for k in "abc"]
    url = where if isinstance(where, str) else where.url
    captioner = server.Captioner.from_config(section(url=url, **changes), 0, [])
    return {reply.key: reply for reply in captioner.generate(requests)}


def in_flight_threads():
    """What must be gone after a run."""
    return [t for t in threading.enumerate() if t.name == retry.THREAD or "asyncio" in t.name]


GOOD = {k: Reply(k, f"about {k}") for k in "abc"}


def sent_image(body):
    """(head, bytes) of a request's image."""
    head, _, data = body["messages"][0]["content"][0]["image_url"]["url"].partition(",")
    return head, base64.b64decode(data)


class Scripted:
    """Answers POST with `behave(number of the request, its body)`.

    That gives (status, body, headers); a dict body is sent as JSON, an iterator piece by piece
    until the client goes (`sent` counts the bytes). None hangs until the client goes or the server
    closes. Without `behave`, a reply repeats the prompt. GET lists `models`.
    """

    def __init__(self, behave=None, port=0, models=("tiny",)):
        self.behave = behave or (lambda number, body: (200, completion(prompt(body)), {}))
        self.models = models
        self.bodies, self.headers = [], []
        self.now = self.most = self.hung_up = self.sent = 0
        self.lock, self.closing = threading.Lock(), threading.Event()
        self.http = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    def __enter__(self):
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.closing.set()
        self.http.shutdown()
        self.http.server_close()

    def until(self, condition):
        """Waits until `condition()`; False after a minute."""
        deadline = time.monotonic() + 60
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.005)
        return bool(condition())

    def _send(self, handler, status, body, headers):
        """Sends a reply; the length of a body of pieces is not known."""
        if isinstance(body, bytes | dict):
            handler.send(status, body, headers)
            return
        handler.close_connection = True
        try:
            handler.send_response(status)
            for name, value in (headers | {"Connection": "close"}).items():
                handler.send_header(name, value)
            handler.end_headers()
            for piece in body:
                if self.closing.is_set():
                    return
                handler.wfile.write(piece)
                self.sent += len(piece)
        except ConnectionError:
            self.hung_up += 1

    def _handler(scripted):
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                with scripted.lock:
                    number = len(scripted.bodies)
                    scripted.bodies.append(json.loads(raw))
                    scripted.headers.append(dict(self.headers))
                    scripted.now += 1
                    scripted.most = max(scripted.most, scripted.now)
                try:
                    answer = scripted.behave(number, scripted.bodies[number])
                finally:
                    with scripted.lock:
                        scripted.now -= 1
                if answer is None:
                    self.hang()
                else:
                    scripted._send(self, *answer)

            def do_GET(self):
                self.send(200, {"data": [{"id": name} for name in scripted.models]}, {})

            def hang(self):
                self.close_connection = True
                self.connection.settimeout(0.02)
                while not scripted.closing.is_set():
                    with contextlib.suppress(TimeoutError):
                        if not self.connection.recv(1):
                            scripted.hung_up += 1
                            return

            def send(self, status, body, headers):
                raw = json.dumps(body).encode() if isinstance(body, dict) else body
                with contextlib.suppress(ConnectionError):  # the client may have gone
                    self.send_response(status)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(raw)))
                    self.end_headers()
                    self.wfile.write(raw)

            def log_message(self, *_):
                pass

        return Handler
