# SPDX-License-Identifier: Apache-2.0
"""Ranks by counting against a full sort, with ties, removal and sharded rows."""

import re

import jax
import numpy as np
import pytest

from cir_jax.retrieval import ranking
from cir_jax.runtime import mesh as meshes


def mesh(count=8):
    return meshes.make(count, 1, jax.devices()[:count])


def draw(queries=37, images=53, k=1, width=6, seed=0, whole=False):
    """Whole numbers make exact ties, in any order of summation."""
    rng = np.random.default_rng(seed)
    if whole:
        numbers = rng.integers(-1, 2, (images + queries) * width * k)
    else:
        numbers = rng.normal(size=(images + queries) * width * k)
    numbers = numbers.astype(np.float32)
    gallery = numbers[: images * k * width].reshape(images, k, width)
    query = numbers[images * k * width :][: queries * width].reshape(queries, width)
    target = rng.integers(0, images, queries)
    removed = (target + rng.integers(1, images, queries)) % images
    return query, gallery, target, removed


def brute_force(query, gallery, target, removed):
    """Sorts every candidate by (score descending, row ascending), then drops the removed one."""
    ranks = []
    for q, t, r in zip(query, target, removed, strict=True):
        score = np.max(gallery @ q, axis=1)
        order = [j for j in np.argsort(-score, kind="stable") if j != r]
        ranks.append(order.index(t))
    return np.asarray(ranks)


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("devices", [1, 8])
def test_ranks_equal_a_stable_sort(k, whole, devices, monkeypatch):
    monkeypatch.setattr(ranking, "_BLOCK_QUERIES", 16)  # 37 queries: three blocks
    query, gallery, target, removed = draw(k=k, whole=whole)
    nothing = np.full(len(query), -1)
    for gone in (removed, nothing):
        counted = ranking.count_ranks(query, gallery, target, gone, mesh=mesh(devices))
        np.testing.assert_array_equal(counted, brute_force(query, gallery, target, gone))
    if whole:
        scores = np.max(np.einsum("qd,gkd->qgk", query, gallery), axis=2)
        ties = (scores == scores[np.arange(len(query)), target][:, None]).sum() - len(query)
        assert ties > 50


def test_ties_are_ordered_by_gallery_row():
    query = np.ones((4, 2), np.float32)
    gallery = np.ones((4, 1, 2), np.float32)
    ranks = ranking.count_ranks(query, gallery, np.arange(4), mesh=mesh())
    np.testing.assert_array_equal(ranks, [0, 1, 2, 3])
    rows, scores = ranking.top_rows(query[:1], gallery, 3, np.asarray([1]), mesh=mesh())
    np.testing.assert_array_equal(rows, [[0, 2, 3]])
    np.testing.assert_array_equal(scores, [[2, 2, 2]])


def test_a_diverged_model_ranks_last():
    query = np.full((1, 2), np.nan, np.float32)
    gallery = np.ones((5, 1, 2), np.float32)
    assert ranking.count_ranks(query, gallery, np.asarray([2]), mesh=mesh()) == [4]
    members = np.asarray([[0, 2, 3]])
    assert ranking.subset_ranks(query, gallery, np.asarray([2]), members) == [1]
    gallery[3] = np.nan  # one broken image is ahead of a sound target
    query = np.ones((1, 2), np.float32)
    assert ranking.count_ranks(query, gallery, np.asarray([0]), mesh=mesh()) == [1]


def test_rows_go_to_devices_without_a_copy_but_of_those_that_are_filled_up():
    _, gallery, _, _ = draw(images=10, k=2)
    parts = [ranking._shard(gallery, start, start + 4) for start in (0, 4, 8)]
    assert [np.shares_memory(part, gallery) for part in parts] == [True, True, False]
    np.testing.assert_array_equal(np.concatenate(parts)[:10], gallery)
    assert parts[2].shape == (4, 2, 6) and not parts[2][2:].any()
    assert np.shares_memory(ranking._shard(gallery, 0, 10), gallery)
    assert ranking._shard(gallery, 12, 14).shape == (2, 2, 6)  # a device without any image


@pytest.mark.parametrize("images", [3, 16, 53])
def test_a_gallery_placed_before_gives_the_same(images):
    query, gallery, target, removed = draw(images=images)
    placed = ranking.place(gallery, mesh())
    assert len(placed) == images and len(placed.gallery) % 8 == 0
    for rank, more in ((ranking.count_ranks, (target, removed)), (ranking.top_rows, (2, removed))):
        found, want = (rank(query, g, *more, mesh=mesh()) for g in (placed, gallery))
        np.testing.assert_array_equal(found, want)


def test_targets_must_be_candidates():
    query, gallery, target, _ = draw(queries=3)
    for bad in (target * 0 - 1, target * 0 + 53):
        with pytest.raises(ValueError, match="must be a row of the gallery"):
            ranking.count_ranks(query, gallery, bad, mesh=mesh())
    with pytest.raises(ValueError, match="not the removed one"):
        ranking.count_ranks(query, gallery, target, target, mesh=mesh())


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("whole", [False, True])
def test_top_rows_equal_a_stable_sort(k, whole):
    query, gallery, _, removed = draw(k=k, whole=whole)
    removed[::3] = -1
    rows, scores = ranking.top_rows(query, gallery, 9, removed, mesh=mesh())
    for i, q in enumerate(query):
        score = np.max(gallery @ q, axis=1)
        order = [j for j in np.argsort(-score, kind="stable") if j != removed[i]][:9]
        np.testing.assert_array_equal(rows[i], order)
        np.testing.assert_allclose(scores[i], score[order], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("width, k", [(1000, 3), (1024, 7), (777, 1), (129, 1), (128, 1), (60, 9)])
def test_top_columns_equal_a_stable_sort(width, k):
    rng = np.random.default_rng(width)
    score = rng.integers(-5, 5, (6, width)).astype(np.float32)
    score[1] = score[2, 0]  # all alike
    score[3, width // 2 :] = -np.inf
    score[4, ::50] = np.nan  # ahead of all numbers
    values, columns = jax.jit(ranking.top_columns, static_argnums=1)(score, k)
    order = np.argsort(np.where(np.isnan(score), -np.inf, -score), axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(columns, order)
    np.testing.assert_array_equal(values, np.take_along_axis(score, order, 1))
    jax.tree.map(np.testing.assert_array_equal, (values, columns), tuple(jax.lax.top_k(score, k)))


def test_top_of_more_than_there_are():
    query, gallery, _, removed = draw()
    with pytest.raises(ValueError, match="top 53 of 52 candidates; ask for 1 to 52"):
        ranking.top_rows(query, gallery, 53, removed, mesh=mesh())


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("whole", [False, True])
def test_subset_ranks_equal_the_ranking_restricted_to_members(k, whole):
    query, gallery, target, removed = draw(k=k, whole=whole, images=12)
    rng = np.random.default_rng(1)
    members = np.full((len(query), 7), -1)
    for i in range(len(query)):
        others = [j for j in range(12) if j not in (target[i], removed[i])]
        chosen = [target[i], removed[i], *rng.choice(others, 3 + i % 2, replace=False)]
        members[i, : len(chosen)] = rng.permutation(chosen)
    ordered = ranking.member_order(query, gallery, members, removed)
    ranks = ranking.subset_ranks(query, gallery, target, members, removed)
    for i, q in enumerate(query):
        score = np.max(gallery @ q, axis=1)
        order = [j for j in np.argsort(-score, kind="stable") if j in members[i]]
        order.remove(removed[i])
        assert [j for j in ordered[i] if j >= 0] == order
        assert ranks[i] == order.index(target[i])


def test_subset_must_hold_the_target_once():
    query, gallery, target, _ = draw(queries=1)
    other = (target + 1) % 53
    with pytest.raises(ValueError, match="exactly one member"):
        ranking.subset_ranks(query, gallery, target, np.stack([other, other], axis=1))


def test_no_device_gathers_the_gallery():
    """Rows stay where they are; what crosses devices are [queries] numbers."""
    count, _ = ranking._programs(mesh())
    gallery = jax.ShapeDtypeStruct((4096, 1, 64), np.float32, sharding=meshes.row_sharding(mesh()))
    query = jax.ShapeDtypeStruct((32, 64), np.float32, sharding=meshes.replicated(mesh()))
    column = jax.ShapeDtypeStruct((32,), np.int32, sharding=meshes.replicated(mesh()))
    text = count.lower(query, column, column, gallery, 4096).compile().as_text()
    assert "all-reduce" in text
    assert not re.search(r"\[(4096,1,64|4096,64|32,4096)\b", text)


def sorted_without(query, gallery, left_out, k):
    """Rows and scores by a stable sort of every candidate."""
    found = []
    for q, gone in zip(query, left_out, strict=True):
        score = np.max(gallery @ q, axis=1)
        order = [j for j in np.argsort(-score, kind="stable") if j not in gone][:k]
        found.append((order, score[order]))
    return tuple(np.asarray(x) for x in zip(*found, strict=True))


@pytest.mark.parametrize("block", [0, 1, 7, 50, 53, 60])
@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("several", [False, True])
def test_blocks_of_a_gallery_give_what_the_whole_does(block, k, several):
    query, gallery, _, _ = draw(k=k, whole=True)  # whole numbers: exact, and full of ties
    rng = np.random.default_rng(1)
    left_out = [rng.choice(53, several * (i % 9), replace=False).tolist() for i in range(37)]
    left_out = [[*rows, *rows[:1]] for rows in left_out]  # saying it twice leaves out one row
    for count in (1, 10, 45):
        found = ranking.top_in_blocks(query, gallery, count, left_out, block=block, mesh=mesh())
        want = sorted_without(query, gallery, left_out, count)
        for got, expected in zip(found, want, strict=True):
            np.testing.assert_array_equal(got, expected)
    assert found[0].dtype == np.int64 and found[1].dtype == np.float32


def test_one_block_is_the_ranking_of_the_whole_to_the_bit():
    query, gallery, _, removed = draw(k=4)
    rows, scores = ranking.top_rows(query, gallery, 9, mesh=mesh())
    found = ranking.top_in_blocks(query, gallery, 9, mesh=mesh())
    np.testing.assert_array_equal(found[0], rows)
    assert found[1].tobytes() == scores.tobytes()
    rows, scores = ranking.top_rows(query, gallery, 9, removed, mesh=mesh())
    found = ranking.top_in_blocks(query, gallery, 9, removed[:, None].tolist(), mesh=mesh())
    np.testing.assert_array_equal(found[0], rows)
    assert found[1].tobytes() == scores.tobytes()


def test_no_number_is_ahead_in_every_block():
    query, gallery, _, _ = draw(images=20)
    gallery[[3, 11, 17]] = np.nan
    rows, _ = ranking.top_rows(query, gallery, 20, mesh=mesh())
    np.testing.assert_array_equal(rows[:, :3], [[3, 11, 17]] * len(query))
    for block in (1, 6, 20):
        found, scores = ranking.top_in_blocks(query, gallery, 20, block=block, mesh=mesh())
        np.testing.assert_array_equal(found, rows)
        assert np.isnan(scores[:, :3]).all() and not np.isnan(scores[:, 3:]).any()


def test_blocks_have_one_shape_and_the_whole_is_never_placed(monkeypatch, tmp_path):
    query, gallery, _, _ = draw(images=100)
    np.save(tmp_path / "rows.npy", gallery)
    placed, place = [], ranking.place
    monkeypatch.setattr(ranking, "place", lambda *x: placed.append(place(*x)) or placed[-1])
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    found, _ = ranking.top_in_blocks(query, mapped, 5, block=24, mesh=mesh())
    assert [p.rows for p in placed] == [24, 24, 24, 24, 4]
    assert {p.gallery.shape for p in placed} == {(24, 1, 6)}
    np.testing.assert_array_equal(found, ranking.top_rows(query, gallery, 5, mesh=mesh())[0])
    placed.clear()
    monkeypatch.setattr(ranking, "_BLOCK_VALUES", 6 * 40)
    ranking.top_in_blocks(query, mapped, 5, mesh=mesh())
    assert [p.rows for p in placed] == [40, 40, 20]


def test_fewer_candidates_than_wanted():
    query, gallery, _, _ = draw(queries=2, images=5)
    for count, left_out in ((0, []), (6, []), (4, [[0], [1, 2]])):
        with pytest.raises(ValueError, match=rf"top {count} of [35] candidates; ask for 1 to"):
            ranking.top_in_blocks(query, gallery, count, left_out, mesh=mesh())
