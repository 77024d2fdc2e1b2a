# SPDX-License-Identifier: Apache-2.0
"""Pace, backoff and giving up, on a clock that the test turns."""

import asyncio
import email.utils
import time

import pytest

from cir_jax.errors import UserError
from cir_jax.servers import retry
from cir_jax.servers.client import Refusals
from cir_jax.servers.retry import Backoff, RateLimit, TryAgain


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now

    async def sleep(self, seconds):
        self.now += seconds


@pytest.mark.parametrize("per_minute", [1, 7, 600])
def test_pace(per_minute):
    """No 60 seconds hold more starts, wherever they begin, and none are wasted."""
    clock, starts = Clock(), []
    pace = RateLimit(per_minute, clock, clock.sleep)

    async def run():
        for i in range(3 * per_minute):
            await pace.wait()
            starts.append(clock.now)
            clock.now += 0.02 * (i % 3)  # the request itself

    asyncio.run(run())
    for first in starts:
        assert sum(first <= s < first + 60 - 1e-6 for s in starts) <= per_minute
    assert starts[-1] - starts[0] == pytest.approx(60 * (3 - 1 / per_minute), abs=0.1)


def test_pace_of_many_at_once():
    """Requests in flight share one pace."""
    clock, naps = Clock(), []

    async def sleep(seconds):
        naps.append(seconds)

    pace = RateLimit(30, clock, sleep)

    async def run():
        await asyncio.gather(*(pace.wait() for _ in range(5)))

    asyncio.run(run())
    assert naps == [2.0, 4.0, 6.0, 8.0]


def test_no_limit():
    clock = Clock()
    asyncio.run(RateLimit(0, clock, clock.sleep).wait())
    assert clock.now == 1000.0


def test_backoff(said):
    """Doubles up to a limit, with jitter; each delay is told once, whoever comes with it."""
    clock = Clock()
    waits = Backoff("server X", 600, clock)
    for tries in range(1, 9):
        for _ in range(16):
            delay = waits.failure(TryAgain("connection refused"), tries)
            nominal = min(2.0 ** (tries - 1), 30)
            assert nominal <= delay <= 1.25 * nominal
        clock.now += nominal
    assert len(said) == 5 and all("server X: connection refused; trying again" in s for s in said)
    assert said[0].endswith(" 2 s") or said[0].endswith(" 3 s")
    clock.now += 2
    waits.success()
    assert said[-1] == "server X answers again, after 123 s" and waits.waited == 0
    waits.failure(TryAgain("refused"), 1)
    assert len(said) == 6


def test_isolated_failures_are_not_news(said):
    clock = Clock()
    waits = Backoff("server X", 600, clock)
    for _ in range(100):
        waits.failure(TryAgain("429"), 3)
        clock.now += 0.2
        waits.success()
    assert said == []


def test_gives_up():
    clock = Clock()
    waits = Backoff("server X", 50, clock)
    clock.now += 1000  # nothing was asked, so nothing failed
    waits.failure(TryAgain("refused"), 9)
    clock.now += 49
    assert not waits.exhausted
    assert waits.failure(TryAgain("refused"), 9) == pytest.approx(1)
    waits.success()
    clock.now += 49
    waits.failure(TryAgain("refused"), 9)
    clock.now += 50
    assert waits.exhausted
    with pytest.raises(UserError, match=r"server X has given no reply for 50 s; .*wait=50\. .*ref"):
        waits.failure(TryAgain("refused"), 9)


def test_retry_after(said):
    waits = Backoff("server X", 100, Clock())
    assert 20 <= waits.failure(TryAgain("429", after=20.0), 1) <= 25
    assert "429; trying again in 2" in said[0]
    assert waits.failure(TryAgain("429", after=0.0), 5) == 0
    with pytest.raises(UserError, match="asks to wait 101 s; the limit is wait=100"):
        waits.failure(TryAgain("429", after=101.0), 1)
    assert retry.retry_after("7") == 7 and retry.retry_after("-1") == 0
    date = email.utils.formatdate(time.time() + 500, usegmt=True)
    assert 400 < retry.retry_after(date) <= 500
    for unusable in (None, "", "soon", "nan", "inf"):
        assert retry.retry_after(unusable) is None


def test_refusals():
    all_fail = Refusals("model X", "take another")
    assert [all_fail.refused(w) for w in "ab"] == ["a", "b"]
    with pytest.raises(UserError, match=r"model X served none of the first 3 .*: c; take another"):
        all_fail.refused("c")
    some_fail = Refusals("model X", "")
    some_fail.success()
    assert [some_fail.refused(w) for w in "abcd"] == list("abcd")
