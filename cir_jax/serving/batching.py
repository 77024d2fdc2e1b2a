# SPDX-License-Identifier: Apache-2.0
"""Work of all connections, gathered onto the device: one batch at a time, by one thread."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from cir_jax.errors import UserError
from cir_jax.serving.numbers import Numbers

Run = Callable[[Sequence[Any]], Sequence[Any]]


@dataclass(eq=False)
class _Job:
    kind: Hashable
    run: Run
    item: Any
    done: asyncio.Future
    since: float = field(default_factory=time.perf_counter)


class Batches:
    """Gathers items of one kind into a batch.

    While a batch is on the device the next one gathers. When the device is free, a batch starts at
    once if all requests under way have come as far as here; else it waits up to `gather` seconds
    for those that are still being read or decoded.

    Args:
      most: items of a batch.
      gather: seconds, see above.
      under_way: how many requests that will come here are under way, those that wait here included.
      numbers: where sizes and times are noted.
    """

    def __init__(self, most: int, gather: float, under_way: Callable[[], int], numbers: Numbers):
        self._most, self._gather, self._under_way = most, gather, under_way
        self._numbers = numbers
        self._waiting: deque[_Job] = deque()
        self._running = 0
        self._came = asyncio.Event()
        self._device = ThreadPoolExecutor(1, thread_name_prefix="device")
        self._task: asyncio.Task | None = None

    def start(self) -> None:
        """Begins to work, in the running event loop."""
        self._task = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """Ends the work; what still waits is cancelled."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        for job in self._waiting:
            job.done.cancel()
        self._device.shutdown(wait=True, cancel_futures=True)

    async def result(self, kind: Hashable, run: Run, item: Any) -> Any:
        """What `run` gives for `item`, which may have shared its batch with others.

        A caller that is cancelled frees its place.

        Args:
          kind: items of equal kinds may share a batch; the `run` of the first one is called.
          run: items -> results, in the order of the items; called in the device's thread. If it
            raises UserError for several items, it is called for each alone.
          item: what it takes.

        Raises:
          Exception: what `run` raises.
        """
        job = _Job(kind, run, item, asyncio.get_running_loop().create_future())
        self._waiting.append(job)
        self._came.set()
        return await job.done

    async def alone(self, run: Callable[[], Any]) -> Any:
        """What `run` gives, called in the device's thread between two batches."""
        return await asyncio.get_running_loop().run_in_executor(self._device, run)

    def __len__(self) -> int:
        return len(self._waiting)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._came.clear()
            self._drop_cancelled()
            if not self._waiting:
                await self._came.wait()
                continue
            await self._gathered()
            batch = self._next_batch()
            if not batch:
                continue
            begun = time.perf_counter()
            for job in batch:
                self._numbers.waited(begun - job.since)
            self._numbers.batch(len(batch))
            items = [job.item for job in batch]
            results = await loop.run_in_executor(self._device, _each, batch[0].run, items)
            self._numbers.computed(time.perf_counter() - begun)
            for job, result in zip(batch, results, strict=True):
                if job.done.done():
                    continue
                if isinstance(result, BaseException):
                    job.done.set_exception(result)
                else:
                    job.done.set_result(result)

    async def _gathered(self) -> None:
        """Waits for requests that are on their way, see the class."""
        until = time.perf_counter() + self._gather
        while len(self._waiting) < min(self._most, self._under_way()):
            left = until - time.perf_counter()
            if left <= 0:
                return
            self._came.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._came.wait(), left)

    def _next_batch(self) -> list[_Job]:
        """Those at the head of the queue and others of their kind; the rest stays in order."""
        self._drop_cancelled()
        if not self._waiting:
            return []
        kind = self._waiting[0].kind
        batch: list[_Job] = []
        rest: deque[_Job] = deque()
        for job in self._waiting:
            (batch if job.kind == kind and len(batch) < self._most else rest).append(job)
        self._waiting = rest
        return batch

    def _drop_cancelled(self) -> None:
        if any(job.done.cancelled() for job in self._waiting):
            self._waiting = deque(job for job in self._waiting if not job.done.cancelled())


def _each(run: Run, items: Sequence[Any]) -> list[Any]:
    """The result of each item, or the exception that it raises: one is no fault of the others."""
    try:
        results = list(run(items))
        if len(results) != len(items):
            raise RuntimeError(f"{len(results)} results of {len(items)} items")
        return results
    except UserError as error:
        if len(items) == 1:
            return [error]
        return [result for item in items for result in _each(run, [item])]
    except Exception as error:
        return [error] * len(items)
