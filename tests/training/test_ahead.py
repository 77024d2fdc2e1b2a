# SPDX-License-Identifier: Apache-2.0
"""Batches that are placed before their step: how many, and what a checkpoint keeps of them."""

import threading
from contextlib import closing

import pytest

from cir_jax.errors import UserError
from cir_jax.training import ahead


class Numbers:
    """An iterator like Grain's over the numbers from 0; `drawn` is told of each before it is."""

    def __init__(self, fails=10**9):
        self.next, self._fails = 0, fails
        self.asked = [threading.Event() for _ in range(20)]

    def __next__(self):
        self.asked[self.next].set()
        if self.next == self._fails:
            raise UserError(f"batch {self.next} cannot be read")
        self.next += 1
        return {"x": self.next - 1}

    def get_state(self):
        return {"next_index": self.next}


def test_two_are_placed_and_the_state_is_that_of_the_one_taken():
    numbers, placed = Numbers(), []

    def place(rows):
        placed.append(rows["x"])
        return {"x": -rows["x"]}

    with closing(ahead.Ahead(numbers, place)) as inputs:
        assert not placed and not inputs.ready()  # nothing is read before it is asked for
        for taken in range(4):
            batch = inputs.take()
            assert batch.rows == {"x": taken} and batch.placed == {"x": -taken}
            assert batch.state == {"next_index": taken + 1}
            # One more is read, and waits for room.
            assert numbers.asked[taken + 1 + ahead.AHEAD].wait(60)
            assert placed == list(range(taken + 1 + ahead.AHEAD)) and inputs.ready()
    assert not inputs._thread.is_alive()
    assert placed == list(range(4 + ahead.AHEAD))


def test_an_error_comes_where_its_batch_is_asked_for():
    with closing(ahead.Ahead(Numbers(fails=2), dict)) as inputs:
        assert [inputs.take().rows["x"] for _ in range(2)] == [0, 1]
        with pytest.raises(UserError, match="batch 2 cannot be read"):
            inputs.take()
    assert not inputs._thread.is_alive()


def test_a_thread_that_was_never_needed():
    with closing(ahead.Ahead(Numbers(), dict)) as inputs:
        pass
    assert inputs._thread.ident is None
