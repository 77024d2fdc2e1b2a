# SPDX-License-Identifier: Apache-2.0
"""Near duplicates: the option of step one."""

import numpy as np
import pytest
from PIL import Image

from cir_jax.errors import UserError
from cir_jax.generation import dedupe, near_duplicates
from tests.generation.pictures import deduped as run


def test_near_duplicates(tmp_path):
    y, x = np.mgrid[:96, :128]
    scene = np.stack([np.sin(x / 9 + y / 31), np.cos(y / 11), np.sin((x + y) / 17)], -1)
    scene = ((scene + 1) * 127).astype(np.uint8)
    Image.fromarray(scene).save(tmp_path / "a.png")
    Image.fromarray(scene[::-1]).save(tmp_path / "b.png")
    Image.fromarray(scene).resize((64, 48)).save(tmp_path / "c.jpg", quality=60)
    for name, value in (("d", 10), ("e", 20)):  # nothing to see: each its own
        Image.new("RGB", (32, 32), (value,) * 3).save(tmp_path / f"{name}.png")
    paths = {f.stem: str(f) for f in sorted(tmp_path.iterdir())}
    expected = [("a", "c"), ("b",), ("d",), ("e",)]
    assert list(run(paths, tmp_path / "made", "dedupe.near=8")[1].members) == expected
    assert len(run(paths, tmp_path / "made")[1].members) == 5
    # Not even exact ones, if only near ones are asked for and bits differ.
    off = run(paths, tmp_path / "made", "dedupe.exact=False")
    assert [len(g) for g in off[1].members] == [1] * 5


@pytest.mark.parametrize("tile", [3, 2048])
def test_near_groups_are_those_of_all_comparisons(monkeypatch, tile):
    monkeypatch.setattr(near_duplicates, "_TILE", tile)
    random = np.random.default_rng(3)
    bits = random.integers(0, 2, (8, 128), np.uint8).repeat(5, axis=0)
    for row in bits[1::2]:
        row[random.choice(128, 4, replace=False)] ^= 1
    bits = bits[random.permutation(40)]
    names = [str(i) for i in range(40)]
    hashes = {n: np.packbits(row).tobytes() for n, row in zip(names, bits, strict=True)}
    found = dedupe.join_near_duplicates([[n] for n in names], hashes, 10)
    # Connected components by hand.
    reach = (bits[:, None] != bits[None]).sum(-1) <= 10
    for _ in range(6):
        reach = reach @ reach
    expected = sorted({tuple(np.flatnonzero(row).tolist()) for row in reach})
    assert [tuple(map(int, group)) for group in found] == expected and len(expected) == 8


def test_near_ones_of_a_given_table(tmp_path):
    with pytest.raises(UserError, match=r"dedupe.near=3 compares images, and dedupe.optimized=t"):
        run({}, tmp_path, "dedupe.near=3", "dedupe.optimized=t.json")


def clustered(count, seed=0):
    """[N, 2] hashes: families some of whose members differ in 0 to 40 bits, and loners."""
    random = np.random.default_rng(seed)
    bits = random.integers(0, 2, (count // 8, 128), np.uint8).repeat(8, axis=0)
    for row in bits:
        row[random.choice(128, random.integers(0, 41), replace=False)] ^= 1
    bits[:12] = bits[0]  # copies
    return np.packbits(bits[random.permutation(len(bits))], axis=1).view(np.uint64)


def all_pairs(hashes, distance):
    """By comparing every bit of all with all."""
    bits = np.unpackbits(hashes.view(np.uint8), axis=1)
    near = (bits[:, None] != bits[None]).sum(axis=-1) <= distance
    return np.argwhere(np.triu(near, 1)).tolist()


@pytest.mark.parametrize("few", [2, 32])
@pytest.mark.parametrize("distance", [0, 1, 8, 15, 22, 63])
def test_bands_find_the_pairs_of_all_comparisons(monkeypatch, said, distance, few):
    """By lists of pairs and by tiles, in bands and without; each pair once."""
    monkeypatch.setattr(near_duplicates, "_TILE", 16)
    monkeypatch.setattr(near_duplicates, "_FEW", few)
    monkeypatch.setattr(near_duplicates, "_LIST", 5)
    hashes = clustered(160)
    found = [p for pairs in near_duplicates.pairs_within(hashes, distance) for p in pairs.tolist()]
    expected = all_pairs(hashes, distance)
    assert sorted(found) == expected and len(expected) > 60
    blocks = [line for line in said if "all of them are compared, in blocks" in line]
    assert bool(blocks) == (distance >= 22)
    assert not blocks or "smaller dedupe.near takes less" in blocks[0]


def test_bands_compare_few(monkeypatch):
    """Of hashes that are spread evenly: 9 bands of some 14 bits, one comparison in 2,000."""
    compared = []
    in_turn = near_duplicates._in_turn

    def counting(tasks):
        for count, pairs in in_turn(tasks):
            compared.append(count)
            yield count, pairs

    monkeypatch.setattr(near_duplicates, "_in_turn", counting)
    hashes = np.random.default_rng(1).integers(0, 2**64, (6000, 2), np.uint64)
    hashes[5000] = hashes[17]
    hashes[5000, 1] ^= np.uint64(0b1011)
    (pairs,) = near_duplicates.pairs_within(hashes, 8)
    assert pairs.tolist() == [[17, 5000]]
    assert 0 < sum(compared) < 6000 * 5999 / 2 / 1000


def test_images_that_are_alike_are_compared_in_blocks(said):
    """Bands of hashes that agree in most bits tell nothing apart: what counts is what is left."""
    hashes = np.zeros((1100, 2), np.uint64)
    hashes[:, 0] = np.arange(1, 1101)
    found = sum(len(p) for p in near_duplicates.pairs_within(hashes, 8))
    bits = np.bitwise_count(hashes[:, None, 0] ^ hashes[None, :, 0])
    assert found == np.count_nonzero(np.triu(bits <= 8, 1)) > 1000
    assert any("in blocks" in line for line in said)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_hashes(count):
    hashes = np.ones((count, 2), np.uint64)
    found = [p for pairs in near_duplicates.pairs_within(hashes, 3) for p in pairs.tolist()]
    assert found == ([[0, 1]] if count == 2 else [])


def test_equal_hashes_and_empty_ones(monkeypatch):
    """A thousand copies are one to all others; pictures without an edge are joined with none."""
    compared = []
    pairs_within = near_duplicates.pairs_within

    def noted(hashes, distance):
        compared.append(len(hashes))
        return pairs_within(hashes, distance)

    monkeypatch.setattr(near_duplicates, "pairs_within", noted)
    monkeypatch.setattr(near_duplicates, "_JOINED", 1)
    hashes = {str(i): bytes([1 + i % 2] * 16) for i in range(100)} | {
        "e": b"\0" * 16,
        "f": b"\0" * 16,
    }
    groups = [[name, f"{name}-copy"] for name in hashes]
    found = near_duplicates.join_near_duplicates(groups, hashes, 31)
    assert compared == [2]
    evens, odds = ([n for i in range(k, 100, 2) for n in (f"{i}", f"{i}-copy")] for k in (0, 1))
    assert found == [evens, odds, ["e", "e-copy"], ["f", "f-copy"]]
    everything = near_duplicates.join_near_duplicates(groups, hashes, 32)
    assert [len(group) for group in everything] == [200, 2, 2]
