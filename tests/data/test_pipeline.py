# SPDX-License-Identifier: Apache-2.0
"""Batches: one order for any number of processes, exact resume, text lengths, exclusions."""

import itertools

import numpy as np
import pytest

from cir_jax.data import loader, pipeline, tokens
from cir_jax.data.triplets import Triplet, TripletSet
from cir_jax.errors import UserError
from tests import runs


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    paths = {}
    for i in range(12):
        paths[f"i{i}"] = str(folder / f"i{i}.png")
        runs.write_image(folder / f"i{i}.png", (9, 9, 9), seed=i)
    human = tuple(
        Triplet(f"i{i}", f"i{i + 1}", ("short", "a text " * (1 + 3 * i)), "short", "human", str(i))
        for i in range(8)
    )
    made = tuple(
        Triplet(f"i{i}", f"i{i + 4}", ("short",), "short", "made", str(i)) for i in range(6)
    )
    sets = [TripletSet("human", human, paths), TripletSet("made", made, paths)]
    return pipeline.prepare(sets, tokens.load("clip"))


def options(**changes):
    return loader.Options(**({"batch": 4, "seed": 1, "fields": ("text",)} | changes))


def take(iterator, count):
    return list(itertools.islice(iterator, count))


def equal(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


def test_prepare_numbers_everything(data):
    assert data.images.names[:3] == ("i0", "i1", "i2") and len(data.images) == 10
    assert data.sources == ("human", "made") and data.source_of.tolist() == [0] * 8 + [1] * 6
    assert data.text_start[-1] == 22 == len(data.tokens)
    assert data.reference_id[8:].tolist() == [0, 1, 2, 3, 4, 5]
    assert data.triplet_of_text()[:4].tolist() == [0, 0, 1, 1]


def test_epochs_cover_and_differ(data):
    drawn = take(pipeline.batches(data, options(batch=7)), 4)
    epochs = [np.concatenate([b["text_id"] for b in drawn[i : i + 2]]) for i in (0, 2)]
    triplets = [data.triplet_of_text()[e] for e in epochs]
    assert all(sorted(t) == list(range(14)) for t in triplets)
    assert triplets[0].tolist() != triplets[1].tolist()
    equal(drawn[0], next(pipeline.batches(data, options(batch=7))))
    other = next(pipeline.batches(data, options(batch=7, seed=2)))
    assert other["text_id"].tolist() != drawn[0]["text_id"].tolist()


def test_every_text_is_drawn(data):
    drawn = np.concatenate([b["text_id"] for b in take(pipeline.batches(data, options()), 60)])
    assert set(drawn.tolist()) == set(range(22))


@pytest.mark.parametrize("mixing", ["concatenate", "weights"])
def test_any_number_of_processes_draws_the_same(data, mixing):
    chosen = {"mixing": mixing, "weights": (0.5, 0.5)}
    whole = take(pipeline.batches(data, options(**chosen)), 5)
    # Rows of two and of four processes; of two whose devices alternate, and of uneven ones.
    for shares in ([[0, 1], [2, 3]], [[0], [1], [2], [3]], [[0, 2], [1, 3]], [[1], [0, 2, 3]]):
        parts = [take(pipeline.batches(data, options(rows=r, **chosen)), 5) for r in shares]
        order = np.argsort(np.concatenate(shares))
        for step, batch in enumerate(whole):
            joined = {k: np.concatenate([p[step][k] for p in parts])[order] for k in batch}
            equal(batch, joined)


def test_resume_on_another_number_of_processes(data):
    first = pipeline.batches(data, options())
    take(first, 3)
    state = first.get_state()
    later = take(first, 3)
    for rows in ([0, 1], [2, 3], [0, 3]):
        resumed = pipeline.batches(data, options(rows=rows))
        resumed.set_state(state)
        for batch, part in zip(later, take(resumed, 3), strict=True):
            equal({k: v[rows] for k, v in batch.items()}, part)


def test_text_is_cut_to_the_longest_of_the_global_batch(data):
    for batch in take(pipeline.batches(data, options()), 20):
        longest = data.tokens.lengths[batch["text_id"]].max()
        assert batch["text"].shape[1] == tokens.fit(longest, 77, (16, 24, 32, 48))
    full = next(pipeline.batches(data, options(cut_padding=False)))
    assert full["text"].shape == (4, 77)


def test_mixing_by_weights(data):
    chosen = options(mixing="weights", weights=(0.25, 0.75))
    drawn = np.concatenate([b["source_id"] for b in take(pipeline.batches(data, chosen), 60)])
    assert drawn.mean() == pytest.approx(0.75, abs=0.08)
    with pytest.raises(UserError, match=r"data.weights=\(\) for 2 sources \(human, made\)"):
        pipeline.batches(data, options(mixing="weights"))


def test_weights_leave_no_triplet_out(data):
    """Each source is passed through in whole, however many batches that takes."""
    chosen = options(mixing="weights", weights=(3, 1))
    drawn = [data.triplet_of_text()[b["text_id"]] for b in take(pipeline.batches(data, chosen), 48)]
    drawn = np.concatenate(drawn)
    for first, count in ((0, 8), (8, 6)):
        of_source = drawn[(drawn >= first) & (drawn < first + count)]
        passes = of_source[: len(of_source) // count * count].reshape(-1, count)
        assert len(passes) >= 7
        assert all(sorted(p) == list(range(first, first + count)) for p in passes)
    assert len({p.tobytes() for p in passes}) > 1


@pytest.mark.parametrize("weights", [(0, 1), (-1, 2), (float("nan"), 1), (float("inf"), 1)])
def test_bad_weights(data, weights):
    with pytest.raises(UserError, match="a weight is above 0 and finite"):
        pipeline.batches(data, options(mixing="weights", weights=weights))


def test_exclusions(data):
    fields = ("text", "exclude_id")
    batch = next(pipeline.batches(data, options(fields=fields, exclude_reference=True)))
    np.testing.assert_array_equal(batch["exclude_id"][:, 0], batch["reference_id"])
    many = options(fields=fields, exclude_positives=True, batch=14)
    for batch in take(pipeline.batches(data, many), 3):
        for text_id, excluded in zip(batch["text_id"], batch["exclude_id"], strict=True):
            triplet = data.triplets[data.triplet_of_text()[text_id]]
            text = [t for x in data.triplets for t in x.texts][text_id]
            others = {
                data.images.row_of[t.target]
                for t in data.triplets
                if t.reference == triplet.reference and text in t.texts
            }
            assert set(excluded.tolist()) - {-1} == others


def test_pixels_are_those_of_their_rows(data):
    def preprocess(path):
        return np.full((2, 2, 3), int(path.split("/i")[-1][:-4]), np.uint8)

    chosen = options(fields=(*loader.PIXELS, "text"), threads=1)
    for batch in take(pipeline.batches(data, chosen, loader.Sources(preprocess)), 12):
        for side in ("reference", "target"):
            assert batch[f"{side}_pixels"].shape == (4, 2, 2, 3)
            names = [f"i{n}" for n in batch[f"{side}_pixels"][:, 0, 0, 0]]
            assert data.images.rows(names).tolist() == batch[f"{side}_id"].tolist()


def test_errors(data, tmp_path):
    with pytest.raises(UserError, match="batch 0 is below 1"):
        pipeline.batches(data, options(batch=0))
    with pytest.raises(UserError, match="batch 15 is larger than the 14 triplets"):
        pipeline.batches(data, options(batch=15))
    for rows in ([], [0, 5], [-1]):
        with pytest.raises(ValueError, match=r"are no rows of a batch of 5"):
            pipeline.batches(data, options(batch=5, rows=rows))
    with pytest.raises(UserError, match=r"data.mixing='wieghts'"):
        pipeline.batches(data, options(mixing="wieghts"))
    with pytest.raises(UserError, match="no triplet to train on"):
        pipeline.prepare([], tokens.load("clip"))
    lost = {"a": str(tmp_path / "a.png"), "b": str(tmp_path / "b.png")}
    one = [TripletSet("human", (Triplet("a", "b", ("x",), "x", "human", "0"),), lost)]
    with pytest.raises(UserError, match=r"2 of 2 images cannot be used .2 missing.: .*a.png"):
        pipeline.prepare(one, tokens.load("clip"))
    for name in "ab":
        runs.write_image(tmp_path / f"{name}.png", (9, 9, 9))
    long = [TripletSet("human", (Triplet("a", "b", ("x " * 90,), "x", "human", "7"),), lost)]
    with pytest.raises(UserError, match="human triplet 7: 92 tokens, the limit is 77"):
        pipeline.prepare(long, tokens.load("clip"))
