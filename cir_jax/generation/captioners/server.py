# SPDX-License-Identifier: Apache-2.0
"""Texts from any OpenAI-compatible server: vLLM, SGLang, llama.cpp, `transformers serve`.

This is how captioning runs on a cluster: the model has the accelerators to itself, and many
requests are in flight at once. A server that is away is waited for; see `retry`.

A server is a stranger: of a reply no more than LONGEST_REPLY bytes are read, packed or unpacked, it
must be complete within `timeout`, and no redirect is followed, so nothing is sent to another host.
"""

import asyncio
import errno
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ml_collections import ConfigDict

from cir_jax.errors import UserError, nearest
from cir_jax.generation import caption_inputs
from cir_jax.generation.captioner import Reply, Request, sampling
from cir_jax.generation.retry import Backoff, RateLimit, TryAgain, retry_after, run_concurrently

if TYPE_CHECKING:
    import httpx2

KEYS = {
    "url": ("", "its OpenAI-compatible address, e.g. http://localhost:8000/v1", None),
    "concurrency": (8, "requests under way at a time", "[1, 1000]"),
    "per_minute": (0.0, "requests started per minute; 0 = no limit", "[0, 1e6]"),
    "timeout": (120.0, "seconds to wait for one reply", "(0, 1e6]"),
    "wait": (600.0, "give up after so many seconds without any reply", "[0, 1e9]"),
    "key_variable": ("OPENAI_API_KEY", "environment variable that holds the key, if any", None),
}
ENDPOINT = "/chat/completions"
CONNECT = 10.0  # seconds; a host that does not even accept is away
OWN_FAILURES = 5  # of one request, before a plain request is sent to see whose fault it is
LATER = {408, 409, 425, 429}  # statuses that may pass; those from 500 too
UNFIT = {400, 413, 415, 422}  # statuses that speak of this request alone
DENIED = {401, 403}
AWAY = {502, 503, 504}  # never the fault of one request
LONGEST_MESSAGE = 300  # characters of a server's own words
LONGEST_REPLY = 4 << 20  # bytes; a caption has some hundred, a long list of models a million


def check(section: ConfigDict) -> None:
    """Raises UserError for settings that no server could serve."""
    Captioner(section, 0)


class Captioner:
    """Asks a server; see `captioner.Captioner`.

    Args:
      section: `config.caption` or `config.rewrite`.
      seed: of the run.

    Raises:
      UserError: a config value that cannot work; it is named.
    """

    def __init__(self, section: ConfigDict, seed: int):
        self._httpx2 = _http_library()
        caption_inputs.check_section(section)
        self._section, self._seed = section, seed
        self._base = _base(section.url)
        self._limit = caption_inputs.token_limit(section)
        self._concurrency = int(caption_inputs.at_least(section, "concurrency", 1))
        if section.timeout <= 0:
            raise UserError(f"timeout={section.timeout} is no time; give the seconds of a reply")
        self._who = f"server {self._base}"
        self._backoff = Backoff(self._who, caption_inputs.at_least(section, "wait", 0))
        self._rate_limit = RateLimit(caption_inputs.at_least(section, "per_minute", 0))
        self._refusals = caption_inputs.Refusals(
            self._who,
            f"correct model={section.model!r}, max_side or max_tokens, or look at the server's log",
        )
        self._key = _key(section.key_variable)
        self.identity = {
            "captioner": "server",
            "model": section.model,
            "temperature": section.temperature,
            "top_p": section.top_p,
            "max_side": section.max_side,
        }

    @classmethod
    def from_config(cls, section: ConfigDict, seed: int, names: Sequence[str]) -> "Captioner":
        """See `captioner.Captioner`; nothing is asked of the server yet."""
        return cls(section, seed)

    def generate(self, requests: Iterable[Request]) -> Iterator[Reply]:
        """One reply per request, in the order in which they come.

        Closing the iterator takes back what is in flight; no thread is left behind.

        Raises:
          UserError: the server stays away for longer than `wait`, denies access, does not know the
            model, or refuses the first requests.
        """
        # An outage before this call is none of its business.
        self._backoff = Backoff(self._who, self._section.wait)
        authorization = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        client = self._httpx2.AsyncClient(
            base_url=self._base,
            headers={"Content-Type": "application/json", "Accept-Encoding": "identity"}
            | authorization,
            follow_redirects=False,
            # asyncio.timeout bounds the time of a try, run_concurrently the number of them.
            timeout=self._httpx2.Timeout(None, connect=CONNECT),
            limits=self._httpx2.Limits(max_connections=None, max_keepalive_connections=None),
        )
        return run_concurrently(
            requests, lambda request: self._answer(client, request), self._concurrency, client
        )

    async def _answer(self, client: "httpx2.AsyncClient", request: Request) -> Reply:
        try:
            body = await asyncio.to_thread(self._body, request)
        except UserError as error:
            return caption_inputs.unreadable(request.key, error)
        tries = own = 0
        while True:
            tries += 1
            await self._rate_limit.wait()
            try:
                text, problem = await self._post(client, body)
                self._refusals.success()
                return Reply(request.key, text, problem)
            except _RefusedError as error:
                why = self._refusals.refused(str(error))
                return Reply(request.key, "", why, final=True)
            except TryAgain as failure:
                own += failure.own
                suspect = failure.own and (own >= OWN_FAILURES or self._backoff.exhausted)
                if suspect and await self._serves(client, request):
                    why = f"failed {tries} times while others succeed: {failure.reason}"
                    return Reply(request.key, "", self._refusals.refused(why), final=True)
                await asyncio.sleep(self._backoff.failure(failure, tries))

    async def _serves(self, client: "httpx2.AsyncClient", request: Request) -> bool:
        """Whether a harmless request of the same kind is answered: then this one is at fault."""
        image = request.image and caption_inputs.GreyImage()
        harmless = replace(request, prompt="Say yes.", image=image)
        try:
            await self._post(client, self._body(harmless))
        except (TryAgain, _RefusedError):
            return False
        return True

    def _body(self, request: Request) -> bytes:
        """The JSON of a request.

        Raises:
          UserError: its image cannot be read.
        """
        seed, temperature = sampling(request, self._seed, self._section.temperature)
        content: Any = request.prompt
        if request.image is not None:
            url = caption_inputs.data_url(request.image, self._section.max_side, request.loading)
            content = [
                {"type": "image_url", "image_url": {"url": url}},
                {"type": "text", "text": request.prompt},
            ]
        body = {
            "model": self._section.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self._limit,
            "temperature": temperature,
            "seed": seed,
        }
        if temperature:
            body["top_p"] = self._section.top_p
        return json.dumps(body).encode()

    async def _post(self, client: "httpx2.AsyncClient", body: bytes) -> tuple[str, str]:
        """(text, problem) of one try.

        Raises:
          TryAgain: it may succeed later.
          _RefusedError: this request will never.
          UserError: none will.
        """
        try:
            async with asyncio.timeout(self._section.timeout):
                answer = await _exchange(client, "POST", ENDPOINT, body)
        except TimeoutError:
            raise TryAgain(f"no answer within {self._section.timeout:g} s", own=True) from None
        except self._httpx2.ConnectTimeout:
            raise TryAgain(f"no connection within {CONNECT:g} s") from None
        except self._httpx2.ConnectError as error:
            raise TryAgain(_cause(error)) from None
        except self._httpx2.TransportError as error:
            raise TryAgain(_cause(error), own=True) from None
        if answer.status != 200:
            await self._raise_for_status(client, answer)
        if answer.unread:
            raise _RefusedError(f"not read to its end: the reply {answer.unread}")
        try:
            choice = json.loads(answer.body)["choices"][0]
            text, reason = choice["message"].get("content") or "", choice.get("finish_reason")
            text = text.strip()
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise TryAgain(f"a reply without choices: {self._said(answer)}", own=True) from None
        self._backoff.success()
        if reason == "length":
            return text, f"cut at {self._limit} tokens"
        if reason == "content_filter":
            return "", "withheld by the server's content filter"
        return text, ""

    async def _raise_for_status(self, client: "httpx2.AsyncClient", answer: "_Answer") -> None:
        status, words = answer.status, self._said(answer)
        said = f"{status} {answer.reason}" + (f" ({words})" if words else "")
        if status in LATER or status >= 500:
            after = retry_after(answer.headers.get("Retry-After"))
            raise TryAgain(said, own=status >= 500 and status not in AWAY, after=after)
        if status in UNFIT:
            raise _RefusedError(f"refused by the server: {said}")
        variable = self._section.key_variable
        if status in DENIED and variable:
            held = "is not accepted" if self._key else "is not set"
            remedy = (
                f"the environment variable {variable} (key_variable) {held}; put the server's key "
                "there"
            )
        elif status in DENIED:
            remedy = "name the environment variable that holds the server's key in key_variable"
        elif status == 404:
            remedy = await self._not_found(client)
        elif 300 <= status < 400:
            place = answer.headers.get("Location", "nowhere")[:LONGEST_MESSAGE]
            remedy = (
                f"it leads to {place!r}, and no redirect is followed (the key would go there too): "
                "correct url if that is the right place"
            )
        else:
            remedy = "correct url, which is the address before /chat/completions"
        raise UserError(f"{self._who} answered {said}; {remedy}")

    async def _not_found(self, client: "httpx2.AsyncClient") -> str:
        """What to do about "not found": names what the server has, if it tells."""
        model = self._section.model
        try:
            async with asyncio.timeout(CONNECT):
                answer = await _exchange(client, "GET", "/models")
            names = [str(entry["id"]) for entry in json.loads(answer.body)["data"]]
        except (TimeoutError, self._httpx2.HTTPError, TryAgain, RecursionError):
            names = []
        except (ValueError, LookupError, TypeError):
            names = []
        if not names:
            return f"correct url, which usually ends in /v1, or model={model!r}"
        shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
        return f"model={model!r} is not among what it offers: {shown}.{nearest(model, names)}"

    def _said(self, answer: "_Answer") -> str:
        """The server's own message, on one line, cut, without the key."""
        try:
            said = json.loads(answer.body)
            said = next((said[k] for k in ("error", "detail", "message") if k in said), said)
            said = said.get("message", said) if isinstance(said, dict) else said
        except (ValueError, TypeError, RecursionError):
            said = answer.body.decode("utf-8", "replace")
        words = " ".join(str(said).split())
        return (words.replace(self._key, "***") if self._key else words)[:LONGEST_MESSAGE]


@dataclass(frozen=True)
class _Answer:
    """What came back: its status, and as much of its body as is read.

    Attributes:
      unread: why not all of it is in `body`; "" if it is.
    """

    status: int
    reason: str
    headers: Mapping[str, str]
    body: bytes
    unread: str


async def _exchange(
    client: "httpx2.AsyncClient", method: str, path: str, content: bytes = b""
) -> _Answer:
    """One request; the connection is closed where its reply goes over LONGEST_REPLY.

    Raises:
      TryAgain: what is packed is damaged.
    """
    async with client.stream(method, path, content=content or None) as response:
        packing = response.headers.get("Content-Encoding", "identity").strip().lower()
        # "identity" was asked for, but some proxies pack whatever they pass on.
        bits = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}.get(packing)
        unpacker = zlib.decompressobj(bits) if bits else None
        body, size, unread = bytearray(), 0, ""
        if packing not in ("identity", "gzip", "deflate"):
            unread = f"is packed by {packing!r}, which was not asked for"
        else:
            async for chunk in response.aiter_raw():
                size += len(chunk)
                room = LONGEST_REPLY + 1 - len(body)
                try:
                    body += unpacker.decompress(chunk, room) if unpacker else chunk[:room]
                except zlib.error as error:
                    raise TryAgain(f"a damaged reply ({error})", own=True) from None
                if max(size, len(body)) > LONGEST_REPLY:
                    unread = f"has over {LONGEST_REPLY:,} bytes"
                    break
        return _Answer(
            response.status_code, response.reason_phrase, response.headers, bytes(body), unread
        )


class _RefusedError(Exception):
    """This request is not served, and would not be if it were sent again."""


def _http_library() -> ModuleType:
    try:
        import anyio  # noqa: F401 (retry.run_concurrently needs it)
        import httpx2
    except ImportError as error:
        raise UserError(
            f"captioner=server needs {error.name}, which is not installed; "
            "pip install 'cir_jax[caption]', or use captioner=local"
        ) from None
    return httpx2


def _base(url: str) -> str:
    """The address that paths are appended to: as given, or its /v1 if it is a bare host."""
    url = url.strip().rstrip("/")
    example = "give one like http://localhost:8000/v1"
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is no number, an open bracket
        usable = False
    if not usable:
        raise UserError(f"url={url!r} is no address of a server; {example}")
    if parts.path.endswith(ENDPOINT):
        raise UserError(f"url={url!r} must end before {ENDPOINT}; {example}")
    if parts.password or parts.username:
        raise UserError(
            f"url on {parts.hostname} holds a user name or password, which would be written into "
            "messages; put the key into an environment variable and name that in key_variable"
        )
    return url if parts.path else f"{url}/v1"


def _key(variable: str) -> str:
    key = os.environ.get(variable, "").strip() if variable else ""
    if not (key.isascii() and key.isprintable()):
        raise UserError(
            f"the environment variable {variable} (key_variable) holds characters that no key has; "
            "set it again"
        )
    return key


def _cause(error: BaseException) -> str:
    """The innermost reason: the outer ones say only that all attempts failed."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    if isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    number = getattr(error, "errno", None)
    if isinstance(number, int) and number in errno.errorcode:
        said = os.strerror(number)
    else:
        said = str(error)
    return (said or type(error).__name__)[:LONGEST_MESSAGE].lower()
