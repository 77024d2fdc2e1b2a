# SPDX-License-Identifier: Apache-2.0
"""What is asked of every request before it is let in, and noted when it has left.

In this order: its Host and Origin are this server's, it shows the token, it does not come too
often, there is room for it, and its body is not too large. A page of somebody else in the same
browser fails the first: a name that was made to point to this machine is no name of this server,
and what it sends carries its own origin. So no cookie is needed, and none is set.

A line of JSON tells what was asked and how it went, with neither token nor address nor text.
"""

import asyncio
import hmac
import json
import random
import socket
import sys
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cir_jax import progress
from cir_jax.serving import refusals
from cir_jax.serving.numbers import Numbers
from cir_jax.serving.refusals import Refusal
from cir_jax.serving.settings import Settings, literal

# Of the page nothing is secret; it asks for the token. Everything else wants it.
_OPEN = ("/", "/healthz", "/favicon.ico")
_OPEN_FOLDER = "/page/"
# Requests that need the device, or write: counted against the queue and the rate.
DEVICE = ("/search", "/v1/embeddings", "/v1/rerank", "/rerank", "/mcp")
_RATED = (*DEVICE, "/api/uploads", "/triplets")
HUNG_UP = 499
_REST, _REST_SECONDS = 4, 10.0  # of a refused body: times the limit, seconds, that are still read
_CLIENTS = 10_000  # whose rates are remembered
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}


class Guard:
    """ASGI middleware; see the module.

    Args:
      app: what answers.
      settings: limits, names and the token.
      numbers: where requests are counted.
      log: takes a line for each request.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        numbers: Numbers,
        load: "Load",
        log: Callable[[str], None] | None = None,
    ):
        self._app, self._settings, self._numbers, self._load = app, settings, numbers, load
        self._log = log or _to_standard_error
        self._rates = Rates(settings.rate)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        passage = _Passage(scope, receive, send, self._settings.body_bytes)
        try:
            await self._answer(scope, passage)
        except Refusal as refusal:
            await passage.instead(refusal.response())
        except Exception:
            traceback.print_exc()
            await passage.instead(refusals.server_error())
        finally:
            self._note(scope, passage)

    async def _answer(self, scope: Scope, passage: "_Passage") -> None:
        headers, path = Headers(scope=scope), scope["path"]
        check_host(headers, self._settings)
        check_origin(headers)
        if not (path in _OPEN or path.startswith(_OPEN_FOLDER)):
            check_token(headers, self._settings.token)
        writes = scope["method"] not in ("GET", "HEAD", "OPTIONS")
        if writes and path.startswith(_RATED):
            self._rates.count((scope.get("client") or ("", 0))[0])
        passage.check_length(headers)
        if writes and path in DEVICE:
            passage.leave = self._load.enter()
            try:
                await self._in_time(scope, passage)
            finally:
                passage.leave()
        else:
            await self._app(scope, passage.receive, passage.send)

    async def _in_time(self, scope: Scope, passage: "_Passage") -> None:
        """Answers, unless it takes too long or the client hangs up first: then its place is free.

        Whoever hangs up is noticed once the whole body has been read.
        """
        passage.watched = True
        answer = asyncio.create_task(_run(self._app, scope, passage))
        gone = asyncio.create_task(passage.hung_up())
        try:
            await asyncio.wait(
                (answer, gone), timeout=self._settings.timeout, return_when="FIRST_COMPLETED"
            )
            if answer.done():
                answer.result()
            elif not gone.done():
                raise too_long(self._settings.timeout)
        finally:
            for task in (answer, gone):
                task.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await task

    def _note(self, scope: Scope, passage: "_Passage") -> None:
        seconds = time.perf_counter() - passage.since
        route = route_of(scope)
        self._numbers.request(route, passage.status, seconds)
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "client": (scope.get("client") or ("", 0))[0],
            "method": scope["method"] if scope["method"].isalpha() else "?",
            "route": route,
            "status": passage.status,
            "milliseconds": round(1000 * seconds, 1),
            "bytes": passage.sent,
        }
        self._log(json.dumps(line))


async def _run(app: ASGIApp, scope: Scope, passage: "_Passage") -> None:
    await app(scope, passage.receive, passage.send)


class Load:
    """Requests under way that need the device.

    Args:
      most: as many as may be.
    """

    def __init__(self, most: int):
        self.most, self.count, self.ready = most, 0, False

    def enter(self) -> Callable[[], None]:
        """Takes a place; what is returned frees it, once.

        Raises:
          Refusal: 503, there is none, or the server has not warmed up.
        """
        if not self.ready:
            raise Refusal(
                503, "the server has not started; come again", code="starting", headers=_soon(5)
            )
        if self.count >= self.most:
            raise Refusal(
                503,
                f"{self.count} requests are under way, and there is room for {self.most}; come "
                "again after the seconds of Retry-After",
                code="overloaded",
                headers=_soon(random.randint(1, 3)),  # not all of them at once
            )
        self.count += 1
        taken = [1]

        def leave() -> None:
            self.count -= taken.pop() if taken else 0

        return leave


class Rates:
    """How often each client may come: a bucket of tokens that fills up with time.

    Args:
      rate: a second; 0 for no limit.
      clock: seconds.
    """

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic):
        self._rate, self._clock = rate, clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def count(self, client: str) -> None:
        """Counts one request of a client.

        Raises:
          Refusal: 429, there were too many.
        """
        if not self._rate:
            return
        now, most = self._clock(), max(2 * self._rate, 1)
        left, then = self._left.pop(client, (most, now))
        left = min(most, left + (now - then) * self._rate)
        self._left[client] = (left - 1 if left >= 1 else left), now
        if len(self._left) > _CLIENTS:
            self._left.popitem(last=False)
        if left < 1:
            wait = (1 - left) / self._rate
            raise Refusal(
                429,
                f"more than {self._rate:g} requests a second; come again after the seconds of "
                "Retry-After",
                code="rate_limited",
                headers=_soon(max(1, round(wait + 0.5))),
            )


def check_host(headers: Headers, settings: Settings) -> None:
    """Raises Refusal unless the request was meant for this server, by a name or address of it.

    Any address written in numbers is right where others may connect: only a name can be made to
    point to where its owner does not sit.
    """
    name = _name(headers.get("host", ""))
    address = literal(name)
    if address is not None:
        known = address.is_loopback or not settings.local
    else:
        known = name in ("localhost", *settings.names)
        known = known or (not settings.local and name in (settings.host, socket.gethostname()))
    if not known:
        raise Refusal(
            403,
            f"this server is not called {name!r}; `cir-jax serve --name {name or 'NAME'}` lets "
            "requests under that name in",
            param="Host",
            code="unknown_host",
        )


def check_origin(headers: Headers) -> None:
    """Raises Refusal if a page of another origin sends the request."""
    origin = headers.get("origin")
    if origin is None:
        return
    if urlsplit(origin).netloc.lower() != headers.get("host", "").lower():
        raise Refusal(
            403,
            f"pages of {origin} may not use this server; only its own page may",
            param="Origin",
            code="other_origin",
        )


def check_token(headers: Headers, token: str) -> None:
    """Raises Refusal unless the request shows the token, if there is one.

    The comparison takes as long for a token that is nearly right as for any other.
    """
    if not token:
        return
    kind, _, shown = headers.get("authorization", "").partition(" ")
    right = hmac.compare_digest(shown.strip().encode("utf-8", "replace"), token.encode())
    if kind.lower() != "bearer" or not right:
        raise Refusal(
            401,
            "this server wants its token: Authorization: Bearer TOKEN",
            param="Authorization",
            code="wrong_token" if shown else "no_token",
            headers={"WWW-Authenticate": "Bearer"},
        )


def too_long(seconds: float) -> Refusal:
    """What to say of a request that took too long."""
    return Refusal(
        503,
        f"no answer within {seconds:g} seconds; ask for less, or come again",
        code="timeout",
        headers=_soon(1),
    )


def route_of(scope: Scope) -> str:
    """The pattern of the address that was asked for, e.g. "/images/{id}"; never the address."""
    route: Any = scope.get("route") or getattr(scope.get("endpoint"), "route", None)
    path = getattr(route, "path", "")
    return path if isinstance(path, str) and path else "none"


@dataclass
class _Passage:
    """One request on its way in, and its answer on its way out."""

    scope: Scope
    given_receive: Receive
    given_send: Send
    most: int
    watched: bool = False  # `hung_up` is waited for, and receives in the place of the app
    leave: Callable[[], None] = lambda: None  # frees its place, see `Load.enter`

    def __post_init__(self) -> None:
        self.since = time.perf_counter()
        self.status, self.sent, self._read = HUNG_UP, 0, 0
        self._begun = False
        self._whole = asyncio.Event()  # the body has been read
        self._gone = asyncio.Event()

    def check_length(self, headers: Headers) -> None:
        """Raises Refusal if the body says that it is too large; not a byte of it is read."""
        said = headers.get("content-length", "")
        if said.isdecimal() and int(said) > self.most:
            raise self._too_large()

    async def receive(self) -> Message:
        """The next piece of the body; it is counted, whatever was said of it."""
        if self.watched and self._whole.is_set():
            await self._gone.wait()
            return {"type": "http.disconnect"}
        message = await self.given_receive()
        if message["type"] == "http.disconnect":
            self._whole.set()
            self._gone.set()
            return message
        self._read += len(message.get("body", b""))
        if not message.get("more_body", False):
            self._whole.set()
        if self._read > self.most:
            raise self._too_large()
        return message

    async def hung_up(self) -> None:
        """Returns when the client has hung up."""
        await self._whole.wait()
        while not self._gone.is_set():
            message = await self.given_receive()
            if message["type"] == "http.disconnect":
                self._gone.set()

    async def send(self, message: Message) -> None:
        """A piece of the answer, with the headers that all have."""
        if message["type"] == "http.response.start":
            self._begun, self.status = True, message["status"]
            if self.status >= 400:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._rest_of_body(), _REST_SECONDS)
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
            headers.setdefault("Cache-Control", "no-store")
        elif message["type"] == "http.response.body":
            self.sent += len(message.get("body", b""))
        await self.given_send(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.leave()  # before the client, who has the answer now, can ask again

    async def instead(self, response: ASGIApp) -> None:
        """Sends this answer, if none has begun."""
        if self._begun:
            self.status = 500
            return
        await response(self.scope, self.given_receive, self.send)

    async def _rest_of_body(self) -> None:
        """Reads what is still sent of a body that is refused, and forgets it.

        Most clients look at an answer when they have sent all; a connection that is closed before
        tells them nothing. One that asks first, by `Expect`, is told before it sends anything.
        """
        if "expect" in Headers(scope=self.scope):
            return
        while not self._whole.is_set() and self._read <= _REST * self.most:
            message = await self.given_receive()
            self._read += len(message.get("body", b""))
            if message["type"] == "http.disconnect" or not message.get("more_body", False):
                self._whole.set()

    def _too_large(self) -> Refusal:
        return Refusal(
            413,
            f"the body has more than {self.most:,} bytes; send less at a time",
            code="too_large",
            headers={"Connection": "close"},
        )


def _name(host: str) -> str:
    """The name in a `Host` header, without its port, in small letters."""
    host = host.lower()
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]


def _soon(seconds: int) -> dict[str, str]:
    return {"Retry-After": str(seconds)}


def _to_standard_error(line: str) -> None:
    progress.show(line, file=sys.stderr)
