# SPDX-License-Identifier: Apache-2.0
"""Many requests at once, drawn lazily, none left behind.

They run in one event loop on a thread of its own. Threads that block on a socket cannot be taken
back after a Ctrl-C; tasks can.
"""

import asyncio
import contextlib
import itertools
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent import futures
from typing import Any, Protocol, TypeVar

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


class Closable(Protocol):
    """What must be closed inside the loop, such as an HTTP client."""

    async def aclose(self) -> None: ...


def in_flight(
    requests: Iterable[Asked],
    answer: Callable[[Asked], Awaitable[Answer]],
    many: int,
    client: Closable,
) -> Iterator[Answer]:
    """`answer` of each request, in the order in which they come; at most `many` run at once.

    `requests` are drawn by the caller's thread and only as fast as answers are taken. When the
    iterator is closed, or anything raises, all that run are cancelled, and `client` and the thread
    are gone before that returns. The first exception of an `answer` is raised here, after the
    answers that came with it.
    """
    requests, running = iter(requests), set()
    with _event_loop(client) as loop:
        while True:
            for request in itertools.islice(requests, many - len(running)):
                running.add(asyncio.run_coroutine_threadsafe(answer(request), loop))
            if not running:
                return
            done, running = futures.wait(running, return_when=futures.FIRST_COMPLETED)
            for future in sorted(done, key=lambda f: f.exception() is not None):
                yield future.result()


@contextlib.contextmanager
def _event_loop(client: Closable) -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="in flight", daemon=True)

    async def close() -> None:
        tasks: set[asyncio.Task[Any]] = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await client.aclose()
        await loop.shutdown_default_executor()

    thread.start()
    try:
        yield loop
    finally:
        asyncio.run_coroutine_threadsafe(close(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
