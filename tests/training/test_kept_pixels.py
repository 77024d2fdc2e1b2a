# SPDX-License-Identifier: Apache-2.0
"""What a run decodes is decoded once, for its batches, bank and gallery, and for later runs."""

import numpy as np
import pytest

from cir_jax.data.pixels import Preprocess
from cir_jax.main import main
from cir_jax.training import setup, train
from tests import runs


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("CIR_JAX_CACHE", str(tmp_path / "cache"))
    return runs.write_fashioniq(tmp_path / "data")


@pytest.fixture
def made(monkeypatch):
    """The sizes of the images whose squares were made."""
    found, square = [], Preprocess.square

    def counted(self, image):
        found.append(image.size)
        return square(self, image)

    monkeypatch.setattr(Preprocess, "square", counted)
    return found


def drawn(config, count=5):
    """The first batches of a run, and what keeps its pixels."""
    parts, data = runs.set_up(config)
    iterator = setup.make_batches(parts, data, None)
    return [next(iterator) for _ in range(count)], parts, data


def test_batches_are_the_same_however_pixels_are_kept(tmp_path, root):
    want, *_ = drawn(runs.tiny(tmp_path / "run", root, "data.pixels=decode"))
    for mode in ("memory", "disk", "disk", "auto"):
        got, parts, _ = drawn(runs.tiny(tmp_path / "run", root, f"data.pixels={mode}"))
        assert parts.pixels.kind == ("memory" if mode == "auto" else mode)
        for one, other in zip(want, got, strict=True):
            assert one.keys() == other.keys()
            for name in one:
                np.testing.assert_array_equal(one[name], other[name])


def test_what_drop_decodes_is_kept_for_batches_bank_gallery_and_later_runs(tmp_path, root, made):
    changes = ("data.pixels=disk", "data.on_missing=drop")
    _, parts, data = drawn(runs.tiny(tmp_path / "one", root, *changes))
    images = len(data.triplets.images)
    assert images <= len(made) <= 24  # of training and gallery together, by the looks alone
    before = len(made)
    later = runs.tiny(tmp_path / "two", root, *changes, stage=2)
    parts, data = runs.set_up(later)
    for path in data.triplets.images.paths:
        setup._preprocess(parts, data)(path)
    for task in parts.benchmark.tasks.values():
        for path in task.paths:
            parts.pixels.part(again=True)(path)
    assert len(made) == before


def test_training_and_evaluation_read_what_is_kept(tmp_path, root, made, capsys):
    config = runs.tiny(tmp_path / "run", root, "steps=2", "data.pixels=disk")
    train.train(config)
    told = capsys.readouterr().out
    assert f"images are kept at {tmp_path}/cache/pixels/" in told
    before = len(made)
    assert 0 < before
    assert main(["evaluate", "--workdir", str(tmp_path / "run")]) == 0
    assert len(made) == before
