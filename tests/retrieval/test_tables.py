# SPDX-License-Identifier: Apache-2.0
"""Rows on devices: in blocks that hold each image once, not copied where the host's are read."""

import jax
import numpy as np
import pytest

from cir_jax.retrieval import candidates, packing, tables
from cir_jax.retrieval.search.asking import Terms
from cir_jax.retrieval.tables import Rows, Table
from cir_jax.runtime import mesh as meshes


def mesh(devices=1):
    return meshes.make(devices, 1, jax.devices()[:devices])


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("sizes", [(1000,), (37, 1, 250, 64), (5,), (4096, 100)])
def test_every_image_lies_in_one_block(sizes, devices, monkeypatch):
    monkeypatch.setattr(tables, "_LEAST_VALUES", 64)
    rng = np.random.default_rng(0)
    segments = [Rows(rng.normal(size=(size, 2, 4)).astype(np.float32)) for size in sizes]
    table = Table(segments, mesh(devices), block=1024)
    every = np.concatenate([s.rows for s in segments])
    seen = np.zeros(sum(sizes), int)
    for block in table.blocks:
        rows = np.asarray(block.rows).reshape(-1, 2, 4)
        size, odd = divmod(len(rows), devices)
        assert not odd and size & (size - 1) == 0 and 8 <= size <= 128
        new = slice(block.start + block.first, block.start + block.images)
        seen[new] += 1
        np.testing.assert_array_equal(rows[block.first : block.images], every[new])
        assert not rows[block.images :].any()
    assert (seen == 1).all() and len(table) == len(seen)
    chosen = rng.integers(0, len(seen), 50)
    np.testing.assert_array_equal(table.taken(chosen), every[chosen])


def test_a_mapped_file_is_not_copied(tmp_path):
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).normal(size=(3000, 1, 64)).astype("f4"))
    rows = np.load(tmp_path / "rows.npy", mmap_mode="r")
    table = Table([Rows(rows)], mesh(), block=2**15)
    first, last = rows.ctypes.data, rows.ctypes.data + rows.nbytes
    assert len(table.blocks) > 5
    for block in table.blocks:
        place = block.rows.addressable_shards[0].data.unsafe_buffer_pointer()
        assert place == first + block.start * 64 * 4 and place < last


def test_the_longest_row_of_all_types():
    rows = np.zeros((20, 2, 4), np.float32)
    rows[7, 1] = [3, 0, 4, 0]
    rows[9, 0] = np.nan  # which has no length
    assert Table([Rows(rows)], mesh()).longest() == 5
    assert Table([Rows(np.nan_to_num(rows).astype(np.float16))], mesh()).longest() == 5
    scales = np.ones((20, 2), np.float32)
    scales[7, 1] = 2
    assert Table([Rows(np.nan_to_num(rows).astype(np.int8), scales)], mesh()).longest() == 10


class Device:
    platform, process_index = "gpu", 0

    def __init__(self, limit, held):
        self.stats = {"bytes_limit": limit, "bytes_in_use": held}

    def memory_stats(self):
        return self.stats


def test_rows_take_what_others_leave_free():
    assert tables._free([Device(100, 30), Device(100, 70)]) == 30
    assert tables._free([Device(100, 130)]) == 0


def test_no_program_copies_a_block():
    """Of float32 rows nothing, of small ones a few at a time: temporaries are scores."""
    one, each, width, images = mesh(), 4, 256, 4096
    query = Terms(np.ones((1, width), "f4"), np.zeros(1, np.int32), np.ones(1, "f4"))
    groups, _ = packing.pack([query] * 8)
    program = candidates._program(one, each, 16, None)
    scores = 4 * 8 * images * each
    for dtype, most in ((np.float32, 3 * scores), (np.float16, 3 * scores + 4 * 2**20)):
        rows = jax.ShapeDtypeStruct((images * each, width), dtype)
        compiled = program.lower(groups, rows, None, None, None, 0, images).compile()
        taken = compiled.memory_analysis().temp_size_in_bytes
        assert 0 < taken < most < images * each * width * 2


def test_questions_as_arrays():
    """Groups of a size stand together; scaled, so that nothing overflows; missing ones weigh 0."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(6, 5)).astype(np.float32)
    big = Terms(
        2.0**90 * vectors, np.asarray([0, 1, 1, 1, 2, 2], np.int32), np.asarray([1, -2, 8], "f4")
    )
    one = Terms(vectors[:1], np.zeros(1, np.int32), np.ones(1, np.float32))
    groups, lengths = packing.pack([one, big, one])
    assert [v.shape for v, _ in groups] == [(8, 1, 1, 5), (8, 1, 2, 5), (8, 1, 4, 5)]
    scale = groups[0][0][1, 0, 0, 0] / big.vectors[0, 0]
    assert np.log2(scale) == round(np.log2(scale)) and 0.5 <= np.abs(scale * big.vectors).max() < 1
    np.testing.assert_array_equal(groups[2][0][1, 0], scale * big.vectors[[1, 2, 3, 1]])
    np.testing.assert_array_equal(groups[1][0][1, 0], scale * big.vectors[4:])
    np.testing.assert_array_equal([w[1, 0] for _, w in groups], np.asarray([1, 8, -2]) / 16)
    np.testing.assert_array_equal([w[[0, 2, 3], 0] for _, w in groups[1:]], np.zeros((2, 3)))
    norms = scale * np.linalg.norm(big.vectors.astype(float), axis=1)
    want = (norms[0] + 2 * norms[1:4].max() + 8 * norms[4:].max()) / 16
    assert lengths[1] == pytest.approx(want, rel=1e-6) and len(lengths) == 3
    assert [packing.pack([one] * n)[0][0][0].shape[0] for n in (1, 2, 9)] == [1, 8, 16]
