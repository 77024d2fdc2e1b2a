# SPDX-License-Identifier: Apache-2.0
"""The retriever against the contract called by hand: what is encoded, by what, how often."""

from collections import Counter

import jax.numpy as jnp
import numpy as np
import pytest

from cir_jax.data import tokens
from cir_jax.data.pixels import Preprocess
from cir_jax.errors import UserError
from cir_jax.retrieval import ranking, retriever

TEXTS = ["is red", "has two long sleeves and a wide collar " * 2, "blue", "with a dog"]


@pytest.fixture
def paths(tmp_path, tiny):
    files = [tmp_path / f"{i}.png" for i in range(11)]
    for i, file in enumerate(files):
        tiny.picture(file, i)
    return [str(f) for f in files]


def by_hand(size, functions, index, query, paths, references, texts, context=77):
    preprocess = Preprocess(size, "none")
    stack = lambda files: jnp.stack([jnp.asarray(preprocess(f)) for f in files])
    ids = jnp.asarray(tokens.table(texts, tokens.load("clip")).rows(slice(None), context))
    reference = functions.reference(index, stack(references), ids)
    return functions.target(index, stack(paths)), functions.compose(query, reference, ids)


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("per_triplet", [False, True])
def test_index_encodes_images_and_query_composes(tiny, paths, k, per_triplet):
    functions = tiny.Products(k, per_triplet)
    index, query = functions.init(0), functions.init(1)
    one = tiny.retriever(functions, index, query)
    references = [paths[i] for i in (3, 3, 10, 0)]
    gallery = one.encode_gallery(paths)
    queries = one.encode_queries(references, TEXTS)
    expected = by_hand(tiny.SIZE, functions, index, query, paths, references, TEXTS)
    assert gallery.shape == (11, k, 6)
    np.testing.assert_allclose(gallery, expected[0], atol=1e-5)
    np.testing.assert_allclose(queries, expected[1], atol=1e-5)


def test_every_image_is_opened_once(tiny, paths):
    one = tiny.retriever(tiny.Products())
    one.encode_gallery([*paths[:8], paths[0]])
    one.encode_gallery(paths[4:9])  # overlaps, as FashionIQ's categories do
    one.encode_queries([paths[2], paths[2], paths[9], paths[2]], TEXTS)  # [9] is in no gallery
    assert one.preprocess.counts == Counter(paths[:10])
    assert set(one._references) == set(paths[:10])


def test_large_references_are_not_kept_and_change_nothing(tiny, paths, monkeypatch):
    functions, references = tiny.Products(), [paths[i] for i in (2, 2, 9, 0)]
    index, query = functions.init(0), functions.init(1)
    kept = tiny.retriever(functions, index, query).encode_queries(references, TEXTS)
    monkeypatch.setattr(retriever, "_LIGHT_BYTES", 0)
    one = tiny.retriever(functions, index, query)
    found = []
    for _ in range(2):  # evaluations of a stage two: the index stands
        one.encode_gallery(paths[:5])
        found.append(one.encode_queries(references, TEXTS))
        assert not one._references
    np.testing.assert_array_equal(*found)
    np.testing.assert_allclose(found[0], kept, atol=1e-6)
    assert one.preprocess.counts == Counter(paths[:5] + references * 2)


def test_a_gallery_shows_the_rows_that_were_encoded(tiny, paths):
    one = tiny.retriever(tiny.Products(4))
    whole = one.encode_gallery(paths)
    assert np.shares_memory(whole, one.encode_gallery(paths))
    assert np.shares_memory(whole, one.encode_gallery(paths[3:7]))
    mixed = one.encode_gallery([paths[5], paths[1], paths[5]])
    np.testing.assert_array_equal(mixed, whole[[5, 1, 5]])
    with pytest.raises(ValueError, match="read-only"):
        whole[0] = 0


def test_a_gallery_is_placed_once_and_freed_with_it(tiny, paths, monkeypatch):
    calls, place = [], ranking.place
    monkeypatch.setattr(ranking, "place", lambda *x: calls.append(x) or place(*x))
    one = tiny.retriever(tiny.Products())
    gallery = one.encode_gallery(paths)
    query = one.encode_queries(paths[:4], TEXTS)
    rows, _ = one.top(query, gallery, 3)
    one.ranks(query, gallery, rows[:, 0])
    one.top(query, gallery, 1)
    assert len(calls) == 1
    other = gallery.copy()  # may be written between two calls
    one.top(query, other, 1)
    other[:] = other[::-1].copy()
    np.testing.assert_array_equal(one.top(query, other, 3)[0], len(paths) - 1 - rows)
    assert len(calls) == 3
    one.top(query, gallery, 1)
    assert len(calls) == 4 and one._ranked is not None
    calls.clear()
    del gallery
    assert one._ranked is None


def test_a_constant_index_is_encoded_once_in_a_run(tiny, paths):
    functions = tiny.Products()
    index = functions.init(0)
    one = tiny.retriever(functions, index)
    first = one.encode_gallery(paths)
    before = one.encode_queries(paths[:4], TEXTS)
    one.set_index(dict(index))  # another dict of the same arrays: stage two
    one.set_query(functions.init(1))
    np.testing.assert_array_equal(one.encode_gallery(paths), first)
    after = one.encode_queries(paths[:4], TEXTS)
    assert one.preprocess.counts == Counter(paths)
    assert np.abs(after - before).max() > 0.1
    one.set_index(functions.init(1))  # other parameters: stage one
    assert np.abs(one.encode_gallery(paths) - first).max() > 0.1
    assert one.preprocess.counts == Counter(paths * 2)


def test_parameters_of_both_trees_are_placed_once(tiny):
    functions = tiny.Products()
    index = functions.init(0)
    one = tiny.retriever(functions, index, {**index, "mix": functions.init(1)["mix"]})
    shared = [p for p in index if one._query[p] is one._index[p]]
    assert shared == ["visual", "start", "text"]


def test_texts_are_padded_to_fitted_lengths(tiny, paths):
    texts = ["red"] * 9 + ["long " * 20] * 8 + ["very long " * 16] * 2
    functions = tiny.Products()
    rows = tiny.retriever(functions).encode_queries([paths[0]] * 19, texts)
    assert functions.traced == {"compose 16": 1, "compose 24": 1, "compose 48": 1}
    whole = tiny.Products(cut_padding=False)
    padded = tiny.retriever(whole).encode_queries([paths[0]] * 19, texts)
    assert set(whole.traced) == {"compose 77"}
    np.testing.assert_allclose(rows, padded, atol=1e-5)


def test_few_short_texts_join_the_longer_ones(tiny, paths):
    functions = tiny.Products()
    tiny.retriever(functions).encode_queries([paths[0]] * 4, TEXTS)
    assert functions.traced == {"compose 24": 1}


def test_long_text_names_its_query(tiny, paths):
    with pytest.raises(UserError, match=r"pair 17: 202 tokens, the limit is 77"):
        tiny.retriever(tiny.Products()).encode_queries(
            paths[:1], ["red " * 200], lambda i: "pair 17"
        )
    rows = tiny.retriever(tiny.Products(), on_long="truncate").encode_queries(
        paths[:1], ["red " * 200]
    )
    assert rows.shape == (1, 6)


def test_ranks_and_top_agree(tiny, paths):
    one = tiny.retriever(tiny.Products(4))
    gallery = one.encode_gallery(paths)
    query = one.encode_queries(paths[:4], TEXTS)
    removed = np.arange(4)
    rows, scores = one.top(query, gallery, 10, removed)
    assert (np.diff(scores, axis=1) <= 0).all()
    for place in range(10):
        np.testing.assert_array_equal(one.ranks(query, gallery, rows[:, place], removed), place)


@pytest.mark.parametrize("per_triplet", [False, True])
def test_any_number_of_devices_gives_the_same(tiny, paths, per_triplet):
    found = []
    for devices in (1, 3, 8):
        one = tiny.retriever(tiny.Products(4, per_triplet), devices=devices)
        gallery = one.encode_gallery(paths)
        query = one.encode_queries(paths[:4], TEXTS)
        found.append((gallery, query, one.ranks(query, gallery, np.asarray([5, 6, 7, 8]))))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
