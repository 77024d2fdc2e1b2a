# SPDX-License-Identifier: Apache-2.0
"""What a server counts, for Prometheus: `/metrics`."""

from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client import generate_latest as _text

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Numbers:
    """Counters of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "cir_jax_requests", "Requests", ["route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "cir_jax_seconds",
            "Seconds by part: a request, its wait for a batch, a batch, and parts of a search",
            ["part"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._batches = Histogram(
            "cir_jax_batch_size", "Items of a batch", buckets=_SIZES, registry=self._registry
        )
        self._under_way = Gauge(
            "cir_jax_under_way", "Requests under way that need the device", registry=self._registry
        )
        self._queue = Gauge(
            "cir_jax_queue_length", "Items that wait for a batch", registry=self._registry
        )
        self._generation = Gauge(
            "cir_jax_index_generation", "Generation in use", ["index"], registry=self._registry
        )
        self._images = Gauge(
            "cir_jax_index_images", "Images of an index", ["index"], registry=self._registry
        )

    def watch(self, under_way: Callable[[], float], queue: Callable[[], float]) -> None:
        """Takes these numbers whenever they are asked for."""
        self._under_way.set_function(under_way)
        self._queue.set_function(queue)

    def request(self, route: str, status: int, seconds: float) -> None:
        """A request that has left; 499 is one whose client hung up."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels("request").observe(seconds)

    def waited(self, seconds: float) -> None:
        """Time of an item before its batch began."""
        self._seconds.labels("wait").observe(seconds)

    def computed(self, seconds: float) -> None:
        """Time of a batch in the device's thread."""
        self._seconds.labels("batch").observe(seconds)

    def part(self, name: str, seconds: float) -> None:
        """Time of a part of a search: encode, rank, fold."""
        self._seconds.labels(name).observe(seconds)

    def batch(self, size: int) -> None:
        """Items of a batch."""
        self._batches.observe(size)

    def index(self, name: str, generation: int, images: int) -> None:
        """What an index holds now."""
        self._generation.labels(name).set(generation)
        self._images.labels(name).set(images)

    def text(self) -> bytes:
        """All of it, in the format of Prometheus."""
        return _text(self._registry)
