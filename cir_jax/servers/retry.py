# SPDX-License-Identifier: Apache-2.0
"""Requests to a server: how many at once, how many a minute, when to try again, when to give up.

One `Backoff` and one `RateLimit` are shared by all requests in flight, because it is the server
that is away and not a request: what counts is the time since anything succeeded, and one line tells
of it. The retries of client libraries (openai) and of tenacity count the tries of one request.
"""

import asyncio
import email.utils
import itertools
import math
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent import futures
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

from cir_jax import progress
from cir_jax.errors import ServerError

FIRST_DELAY, LONGEST_DELAY = 1.0, 30.0  # seconds; doubled from one to the other
JITTER = 0.25  # requests that failed together must not come back together
OUTAGE = 5.0  # seconds without success from which the return of the server is worth a line
THREAD = "requests in flight"  # name of the thread of the event loop

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


class TryAgain(Exception):
    """A try that failed and may succeed later.

    Attributes:
      reason: for people.
      own: the request itself may be the cause (an error inside the server, a time-out); a refused
        connection or "too many requests" is not.
      after: seconds that the server asks to wait; None if it does not say.
    """

    def __init__(self, reason: str, own: bool = False, after: float | None = None):
        super().__init__(reason)
        self.reason, self.own, self.after = reason, own, after


class Backoff:
    """What all requests know together of a server that does not answer.

    Args:
      who: names the server in messages.
      wait: seconds without any success after which a failure is final.
      clock: seconds; replaced in tests.
    """

    def __init__(self, who: str, wait: float, clock: Callable[[], float] = time.monotonic):
        self._who, self._wait, self._clock = who, wait, clock
        self._since: float | None = None  # when the first failure after the last success came
        self._said = 0.0  # longest delay that people were told of

    @property
    def waited(self) -> float:
        """Seconds since failures began; 0 while requests succeed."""
        return 0.0 if self._since is None else self._clock() - self._since

    @property
    def exhausted(self) -> bool:
        """The next failure ends the run."""
        return self._since is not None and self.waited >= self._wait

    def success(self) -> None:
        """Any request was answered; says so after an outage."""
        if self.waited >= OUTAGE:
            progress.say(f"{self._who} answers again, after {self.waited:.0f} s")
            self._said = 0.0
        self._since = None

    def failure(self, error: TryAgain, tries: int) -> float:
        """Seconds to sleep after the try number `tries` (from 1) of a request failed.

        Raises:
          ServerError: nothing has succeeded for longer than `wait`, or the server asks for longer.
        """
        if self._since is None:
            self._since = self._clock()
        waited = self.waited
        asked = error.after or 0.0
        if waited >= self._wait or asked > self._wait:
            wish = f" and asks to wait {asked:.0f} s" if asked > self._wait else ""
            raise ServerError(
                f"{self._who} has given no reply for {waited:.0f} s{wish}; the limit is "
                f"wait={self._wait:g}. Its last answer: {error.reason}. What is written is kept: "
                "when the server is up again, the same command goes on from there."
            )
        delay = min(FIRST_DELAY * 2.0 ** min(tries - 1, 10), LONGEST_DELAY)
        delay = max(asked, delay if error.after is None else 0.0)
        delay = delay * random.uniform(1, 1 + JITTER)
        if delay > (1 + JITTER) * self._said and (waited >= FIRST_DELAY or delay > 2 * OUTAGE):
            progress.say(f"{self._who}: {error.reason}; trying again in {delay:.0f} s")
            self._said = delay
        return min(delay, max(self._wait - waited, 0.0))


class RateLimit:
    """Starts evenly spaced, so that no 60 seconds hold more than `per_minute` of them.

    Args:
      per_minute: 0 for no limit.
      clock, sleep: replaced in tests.
    """

    def __init__(
        self,
        per_minute: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ):
        self._interval = 60 / per_minute if per_minute else 0.0
        self._clock, self._sleep = clock, sleep
        self._next = 0.0

    async def wait(self) -> None:
        """Returns when the next request may start."""
        now = self._clock()
        start = max(now, self._next)
        self._next = start + self._interval
        if start > now:
            await self._sleep(start - now)


def retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header, which holds seconds or a date; None if it holds neither."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def run_concurrently(
    requests: Iterable[Asked],
    answer: Callable[[Asked], Awaitable[Answer]],
    limit: int,
    client: AbstractAsyncContextManager[Any],
) -> Iterator[Answer]:
    """`answer` of each request, in the order in which they come; at most `limit` run at once.

    They run in one event loop on a thread of its own: threads that block on a socket cannot be
    taken back after a Ctrl-C, tasks can. `requests` are drawn by the caller's thread and only as
    fast as answers are taken. When the iterator is closed, or anything raises, all that run are
    cancelled, and `client` is closed and the thread gone before that returns. The first exception
    of an `answer` is raised here, after the answers that came with it.
    """
    from anyio.from_thread import start_blocking_portal  # of the extra `caption`

    requests = iter(requests)
    running: set[Any] = set()
    with (
        start_blocking_portal(name=THREAD) as loop,
        loop.wrap_async_context_manager(client),
    ):
        try:
            while True:
                for request in itertools.islice(requests, limit - len(running)):
                    running.add(loop.start_task_soon(answer, request))
                if not running:
                    return
                done, running = futures.wait(running, return_when=futures.FIRST_COMPLETED)
                for future in sorted(done, key=lambda f: f.exception() is not None):
                    yield future.result()
        finally:
            for future in running:
                future.cancel()
