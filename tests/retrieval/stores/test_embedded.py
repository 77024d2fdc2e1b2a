# SPDX-License-Identifier: Apache-2.0
"""The embedded store against the formula of a score, written out in numpy."""

import threading

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
    monkeypatch.setattr(candidates, "_WIDENED_VALUES", 2**9)
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
        score, ids = score[keep], self.ids[keep]
        order = np.argsort(-score, kind="stable")[:k]
        empty = k - len(order)
        ids = np.concatenate([ids[order], np.full(empty, -1)])
        return ids, np.concatenate([score[order], np.full(empty, -np.inf)])

    def check(self, queries, k):
        ids, scores = self.store.top(queries, k)
        assert ids.dtype == np.int64 and scores.dtype == np.float32
        for terms, *found in zip(queries, ids, scores, strict=True):
            want = self.want(terms, k)
            np.testing.assert_array_equal(found[0], want[0])
            np.testing.assert_array_equal(found[1], want[1].astype(np.float32))


def folded(rng, width=8, whole=True, **options):
    vector = rng.integers(-2, 3, (1, width)) if whole else rng.normal(size=(1, width))
    return Terms(vector.astype(np.float32), np.zeros(1, np.int32), np.ones(1, np.float32), **options)


def grouped(rng, sizes, width=8, **options):
    groups = np.repeat(np.arange(len(sizes)), sizes).astype(np.int32)
    weights = rng.choice([1.0, 0.5, -0.5, -2.0], len(sizes)).astype(np.float32)
    vectors = rng.integers(-2, 3, (len(groups), width)).astype(np.float32)
    return Terms(vectors, groups, weights, **options)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8])
@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("each", [1, 3])
def test_the_best_are_those_of_the_formula(each, devices, dtype):
    case, rng = Case(draw(each, dtype=dtype), dead=50, devices=devices), np.random.default_rng(1)
    for count, k in ((1, 1), (5, 10), (33, 7)):
        queries = [folded(rng) for _ in range(count)]
        for number in range(1, count, 2):
            queries[number] = grouped(rng, [(1,), (2, 3, 1), (1, 5)][number % 3])
        case.check(queries, k)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("whole", [True, False])
def test_from_one_image_to_all_and_beyond(devices, whole):
    case = Case(draw(whole=whole), dead=30, devices=devices)
    queries = [folded(np.random.default_rng(2), whole=whole) for _ in range(2)]
    for k in (1, 100, 1000, len(case.store), len(case.store) + 5):
        case.check(queries, k)
