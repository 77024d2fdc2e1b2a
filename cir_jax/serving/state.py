# SPDX-License-Identifier: Apache-2.0
"""What the routes of one server share."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Annotated, TypeVar

from fastapi import Depends, Request

from cir_jax.retrieval.clicks import Clicks
from cir_jax.serving.batching import Batches
from cir_jax.serving.guard import Load
from cir_jax.serving.numbers import Numbers
from cir_jax.serving.served import Served
from cir_jax.serving.settings import Settings
from cir_jax.serving.thumbnails import Thumbnails
from cir_jax.serving.uploads import Uploads

T = TypeVar("T")
_THREADS = 4  # that decode pictures: so many of the largest are in memory at a time


@dataclass
class State:
    """The parts of a server.

    Attributes:
      settings: limits.
      served: indexes.
      batches: the device.
      load: requests under way that need it.
      uploads: images that were sent.
      thumbnails: of the indexes' images.
      clicks: of each index by its name.
      numbers: what is counted.
      threads: for what takes long and needs no device.
    """

    settings: Settings
    served: Served
    batches: Batches
    load: Load
    uploads: Uploads
    thumbnails: Thumbnails
    clicks: dict[str, Clicks]
    numbers: Numbers
    threads: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(_THREADS, thread_name_prefix="pictures")
    )

    async def aside(self, work: Callable[..., T], *given: object) -> T:
        """`work(*given)`, while the server goes on with other requests."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, work, *given)


def _of(request: Request) -> State:
    return request.app.state.server


Here = Annotated[State, Depends(_of)]
