# SPDX-License-Identifier: Apache-2.0
"""What an embedder is, and one whose answers are kept: nothing is asked for twice.

An embedder of others gives what it gives: its vectors are checked (one for each input, all of one
width, finite, not zero) and kept as float32, and it is noted what they came as.
"""

import itertools
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import ml_dtypes
import numpy as np
from filelock import Timeout
from numpy.typing import NDArray

from cir_jax import progress
from cir_jax.embedders.cache import Cache
from cir_jax.embedders.items import Item
from cir_jax.errors import ServerError, UserError
from cir_jax.runtime import watchdog

PROBE = "a photo of a red chair"  # is asked anew by each run that asks for anything
# Least cosine of the probe with what was kept: the same model in another batch or type of
# computation is above it, and other weights under its name are below.
SAME = 0.99
TELL = 32  # vectors of one wave from which on its cost is worth a line
WORTH = 5.0  # seconds of one, too
_LOOK = 5.0  # seconds between two looks at whether another process still asks
_DRAWN = 8  # items that are looked up at a time; their images are in memory
# Types that may hold all values of an answer exactly, from the coarsest.
_TYPES = (
    ("bfloat16", ml_dtypes.bfloat16), ("float16", np.float16), ("float32", np.float32),
    ("float64", np.float64),
)  # fmt: skip


@dataclass(frozen=True)
class Answered:
    """What came back for some items.

    Attributes:
      items: what was asked for.
      vectors: of each, as it came.
      encoding: how they were written, e.g. "JSON".
      tokens: that the embedder says it has read; None if it does not say.
      problem: why there is no vector of the only item; "" if there is.
    """

    items: Sequence[Item]
    vectors: Sequence[NDArray[np.floating[Any]]]
    encoding: str = ""
    tokens: int | None = None
    problem: str = ""


class Embedder(Protocol):
    """What makes vectors of items.

    Attributes:
      who: names it in messages, e.g. "server http://host:8000/v1".
      identity: what its vectors depend on beside the items; JSON.
      composes: whether it takes an image and a text together.
      tells: whether it takes a word of a system.
    """

    @property
    def who(self) -> str: ...
    @property
    def identity(self) -> Mapping[str, Any]: ...
    @property
    def composes(self) -> bool: ...
    @property
    def tells(self) -> bool: ...

    def answers(self, items: Iterable[Item]) -> Iterator[Answered]:
        """Vectors of all items, some at a time, in the order in which they come.

        An item of which it has none comes alone, with the problem.

        Raises:
          ServerError: it gives none.
        """
        ...


@dataclass
class Cost:
    """What was asked of an embedder in this process."""

    requests: int = 0
    vectors: int = 0
    images: int = 0
    texts: int = 0
    tokens: int | None = None
    seconds: float = 0.0

    def add(self, one: Answered) -> None:
        """Counts an answer."""
        self.requests += 1
        self.vectors += len(one.vectors)
        self.images += sum(bool(item.image) for item in one.items)
        self.texts += sum(item.kind != "image" for item in one.items)
        if one.tokens is not None:
            self.tokens = (self.tokens or 0) + one.tokens

    def words(self) -> str:
        """For people."""
        tokens = "" if self.tokens is None else f", {self.tokens:,} tokens"
        rate = self.vectors / max(self.seconds, 1e-9)
        return (
            f"{self.requests:,} requests with {self.images:,} images and {self.texts:,} texts"
            f"{tokens} in {self.seconds:,.1f} s ({rate:,.1f} vectors a second)"
        )


@dataclass
class Vectors:
    """An embedder whose answers are kept.

    Args:
      embedder: is asked for what is not there.
      cache: what is there.
      width: values of a vector; 0 is that of the first answer.

    Attributes:
      cost: of this process.
    """

    embedder: Embedder
    cache: Cache
    width: int = 0
    cost: Cost = field(default_factory=Cost)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _probed: bool = False
    _values: dict[str, str] = field(default_factory=dict)  # as they were noted
    _problems: dict[bytes, str] = field(default_factory=dict)  # by the key of an item

    def of(self, items: Iterable[Item]) -> list[NDArray[np.float32]]:
        """float32 [D] of each item.

        Raises:
          ServerError: the embedder gives what is no vector of this model.
          UserError: it has no vector for one of the items, which is named.
        """
        return self.rows(self.ask(items))

    def rows(self, keys: Sequence[bytes]) -> list[NDArray[np.float32]]:
        """float32 [D] of items that were asked for, by what `ask` returned; see `of`."""
        for key in keys:
            if key in self._problems:
                raise UserError(self._problems[key])
        found = self.cache.get(keys)
        if found:
            self._check_width(found[keys[0]])
        return [found[key] for key in keys]

    def ask(self, items: Iterable[Item], total: int = 0) -> list[bytes]:
        """Asks for whatever is not there yet; one thread of a machine does so at a time.

        Items are drawn as fast as they are answered, so that few of their images are in memory.
        What the embedder has no vector for is said by `rows`.

        Args:
          items: what is wanted.
          total: how many they are at most, for the progress bar.

        Returns:
          The key of each item.

        Raises:
          ServerError: see `of`.
        """
        keys: list[bytes] = []
        missing = self._missing(items, keys)
        first = next(missing, None)
        if first is None:
            return keys
        with self._lock, self._alone():
            self._probe()
            # Another thread or run may have asked for some of them since they were looked up.
            still = self._missing(itertools.chain([first], missing), [])
            self._ask(still, max(total, 1))
        return keys

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """While no other process of this machine asks for vectors of this model."""
        while True:
            try:
                self.cache.asking.acquire(timeout=_LOOK)
                break
            except Timeout:
                watchdog.progress()  # the other one is waited for, not hung
        try:
            yield
        finally:
            self.cache.asking.release()

    def _missing(self, items: Iterable[Item], keys: list[bytes]) -> Iterator[Item]:
        """The items that are not there, each once; `keys` gets those of all."""
        items, seen = iter(items), set[bytes]()
        while some := list(itertools.islice(items, _DRAWN)):
            these = [item.key() for item in some]
            keys += these
            seen |= self.cache.has(these) | self._problems.keys()
            for key, item in zip(these, some, strict=True):
                if key not in seen:
                    seen.add(key)
                    yield item

    def _ask(self, missing: Iterable[Item], total: int) -> None:
        began, before, wave = time.monotonic(), self.cost.seconds, Cost()
        try:
            with progress.counter(total, f"asking {self.embedder.who}") as bar:
                for one in self.embedder.answers(missing):
                    self._keep(one)
                    for cost in (self.cost, wave):
                        cost.add(one)
                    bar.update(len(one.items))
                    watchdog.progress()
        finally:
            wave.seconds = time.monotonic() - began
            self.cost.seconds = before + wave.seconds
        if wave.vectors >= TELL or wave.seconds >= WORTH:
            progress.say(f"{self.embedder.who}: {wave.words()}; kept in {self.cache.path}")

    def _keep(self, one: Answered) -> None:
        if one.problem:
            self._problems[one.items[0].key()] = one.problem
            return
        rows = [self._checked(*both) for both in zip(one.items, one.vectors, strict=True)]
        self._note(one)
        self.cache.put(dict(zip([item.key() for item in one.items], rows, strict=True)))

    def _probe(self) -> None:
        """Compares one vector of this run with that of the run that began the cache.

        Raises:
          ServerError: another model is served under the same name.
        """
        if self._probed:
            return
        item = Item(b"", "", PROBE, "", "text", "the probe")
        [one] = self.embedder.answers([item])
        self._probed = True
        if one.problem:  # an embedder of images alone
            return
        now, before = self._checked(item, one.vectors[0]), self.cache.get([item.key()])
        self.cost.add(one)
        self._note(one)
        if not before:
            self.cache.put({item.key(): now})
            return
        [then] = before.values()
        cosine = float(now @ then / (np.linalg.norm(now) * np.linalg.norm(then)))
        if cosine < SAME:
            raise ServerError(
                f"{self.embedder.who} gives another vector for one and the same text than it did "
                f"(cosine {cosine:.3f}): another model is served under that name, and what is kept "
                f"is not of it. Name another folder, model.cache, or delete {self.cache.path}"
            )

    def _checked(self, item: Item, vector: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        what = f"{self.embedder.who} gives for {item.name}"
        with np.errstate(over="ignore"):
            found = np.asarray(vector).astype(np.float32)
        self._check_width(found, what)
        if not np.isfinite(found).all():
            raise ServerError(
                f"{what} a vector with values that are no finite numbers; its weights are damaged, "
                "or of another type of computation (float16 where bfloat16 or float32 is needed)"
            )
        if not found.any():
            raise ServerError(
                f"{what} a vector of zeros, which is like nothing; look at the server's log, and "
                "at model.form: it may not read what it is sent"
            )
        return found

    def _check_width(self, row: NDArray[np.float32], what: str = "") -> None:
        if not self.width:
            self.width = self.cache.fact("width") or len(row)
            self.cache.note("width", self.width)
        if len(row) != self.width:
            what = what or f"kept in {self.cache.path} is"
            raise ServerError(
                f"{what} a vector of {len(row)} values, and the model has model.width={self.width};"
                f" name another model.tower, or set model.width={len(row)}"
            )

    def _note(self, one: Answered) -> None:
        """What answers came as: written how, and in which type no value of them is rounded."""
        types = [name for name, _ in _TYPES]
        found = max((types.index(exact_type(v)) for v in one.vectors), default=0)
        before = self._values or self.cache.fact("values") or {"type": types[0]}
        found = max(found, types.index(before["type"]))
        self._values = {"encoding": one.encoding, "type": types[found]}
        if self._values != before:
            self.cache.note("values", self._values)

    def facts(self) -> dict[str, Any]:
        """What is known of the vectors and of what they cost in this process; JSON."""
        return {
            **self.embedder.identity,
            "width": self.width,
            "values": self.cache.fact("values"),
            "requests": self.cost.requests,
            "images": self.cost.images,
            "texts": self.cost.texts,
            "tokens": self.cost.tokens,
            "seconds": round(self.cost.seconds, 2),
            "cache": str(self.cache.path),
        }


def exact_type(vector: NDArray[np.floating[Any]]) -> str:
    """The coarsest type that holds all values exactly.

    "float64" is what is written with decimals that float32 has not: it is rounded to float32 here.
    """
    for name, kind in _TYPES[:-1]:
        with np.errstate(over="ignore"):
            narrow = np.asarray(vector).astype(kind)
        if np.array_equal(narrow.astype(np.float64), np.asarray(vector, np.float64)):
            return name
    return _TYPES[-1][0]
