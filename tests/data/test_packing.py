# SPDX-License-Identifier: Apache-2.0
"""Packed texts: each once and whole, hardly a place is empty, sizes are few, hosts agree."""

import itertools

import numpy as np
import pytest

from cir_jax.data import loader, packing, pipeline, tokens
from cir_jax.data.triplets import Triplet, TripletSet
from tests import runs
from tools.benchmarks.stage2_models import texts as texts_of

START, END = 49406, 49407
LENGTHS = (16, 24, 32, 48, 77)


def made(lengths, seed=0):
    """Texts of so many tokens, start and end included."""
    rng = np.random.default_rng(seed)
    return [
        np.asarray([START, *rng.integers(1, START, max(n - 2, 0)), END][-n:], np.int32)
        for n in lengths
    ]


def table(texts):
    start = np.concatenate([[0], np.cumsum([len(text) for text in texts])])
    return tokens.TokenTable(np.concatenate(texts), start, 77, 0)


def packed(texts, shares, known=None):
    sizes = packing.Sizes.of(table(known or texts), len(texts), shares, LENGTHS)
    return packing.pack(texts, sizes, 0)


CASES = {
    "some": list(range(3, 35)),
    "all equal": [15] * 32,
    "of one token": [1] * 32,
    "at the context": [77] * 8,
    "one long, many short": [77] + [3] * 31,
    "one at the context, one of one token": [77, 1, 9, 40, 76, 1, 1, 20],
}


@pytest.mark.parametrize("shares", [1, 2, 8])
@pytest.mark.parametrize("lengths", CASES.values(), ids=CASES)
def test_every_text_is_there_once_and_whole(lengths, shares):
    texts = made(lengths)
    found = packed(texts, shares)
    rows, length = found.tokens.shape
    each = rows // shares
    assert found.end.shape == (shares, len(texts) // shares)
    assert sorted(found.order.tolist()) == list(range(len(texts)))
    free = found.segment < 0
    assert (found.tokens[free] == 0).all() and (found.position[free] == 0).all()
    assert (~free).sum() == sum(lengths)
    seen = set()
    for text, place in zip(texts, found.order.tolist(), strict=True):
        share = place // found.end.shape[1]
        row, last = divmod(int(found.end.reshape(-1)[place]), length)
        assert row < each  # none lies on another device than its share
        row += share * each
        own = found.segment[row] == found.segment[row, last]
        assert found.tokens[row, own].tolist() == text.tolist()
        assert found.position[row, own].tolist() == list(range(len(text)))
        assert found.tokens[row, last] == END and last == np.flatnonzero(own)[-1]
        seen.add((row, found.segment[row, last]))
    assert len(seen) == len(texts)


def test_a_text_is_read_at_its_first_end():
    """As a padded one is: a text may have the words of a start or an end in it."""
    text = np.asarray([START, 5, END, START, 6, END], np.int32)
    found = packed([*made([4, 4]), text, *made([4])], 2)
    place = int(found.end.reshape(-1)[found.order[2]])
    share = int(found.order[2]) // 2
    tokens_of_share = found.tokens.reshape(2, -1)[share]
    assert tokens_of_share[place - 2 : place + 4].tolist() == text.tolist()


@pytest.mark.parametrize("shares", [1, 8])
@pytest.mark.parametrize("batch", [32, 256])
@pytest.mark.parametrize("kind", texts_of.KINDS)
def test_nine_of_ten_places_are_taken_and_sizes_are_few(kind, batch, shares):
    found = texts_of.packed(kind, batch, shares)
    assert found.real >= 0.9
    assert len(found.shapes) <= 4, found.shapes  # each is a program of its own
    assert max(length for _, length in found.shapes) <= packing.ROW


def test_sizes_are_those_of_the_data_not_of_the_order_of_batches():
    sizes = packing.Sizes.of(table(made([10, 14] * 50)), 32, 1, LENGTHS)
    assert sizes.usual == 32 * 12 + int(2 * np.sqrt(32 * 4)) + 1
    ladder = [sizes.least(n) for n in range(1, 3 * sizes.usual)]
    assert all(a >= n for n, a in enumerate(ladder, start=1))
    assert ladder == sorted(ladder) and sizes.least(sizes.usual) == sizes.usual
    # From one to the next it is never more than a step, and a token for the fraction.
    for a, b in itertools.pairwise(ladder):
        assert b <= a * packing.STEP[0] / packing.STEP[1] + 2


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    runs.write_image(folder / "a.png", (9, 9, 9))
    runs.write_image(folder / "b.png", (9, 9, 9), seed=1)
    words = ("red " * (1 + i % 12) for i in range(40))
    triplets = tuple(Triplet("a", "b", (text,), text, "mine", text) for text in words)
    paths = {name: str(folder / f"{name}.png") for name in "ab"}
    return pipeline.prepare([TripletSet("mine", triplets, paths)], tokens.load("clip"))


def drawn(data, **changes):
    options = {"batch": 16, "seed": 1, "fields": ("text",), "shares": 8}
    return next(pipeline.batches(data, loader.Options(**(options | changes))))


def test_processes_have_the_shares_of_their_rows(data):
    """Of one packed batch, whatever rows a process has; put together they are all of it."""
    whole = drawn(data)
    padded = drawn(data, shares=0)
    for text_id, place in zip(whole["text_id"], whole["text"].order, strict=True):
        share, last = place // 2, whole["text"].end.reshape(-1)[place]
        count = int(data.tokens.lengths[text_id])
        row = whole["text"].tokens.reshape(8, -1)[share]
        assert row[last + 1 - count : last + 1].tolist() == data.tokens.texts([text_id])[0].tolist()
    for rows in ([0, 1, 2, 3], [4, 5, 8, 9, 14, 15], list(range(16))):
        part = drawn(data, rows=rows)
        np.testing.assert_array_equal(part["text_id"], padded["text_id"][rows])
        shares = np.asarray(rows[::2]) // 2
        want = whole["text"].of(shares)
        for name in ("tokens", "position", "segment", "end", "order"):
            np.testing.assert_array_equal(getattr(part["text"], name), getattr(want, name))
        split = whole["text"].tokens.reshape(8, -1, whole["text"].tokens.shape[1])[shares]
        np.testing.assert_array_equal(part["text"].tokens, split.reshape(-1, split.shape[-1]))
        np.testing.assert_array_equal(part["text"].order, whole["text"].order[rows])


@pytest.mark.parametrize("rows", [[0, 2], [1, 2], [0, 1, 2]])
def test_rows_that_are_no_whole_shares(data, rows):
    with pytest.raises(ValueError, match=r"no whole shares of 2 rows, as each of 8 devices"):
        drawn(data, rows=rows)
