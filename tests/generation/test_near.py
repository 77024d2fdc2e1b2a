# SPDX-License-Identifier: Apache-2.0
"""Near duplicates: the option of step one."""

import numpy as np
import pytest
from PIL import Image

from cir_jax.errors import UserError
from cir_jax.generation import dedupe
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
    monkeypatch.setattr(dedupe, "_TILE", tile)
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
