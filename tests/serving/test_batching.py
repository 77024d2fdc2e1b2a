# SPDX-License-Identifier: Apache-2.0
"""Many requests at once share batches, and no more are let in than there is room for."""

import asyncio
import threading

import pytest

from cir_jax.errors import UserError
from cir_jax.serving.batching import Batches
from cir_jax.serving.guard import Guard, Load
from cir_jax.serving.numbers import Numbers
from cir_jax.serving.refusals import Refusal
from cir_jax.serving.settings import Settings


class Device:
    """Notes its batches; holds the first until it is told to go on."""

    def __init__(self, held=True):
        self.batches, self.free, self.busy = [], threading.Event(), threading.Event()
        if not held:
            self.free.set()

    def __call__(self, items):
        self.batches.append(list(items))
        self.busy.set()
        assert self.free.wait(60)
        if "bad" in items:
            raise UserError("bad is bad")
        if "worse" in items:
            raise RuntimeError("worse")
        return [item * 2 for item in items]


def run(work):
    """`work(batches)` with batches of at most 4 that are at work."""

    async def all_of_it():
        batches = Batches(4, 0.0, lambda: 0, Numbers())
        batches.start()
        try:
            return await work(batches)
        finally:
            await batches.stop()

    return asyncio.run(all_of_it())


async def held(batches, device, first="first"):
    """A first item that is on the device; the task that waits for it."""
    task = asyncio.create_task(batches.result("a", device, first))
    while not device.busy.is_set():
        await asyncio.sleep(0.001)
    return task


def test_what_waits_while_the_device_works_becomes_one_batch():
    device = Device()

    async def work(batches):
        first = await held(batches, device)
        rest = [asyncio.create_task(batches.result("a", device, n)) for n in range(6)]
        other = asyncio.create_task(batches.result("b", device, "b"))
        await asyncio.sleep(0)
        assert len(batches) == 7
        device.free.set()
        return await asyncio.gather(first, *rest, other)

    assert run(work) == ["firstfirst", 0, 2, 4, 6, 8, 10, "bb"]
    assert device.batches == [["first"], [0, 1, 2, 3], [4, 5], ["b"]]


def test_one_that_is_bad_is_no_fault_of_the_others():
    device = Device()

    async def work(batches):
        first = await held(batches, device)
        rest = [asyncio.create_task(batches.result("a", device, n)) for n in (1, "bad", 3)]
        await asyncio.sleep(0)
        device.free.set()
        await first
        return await asyncio.gather(*rest, return_exceptions=True)

    one, bad, three = run(work)
    assert (one, three) == (2, 6) and isinstance(bad, UserError)


def test_results_that_are_too_few_are_a_defect_and_the_work_goes_on():
    async def work(batches):
        with pytest.raises(RuntimeError, match="0 results of 1 items"):
            await batches.result("a", lambda items: [], 1)
        return await batches.result("a", Device(held=False), "x")

    assert run(work) == "xx"


def test_a_defect_reaches_all_of_a_batch_and_the_next_one_is_answered():
    device = Device(held=False)

    async def work(batches):
        with pytest.raises(RuntimeError, match="worse"):
            await batches.result("a", device, "worse")
        return await batches.result("a", device, "x")

    assert run(work) == "xx"


def test_who_gives_up_frees_its_place():
    device = Device()

    async def work(batches):
        first = await held(batches, device)
        gone = asyncio.create_task(batches.result("a", device, "gone"))
        stays = asyncio.create_task(batches.result("a", device, "stays"))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        device.free.set()
        return await asyncio.gather(first, stays)

    assert run(work)[1] == "staysstays"
    assert device.batches == [["first"], ["stays"]]


def test_others_that_are_on_their_way_are_waited_for():
    device = Device(held=False)

    async def all_of_it():
        batches = Batches(4, 60.0, lambda: 2, Numbers())
        batches.start()
        one = asyncio.create_task(batches.result("a", device, 1))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not device.batches  # a second one is under way
        two = asyncio.create_task(batches.result("a", device, 2))
        await asyncio.gather(one, two)
        await batches.stop()

    asyncio.run(all_of_it())
    assert device.batches == [[1, 2]]


def through_guard(app, disconnects=False, **settings):
    """(status, headers) that a POST to /search gets through a guard before `app`, and its load."""
    load = Load(Settings(**settings).queue)
    load.ready = True
    sent = []

    async def receive():
        if not receive.asked:
            receive.asked = True
            return {"type": "http.request", "body": b"{}", "more_body": False}
        if disconnects:
            return {"type": "http.disconnect"}
        await asyncio.Event().wait()

    receive.asked = False

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/search", "client": ("1.2.3.4", 5),
        "headers": [(b"host", b"localhost")],
    }  # fmt: skip
    lines = []
    guard = Guard(app(load), Settings(**settings), Numbers(), load, lines.append)
    asyncio.run(asyncio.wait_for(guard(scope, receive, send), 20))
    start = [message for message in sent if message["type"] == "http.response.start"]
    return start[0] if start else None, load, lines


def waits_forever(load):
    async def app(scope, receive, send):
        while (await receive()).get("more_body"):
            pass
        assert load.count == 1
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            waits_forever.cancelled = True
            raise

    waits_forever.cancelled = False
    return app


def test_a_client_that_hangs_up_frees_its_place():
    start, load, lines = through_guard(waits_forever, disconnects=True, timeout=3600)
    assert start is None and load.count == 0 and waits_forever.cancelled
    assert '"status": 499' in lines[0]


def test_an_answer_that_takes_too_long():
    start, load, _ = through_guard(waits_forever, timeout=0.01)
    assert start["status"] == 503 and load.count == 0 and waits_forever.cancelled
    assert (b"retry-after", b"1") in start["headers"]


def test_there_is_no_room_beyond_the_queue():
    load = Load(2)
    load.ready = True
    first, second = load.enter(), load.enter()
    with pytest.raises(Refusal) as refused:
        load.enter()
    assert refused.value.status_code == 503 and refused.value.headers["Retry-After"]
    first()
    first()  # it has one place to give back
    assert load.count == 1
    load.enter()
    second()
    assert load.count == 1


def test_a_full_queue_is_told_before_the_body_is_read():
    def never(load):
        load.count = load.most

        async def app(scope, receive, send):
            raise AssertionError("it was let in")

        return app

    start, _, _ = through_guard(never, queue=3)
    assert start["status"] == 503
