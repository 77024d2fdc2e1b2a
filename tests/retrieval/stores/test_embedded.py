# SPDX-License-Identifier: Apache-2.0
"""The embedded store against the formula of a score, written out in numpy."""

import threading
from types import SimpleNamespace

import jax
import numpy as np
import pyarrow
import pytest

from cir_jax.errors import UserError
from cir_jax.retrieval import candidates, tables
from cir_jax.retrieval.search import where
from cir_jax.retrieval.search.asking import Terms
from cir_jax.retrieval.stores import embedded
from cir_jax.retrieval.tables import Rows
from cir_jax.runtime import mesh as meshes

SIZES = (700, 3, 1, 430)  # images of the segments


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of 256 to 16 images on each device, and no questions that are scored at once."""
    monkeypatch.setattr(tables, "_BLOCK_VALUES_CPU", 2**11)
    monkeypatch.setattr(tables, "_LEAST_VALUES", 2**7)
    monkeypatch.setattr(candidates, "_WIDENED_VALUES_CPU", 2**9)
    monkeypatch.setattr(embedded, "_FEW_VALUES", 40)


def mesh(devices=1):
    return meshes.make(devices, 1, jax.devices()[:devices])


def draw(each=1, width=8, dtype=np.float32, seed=0, whole=True):
    """Rows of the segments. Whole numbers tie often, and sum up alike in any order."""
    rng = np.random.default_rng(seed)
    found = []
    for size in SIZES:
        shape = (size, each, width)
        if dtype == np.int8:
            scales = rng.choice([0.25, 0.5, 1.0], shape[:2]).astype(np.float32)
            found.append(Rows(rng.integers(-2, 3, shape).astype(np.int8), scales))
        elif whole:
            found.append(Rows(rng.integers(-2, 3, shape).astype(dtype)))
        else:
            found.append(Rows(rng.normal(size=shape).astype(dtype)))
    return found


class Case:
    """A store, and the rows of its images in the order of their ids."""

    def __init__(self, segments, seed=0, dead=0, devices=1, shuffled=True, **options):
        rng = np.random.default_rng(seed)
        number = np.repeat(np.arange(len(segments)) * 3, [len(s.rows) for s in segments])
        row = np.concatenate([np.arange(len(s.rows)) for s in segments])
        kept = rng.permutation(len(row)) if shuffled else np.arange(len(row))
        kept = kept[dead:]
        widened = [s.taken(np.arange(len(s.rows))) for s in segments]
        self.rows = np.concatenate(widened)[kept]
        self.ids = np.sort(rng.choice(10 * len(row), len(kept), replace=False))
        self.fields = pyarrow.table(
            {"price": rng.integers(0, 100, len(kept)), "kind": rng.choice(["a", "b"], len(kept))}
        )
        self.store = embedded.Store(
            {3 * i: s for i, s in enumerate(segments)},
            self.ids, number[kept], row[kept], self.fields,
            shape=segments[0].rows.shape[1:], mesh=mesh(devices), **options,
        )  # fmt: skip

    def condition(self, text):
        return where.parse(text, where.kinds(self.fields.schema))

    def want(self, terms, k):
        """(ids, scores) of the best k by the formula."""
        products = np.einsum("pd,nkd->npk", terms.vectors.astype(float), self.rows).max(axis=2)
        score = np.zeros(len(self.rows))
        for group, weight in enumerate(terms.weights):
            score += weight * products[:, terms.groups == group].max(axis=1)
        keep = ~np.isin(self.ids, list(terms.leave_out))
        if terms.where is not None:
            keep &= terms.where.mask(self.fields)
        score, ids = score[keep].astype(np.float32), self.ids[keep]
        order = np.argsort(-score, kind="stable")[:k]
        empty = k - len(order)
        ids = np.concatenate([ids[order], np.full(empty, -1)])
        return ids, np.concatenate([score[order], np.full(empty, -np.inf, np.float32)])

    def check(self, queries, k):
        ids, scores = self.store.top(queries, k)
        assert ids.dtype == np.int64 and scores.dtype == np.float32
        for terms, *found in zip(queries, ids, scores, strict=True):
            want = self.want(terms, k)
            np.testing.assert_array_equal(found[0], want[0])
            np.testing.assert_array_equal(found[1], want[1])


def folded(rng, width=8, whole=True, **options):
    vector = rng.integers(-2, 3, (1, width)) if whole else rng.normal(size=(1, width))
    return Terms(
        vector.astype(np.float32), np.zeros(1, np.int32), np.ones(1, np.float32), **options
    )


def grouped(rng, sizes, width=8, **options):
    groups = np.repeat(np.arange(len(sizes)), sizes).astype(np.int32)
    weights = rng.choice([1.0, 0.5, -0.5, -2.0], len(sizes)).astype(np.float32)
    vectors = rng.integers(-2, 3, (len(groups), width)).astype(np.float32)
    return Terms(vectors, groups, weights, **options)


@pytest.mark.parametrize(
    "each, devices, dtype",
    [(1, 1, np.float32), (3, 1, np.float16), (1, 8, np.int8), (3, 8, np.float32)],
)
def test_the_best_are_those_of_the_formula(each, devices, dtype):
    case, rng = Case(draw(each, dtype=dtype), dead=50, devices=devices), np.random.default_rng(1)
    case.check([folded(rng)], 1)
    queries = [folded(rng) for _ in range(11)]
    for number in range(1, 11, 2):
        queries[number] = grouped(rng, [(1,), (2, 3, 1), (1, 5)][number % 3])
    case.check(queries, 10)


@pytest.mark.parametrize("devices, whole", [(8, True), (1, False)])
def test_from_one_image_to_all_and_beyond(devices, whole):
    case = Case(draw(whole=whole), dead=30, devices=devices)
    queries = [folded(np.random.default_rng(2), whole=whole) for _ in range(2)]
    for k in (100, len(case.store) + 5):
        case.check(queries, k)


@pytest.mark.parametrize("devices", [1, 8])
def test_conditions_and_what_is_left_out(devices):
    case, rng = Case(draw(), dead=10, devices=devices), np.random.default_rng(3)
    some, few, none = (case.condition(f"price < {n} and kind = 'a'") for n in (60, 1, -1))
    first, _ = case.store.top([folded(np.random.default_rng(9))], 30)
    queries = [
        folded(rng),
        folded(rng, where=some),
        folded(rng, where=few),
        folded(rng, where=none),
        folded(rng, where=case.condition("price >= 50")),
        folded(np.random.default_rng(9), where=some, leave_out=frozenset(first[0].tolist())),
        folded(rng, leave_out=frozenset(case.ids[5:].tolist())),  # five images are left
        folded(rng, leave_out=frozenset([-1, 10**9])),  # no images
    ]
    case.check(queries, 10)
    for clause in (None, some, few, none):
        want = len(case.ids) if clause is None else clause.mask(case.fields).sum()
        assert case.store.count(clause) == want


def test_equal_rows_tie_wherever_they_lie_and_whoever_asks_beside():
    """Rows that are no whole numbers: a product of matrices gives them other last bits."""
    segments = draw(width=37, whole=False)
    copies = [(0, 3), (0, 699), (1, 2), (2, 0), (3, 0), (3, 213), (3, 429)]
    for part, row in copies[1:]:
        segments[part].rows[row] = segments[0].rows[3]
    case, rng = Case(segments, shuffled=False), np.random.default_rng(4)
    starts = np.cumsum([0, *SIZES])
    want = case.ids[[starts[part] + row for part, row in copies]]
    near = Terms(segments[0].rows[3].copy(), np.zeros(1, np.int32), np.ones(1, np.float32))
    others = [folded(rng, 37, whole=False) for _ in range(8)]
    alone_ids, alone = case.store.top([near], 20)
    beside_ids, beside = case.store.top([*others, near], 20)
    np.testing.assert_array_equal(alone_ids[0], beside_ids[-1])
    np.testing.assert_array_equal(alone[0], beside[-1])
    np.testing.assert_array_equal(alone_ids[0, : len(copies)], want)
    assert len(np.unique(alone[0, : len(copies)])) == 1
    ids, _ = case.store.top([near], 3)  # the first of those that tie, not any
    np.testing.assert_array_equal(ids[0], want[:3])


def test_a_block_of_nothing_but_the_best_is_asked_again():
    segments = draw(width=8)
    segments[0].rows[100:400] = 2
    case = Case(segments, shuffled=False)
    query = Terms(np.ones((1, 8), np.float32), np.zeros(1, np.int32), np.ones(1, np.float32))
    case.check([query], 5)
    case.check([query], 350)


def test_scores_near_to_each_other_are_told_apart():
    """Their differences are smaller than what a product in float32 may be off."""
    rng = np.random.default_rng(5)
    segments, query = draw(width=64, whole=False), rng.normal(size=(1, 64)).astype(np.float32)
    for part in segments:
        wanted = 3 + 5e-7 * rng.integers(-40, 40, part.rows.shape[:2])
        part.rows[..., 0] += (wanted - part.rows.astype(float) @ query[0]) / query[0, 0]
    case = Case(segments)
    terms = Terms(query, np.zeros(1, np.int32), np.ones(1, np.float32))
    assert len(set(case.want(terms, 100)[1])) > 3
    case.check([terms], 100)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_rows_that_are_no_numbers_come_last(bad):
    segments = draw()
    segments[0].rows[5] = bad
    segments[3].rows[7, 0, 2] = bad
    case = Case(segments, shuffled=False)
    query = Terms(np.ones((1, 8), np.float32), np.zeros(1, np.int32), np.ones(1, np.float32))
    broken = case.ids[[5, sum(SIZES[:3]) + 7]]
    ids, scores = case.store.top([query], 10)
    assert not np.isin(broken, ids).any() and np.isfinite(scores).all()
    ids, scores = case.store.top([query], len(case.store) + 1)
    np.testing.assert_array_equal(ids[0, -3:-1], broken)
    np.testing.assert_array_equal(scores[0, -3:], -np.inf)
    assert ids[0, -1] == -1 and np.isfinite(scores[0, :-3]).all()


def test_lengths_of_questions_do_not_matter():
    """Scaled by a power of two, so far that products would overflow or vanish."""
    case, rng = Case(draw(whole=False)), np.random.default_rng(6)
    one = grouped(rng, (1, 2))
    want, _ = case.store.top([one], 20)
    for scale in (2.0**100, 2.0**-100):
        vectors = one.vectors * np.float32(scale)
        ids, scores = case.store.top([Terms(vectors, one.groups, one.weights)], 20)
        np.testing.assert_array_equal(ids, want)
        assert np.isfinite(scores).all()
    zeros = Terms(np.zeros((1, 8), np.float32), np.zeros(1, np.int32), np.ones(1, np.float32))
    case.check([zeros], 5)


def test_rows_that_do_not_fit_the_devices_are_sent_for_each_batch():
    segments, rng = draw(2), np.random.default_rng(7)
    case = Case(segments, dead=20)
    table = tables.Table(segments, mesh(), room=9_000)
    held = [isinstance(block.rows, jax.Array) for block in table.blocks]
    assert any(held) and not all(held)
    case.store._table = table
    case.check([folded(rng), grouped(rng, (2, 1))], 10)


def test_an_approximate_ranking_is_exact_on_a_cpu():
    """`approx_max_k` itself too, which is what other devices run."""
    segments, rng = draw(), np.random.default_rng(8)
    query = folded(rng, whole=False)
    segments[0].rows[256:356] = 2 * np.sign(query.vectors)  # all of the best, in one block
    case = Case(segments, shuffled=False)
    for exact in (True, False):
        ids, _ = case.store.top([query], 12, exact=exact)
        np.testing.assert_array_equal(ids[0], case.want(query, 12)[0])
    positions = candidates.find(case.store._on_devices(), [query], [100], recall=0.9)
    assert len(positions[0]) < 130
    assert set(case.want(query, 100)[0]) <= set(case.store._at[positions[0]])
    with pytest.raises(UserError, match=r"recall=1\.5; give a share above 0, at most 1"):
        Case(segments, recall=1.5)


def test_an_index_says_what_an_approximate_ranking_aims_at():
    none = np.zeros(0, np.int64)
    catalogue = SimpleNamespace(ids=none, segment=none, row=none, table=pyarrow.table({}))
    index = SimpleNamespace(
        segments=(), catalogue=catalogue, rows_per_image=1, embedding=8, recall=1.5
    )
    with pytest.raises(UserError, match=r"recall=1\.5; give a share above 0, at most 1"):
        embedded.opened(index)
    index.recall = 0.5
    assert embedded.opened(index)._recall == 0.5


def test_rows_of_images():
    case = Case(draw(3, dtype=np.int8), dead=5)
    chosen = np.random.default_rng(1).integers(0, len(case.ids), 40)
    found = case.store.rows(case.ids[chosen])
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, case.rows[chosen])
    assert case.store.rows([]).shape == (0, 3, 8)
    gap = next(i for i in range(10**6) if i not in case.ids)
    for unknown in (gap, -1, 10**12):
        with pytest.raises(UserError, match=f"no image of this index has the id {unknown}"):
            case.store.rows([case.ids[0], unknown])


def test_an_empty_index_finds_nothing():
    empty = np.zeros(0, np.int64)
    query = folded(np.random.default_rng(0))
    gone = embedded.Store({0: draw()[0]}, empty, empty, empty, shape=(1, 8), mesh=mesh())
    for store in (embedded.Store({}, empty, empty, empty, shape=(1, 8)), gone):
        ids, scores = store.top([query], 3)
        assert ids.tolist() == [[-1] * 3] and scores.tolist() == [[-np.inf] * 3]
        assert len(store) == store.count(None) == 0 and store.rows([]).shape == (0, 1, 8)
        with pytest.raises(UserError, match="no image of this index has the id 0"):
            store.rows([0])
    assert gone.top([], 3)[0].shape == (0, 3)


def test_questions_that_cannot_be_ranked():
    case, rng = Case(draw()), np.random.default_rng(0)
    with pytest.raises(UserError, match="k=0; ask for at least 1 image"):
        case.store.top([folded(rng)], 0)
    with pytest.raises(UserError, match="query of 9 numbers, but rows of this index have 8"):
        case.store.top([folded(rng), folded(rng, width=9)], 1)
    for vectors, weights in (([[np.nan] * 8], [1]), ([[1] * 8], [np.inf])):
        terms = Terms(np.asarray(vectors, "f4"), np.zeros(1, np.int32), np.asarray(weights, "f4"))
        with pytest.raises(UserError, match="not finite"):
            case.store.top([terms], 1)
    bare = embedded.Store({0: draw()[0]}, [7], [0], [5], shape=(1, 8))
    with pytest.raises(UserError, match="where 'price < 5', but these images have no fields"):
        bare.top([folded(rng, where=case.condition("price < 5"))], 1)


def test_threads_ask_at_once():
    case = Case(draw(), devices=8)
    queries = [folded(np.random.default_rng(seed)) for seed in range(6)]
    failed = []

    def ask(query):
        try:
            case.check([query], 9)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=ask, args=(query,)) for query in queries]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
