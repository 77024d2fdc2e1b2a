# SPDX-License-Identifier: Apache-2.0
"""A client of servers that speak like OpenAI's: one request, until it is answered or refused.

A server is a stranger: of a reply no more than `Settings.longest` bytes are read, packed or
unpacked, it must be complete within `timeout`, and no redirect is followed, so nothing is sent to
another host. One that is away is waited for, see `retry`.
"""

import asyncio
import errno
import json
import os
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from cir_jax.errors import ServerError, UserError, nearest
from cir_jax.servers.retry import Backoff, RateLimit, TryAgain, retry_after

if TYPE_CHECKING:
    import httpx2

CONNECT = 10.0  # seconds; a host that does not even accept is away
OWN_FAILURES = 5  # of one request, before a plain request is sent to see whose fault it is
LATER = {408, 409, 425, 429}  # statuses that may pass; those from 500 too
UNFIT = {400, 413, 415, 422}  # statuses that speak of this request alone
DENIED = {401, 403}
AWAY = {502, 503, 504}  # never the fault of one request
LONGEST_MESSAGE = 300  # characters of a server's own words
FIRST = 3  # requests refused before the first success mean that none will succeed

T = TypeVar("T")


class RefusedError(Exception):
    """This request is not served, and would not be if it were sent again."""


@dataclass(frozen=True)
class Settings:
    """Of whom is asked what, and how patiently.

    Attributes:
      url: the address before the endpoint.
      endpoint: of every request, e.g. "/embeddings".
      model: named in every request.
      timeout: seconds in which a reply is complete.
      wait: seconds without any reply after which the client gives up.
      per_minute: requests started per minute; 0 for no limit.
      key_variable: environment variable that holds the key; "" for none.
      longest: bytes of a reply that are read.
      model_key: the config key of `model`, for messages.
    """

    url: str
    endpoint: str
    model: str
    timeout: float
    wait: float
    per_minute: float
    key_variable: str
    longest: int
    model_key: str = "model"


@dataclass(frozen=True)
class Answer:
    """What came back: its status, and as much of its body as is read.

    Attributes:
      unread: why not all of it is in `body`; "" if it is.
    """

    status: int
    reason: str
    headers: Mapping[str, str]
    body: bytes
    unread: str


class Client:
    """Asks one server for one kind of thing.

    Args:
      settings: see `Settings`.
      needed_by: who needs the library for requests, and what to do without: two parts of a message.

    Raises:
      UserError: a setting that cannot work, or the library is not installed.
    """

    def __init__(self, settings: Settings, needed_by: tuple[str, str]):
        self._httpx2 = _http_library(*needed_by)
        self.settings = settings
        self._base = base(settings.url, settings.endpoint)
        self.who = f"server {self._base}"
        self._key = _key(settings.key_variable)
        self._backoff = Backoff(self.who, settings.wait)
        self._rate_limit = RateLimit(settings.per_minute)

    def open(self) -> "httpx2.AsyncClient":
        """A connection, and the patience of a new run: an outage before is none of its business."""
        self._backoff = Backoff(self.who, self.settings.wait)
        authorization = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        return self._httpx2.AsyncClient(
            base_url=self._base,
            headers={"Content-Type": "application/json", "Accept-Encoding": "identity"}
            | authorization,
            follow_redirects=False,
            # asyncio.timeout bounds the time of a try, who calls bounds the number of them.
            timeout=self._httpx2.Timeout(None, connect=CONNECT),
            limits=self._httpx2.Limits(max_connections=None, max_keepalive_connections=None),
        )

    async def ask(
        self,
        connection: "httpx2.AsyncClient",
        body: bytes,
        read: Callable[[bytes], T],
        harmless: Callable[[], bytes],
    ) -> T:
        """What `read` makes of the reply to a request, which is sent until there is one.

        Args:
          connection: of `open`.
          body: JSON.
          read: of the bytes of a reply; raises ValueError, LookupError, TypeError or AttributeError
            for one that is not of the right form, and RefusedError for one that cannot be used.
          harmless: gives the body of a plain request of the same kind. If it is answered, one that
            has failed again and again is itself at fault.

        Raises:
          RefusedError: this request will never be served.
          ServerError: none will, or the server stays away for longer than `wait`.
        """
        tries = own = 0
        while True:
            tries += 1
            await self._rate_limit.wait()
            try:
                return await self._post(connection, body, read)
            except TryAgain as failure:
                own += failure.own
                suspect = failure.own and (own >= OWN_FAILURES or self._backoff.exhausted)
                if suspect and await self._serves(connection, harmless(), read):
                    why = f"failed {tries} times while others succeed: {failure.reason}"
                    raise RefusedError(why) from None
                await asyncio.sleep(self._backoff.failure(failure, tries))

    async def _serves(
        self, connection: "httpx2.AsyncClient", body: bytes, read: Callable[[bytes], T]
    ) -> bool:
        """Whether a harmless request of the same kind is answered: then another is at fault."""
        try:
            await self._post(connection, body, read)
        except (TryAgain, RefusedError):
            return False
        return True

    async def _post(
        self, connection: "httpx2.AsyncClient", body: bytes, read: Callable[[bytes], T]
    ) -> T:
        """What one try gives.

        Raises:
          TryAgain: it may succeed later.
          RefusedError: this request will never.
          ServerError: none will.
        """
        try:
            async with asyncio.timeout(self.settings.timeout):
                answer = await self._exchange(connection, "POST", self.settings.endpoint, body)
        except TimeoutError:
            raise TryAgain(f"no answer within {self.settings.timeout:g} s", own=True) from None
        except self._httpx2.ConnectTimeout:
            raise TryAgain(f"no connection within {CONNECT:g} s") from None
        except self._httpx2.ConnectError as error:
            raise TryAgain(_cause(error)) from None
        except self._httpx2.TransportError as error:
            raise TryAgain(_cause(error), own=True) from None
        if answer.status != 200:
            await self._raise_for_status(connection, answer)
        if answer.unread:
            raise RefusedError(f"not read to its end: the reply {answer.unread}")
        try:
            found = read(answer.body)
        except UserError:  # is a ValueError too
            raise
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            what = str(error) if isinstance(error, WrongReply) else "a reply without an answer"
            raise TryAgain(f"{what}: {self._said(answer)}", own=True) from None
        self._backoff.success()
        return found

    async def _raise_for_status(self, connection: "httpx2.AsyncClient", answer: Answer) -> None:
        status, words = answer.status, self._said(answer)
        said = f"{status} {answer.reason}" + (f" ({words})" if words else "")
        if status in LATER or status >= 500:
            after = retry_after(answer.headers.get("Retry-After"))
            raise TryAgain(said, own=status >= 500 and status not in AWAY, after=after)
        if status in UNFIT:
            raise RefusedError(f"refused by the server: {said}")
        variable = self.settings.key_variable
        if status in DENIED and variable:
            held = "is not accepted" if self._key else "is not set"
            remedy = (
                f"the environment variable {variable} (key_variable) {held}; put the server's key "
                "there"
            )
        elif status in DENIED:
            remedy = "name the environment variable that holds the server's key in key_variable"
        elif status == 404:
            remedy = await self._not_found(connection)
        elif 300 <= status < 400:
            place = answer.headers.get("Location", "nowhere")[:LONGEST_MESSAGE]
            remedy = (
                f"it leads to {place!r}, and no redirect is followed (the key would go there too): "
                "correct url if that is the right place"
            )
        else:
            remedy = f"correct url, which is the address before {self.settings.endpoint}"
        raise ServerError(f"{self.who} answered {said}; {remedy}")

    async def _not_found(self, connection: "httpx2.AsyncClient") -> str:
        """What to do about "not found": names what the server has, if it tells."""
        model, key = self.settings.model, self.settings.model_key
        names: list[str] = []
        try:
            async with asyncio.timeout(CONNECT):
                answer = await self._exchange(connection, "GET", "/models")
            names = [str(entry["id"]) for entry in json.loads(answer.body)["data"]]
        except (TimeoutError, self._httpx2.HTTPError, TryAgain, RecursionError):
            pass
        except (ValueError, LookupError, TypeError):
            pass
        if not names:
            return f"correct url, which usually ends in /v1, or {key}={model!r}"
        shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
        return f"{key}={model!r} is not among what it offers: {shown}.{nearest(model, names)}"

    def _said(self, answer: Answer) -> str:
        """The server's own message, on one line, cut, without the key."""
        try:
            said = json.loads(answer.body)
            said = next((said[k] for k in ("error", "detail", "message") if k in said), said)
            said = said.get("message", said) if isinstance(said, dict) else said
        except (ValueError, TypeError, RecursionError):
            said = answer.body.decode("utf-8", "replace")
        words = " ".join(str(said).split())
        return (words.replace(self._key, "***") if self._key else words)[:LONGEST_MESSAGE]

    async def _exchange(
        self, connection: "httpx2.AsyncClient", method: str, path: str, content: bytes = b""
    ) -> Answer:
        """One request; the connection is closed where its reply goes over the limit.

        Raises:
          TryAgain: what is packed is damaged.
        """
        longest = self.settings.longest
        async with connection.stream(method, path, content=content or None) as response:
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
                    room = longest + 1 - len(body)
                    try:
                        body += unpacker.decompress(chunk, room) if unpacker else chunk[:room]
                    except zlib.error as error:
                        raise TryAgain(f"a damaged reply ({error})", own=True) from None
                    if max(size, len(body)) > longest:
                        unread = f"has over {longest:,} bytes"
                        break
            return Answer(
                response.status_code, response.reason_phrase, response.headers, bytes(body), unread
            )


class WrongReply(ValueError):
    """A reply that is not of the right form; the message says what is wrong with it."""


class Refusals:
    """Counts refused requests, to tell one that cannot be served from a set-up that serves none.

    Args:
      who: what refuses, e.g. "server http://host:8000/v1".
      remedy: ends the message, what to do when all are refused.
    """

    def __init__(self, who: str, remedy: str):
        self._who, self._remedy = who, remedy
        self._refused, self._succeeded = 0, False

    def success(self) -> None:
        """A request was served: from now on a refusal is the request's own fault."""
        self._succeeded = True

    def refused(self, why: str) -> str:
        """`why`, to be the problem of one reply.

        Raises:
          ServerError: nothing was ever served, and this is the third refusal.
        """
        self._refused += 1
        if self._refused >= FIRST and not self._succeeded:
            raise ServerError(
                f"{self._who} served none of the first {FIRST} requests, the last: {why}; "
                f"{self._remedy}"
            )
        return why


def base(url: str, endpoint: str) -> str:
    """The address that paths are appended to: as given, or its /v1 if it is a bare host.

    Raises:
      UserError: it is no address, ends in the endpoint, or holds a password.
    """
    url = url.strip().rstrip("/")
    example = "give one like http://localhost:8000/v1"
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is no number, an open bracket
        usable = False
    if not usable:
        raise UserError(f"url={url!r} is no address of a server; {example}")
    if parts.path.endswith(endpoint):
        raise UserError(f"url={url!r} must end before {endpoint}; {example}")
    if parts.password or parts.username:
        raise UserError(
            f"url on {parts.hostname} holds a user name or password, which would be written into "
            "messages; put the key into an environment variable and name that in key_variable"
        )
    return url if parts.path else f"{url}/v1"


def _http_library(needed_by: str, without: str) -> ModuleType:
    try:
        import anyio  # noqa: F401 (retry.run_concurrently needs it)
        import httpx2
    except ImportError as error:
        raise UserError(
            f"{needed_by} needs {error.name}, which is not installed; {without}"
        ) from None
    return httpx2


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
