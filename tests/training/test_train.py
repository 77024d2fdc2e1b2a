# SPDX-License-Identifier: Apache-2.0
"""The main job on tiny data: unlike models through all stages, bank and evaluation unchanged."""

import json
from pathlib import Path

import numpy as np
import pytest

from cir_jax.data.pixels import Preprocess
from cir_jax.errors import UserError
from cir_jax.retrieval import golden, load
from cir_jax.runtime import checkpoint, metrics
from cir_jax.training import train
from tests import runs


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fashioniq")
    runs.write_captions(folder)
    return runs.write_fashioniq(folder)


def losses(workdir):
    lines = metrics.read(Path(workdir) / metrics.FILE)
    return [line["loss"] for line in lines if "loss" in line]


@pytest.fixture
def opened(monkeypatch):
    """Counts how often each image file is preprocessed."""
    counts = {}
    original = Preprocess.__call__

    def counted(self, source):
        if not isinstance(source, golden.Picture):  # is drawn, and no file
            counts[str(source)] = counts.get(str(source), 0) + 1
        return original(self, source)

    monkeypatch.setattr(Preprocess, "__call__", counted)
    return counts


@pytest.mark.parametrize("model", ["cross_attention", "sprc_shaped"])
def test_both_stages(model, root, tmp_path, opened):
    one = train.train(
        runs.tiny(tmp_path / "one", root, "steps=24", "optim.learning_rate=1e-2", model=model)
    )
    assert one["finished"] and one["scores"]["average_recall"] > 0
    seen = losses(tmp_path / "one")
    assert np.mean(seen[-6:]) < np.mean(seen[:6])
    opened.clear()
    change = f"init_from={tmp_path / 'one'}"
    generated = "data.generated=captions/cap.extend_clip.train.json"
    config = runs.tiny(
        *(tmp_path / "two", root, "steps=60", "optim.learning_rate=3e-2", change, generated),
        *("loss.exclude_reference=true", "loss.exclude_positives=true"),
        *("eval.benchmark=none",),
        stage=2,
        model=model,
    )
    two = train.train(config)
    seen = losses(tmp_path / "two")
    assert np.mean(seen[-6:]) < np.mean(seen[:6])
    assert set(two["triplets"]) == {"fashioniq", "generated"}
    _, data = runs.set_up(config)
    # Once for its target row and all its references together.
    assert opened == dict.fromkeys(map(str, data.triplets.images.paths), 1)


def test_stage_two_keeps_the_index_and_uses_its_bank_again(root, tmp_path, opened):
    train.train(runs.tiny(tmp_path / "one", root, "steps=2", "eval.benchmark=none"))
    change = f"init_from={tmp_path / 'one'}"
    common = (root, change, "eval.benchmark=none", f"loss.bank_path={tmp_path / 'bank'}")
    train.train(runs.tiny(tmp_path / "two", *common, "steps=3", stage=2))
    _, retriever = load.from_run(tmp_path / "two")
    _, before = load.from_run(tmp_path / "one")
    for path in ("patches/kernel", "head/kernel"):
        np.testing.assert_array_equal(retriever._index[path], before._index[path])
    assert not np.array_equal(retriever._query["mix/kernel"], before._query["mix/kernel"])
    opened.clear()
    train.train(runs.tiny(tmp_path / "three", *common, "steps=1", "seed=7", stage=2))
    assert opened == {}  # the bank was read, no image was opened


def test_a_bank_of_other_parameters_is_refused(root, tmp_path):
    bank = f"loss.bank_path={tmp_path / 'bank'}"
    common = (root, "eval.benchmark=none", bank, "steps=1")
    train.train(runs.tiny(tmp_path / "a", *common, stage=2))
    with pytest.raises(
        UserError, match=r"was made of other parameters .*delete it, or set loss.ba"
    ):
        train.train(runs.tiny(tmp_path / "b", *common, "seed=5", stage=2))
    with pytest.raises(
        UserError, match=r"was made of other preprocessing \(preprocessing: pad=tar"
    ):
        train.train(runs.tiny(tmp_path / "c", *common, "data.pad=none", stage=2))
    with pytest.raises(UserError, match=r"was made of other images"):
        generated = "data.generated=captions/cap.extend_clip.train.json"
        changes = (generated, "data.categories=dress", "batch=8")
        train.train(runs.tiny(tmp_path / "d", *common, *changes, stage=2))


def test_stage_zero_learns_captions_and_best_is_kept(root, tmp_path):
    captions = f"data.captions={root / 'captions.jsonl'}"
    config = runs.tiny(
        *(tmp_path, root, captions, "epochs=4", "optim.learning_rate=3e-2", "checkpoint.keep=1"),
        stage=0,
    )
    results = train.train(config)
    assert results["triplets"] == {"captions": 16}
    seen = losses(tmp_path)
    assert seen[-1] < seen[0]
    scores = [entry["score"] for entry in results["history"]]
    assert len(scores) == 4 and results["best"] == max(scores)
    (best,) = checkpoint.Checkpoints(tmp_path / checkpoint.BEST).steps()
    assert best == results["history"][int(np.argmax(scores))]["step"]
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") > 4 and "http://" not in page.replace(
        "http://www.w3.org", ""
    )
    assert json.loads((tmp_path / "results.json").read_text())["best"] == results["best"]


def test_stage_zero_needs_captions(root, tmp_path):
    with pytest.raises(
        UserError, match=r"trains on image captions, and data set 'fashioniq' has no"
    ):
        runs.set_up(runs.tiny(tmp_path, root, stage=0))


def test_time_limit_ends_a_run(root, tmp_path):
    config = runs.tiny(tmp_path, root, "steps=100000", "max_seconds=0.2", "eval.benchmark=none")
    results = train.train(config)
    assert results["finished"] and 0 < results["step"] < 100000
    assert results["seconds"] >= 0.2


def test_a_diverged_run_says_so_and_keeps_its_checkpoints(root, tmp_path):
    config = runs.tiny(
        *(tmp_path, root, "loss.temperature=1e-45", "eval.benchmark=none", "steps=3")
    )
    with pytest.raises(FloatingPointError, match=r"loss (nan|inf) at step 1; .*raise loss.tempera"):
        train.train(config)


def test_resume_prints_where_and_init_is_ignored_then(root, tmp_path, capsys):
    changes = (root, "eval.benchmark=none", "checkpoint.every_steps=1")
    train.train(runs.tiny(tmp_path / "a", *changes, "steps=2"))
    train.train(runs.tiny(tmp_path / "a", *changes, "steps=3", f"init_from={tmp_path / 'none'}"))
    assert "at step 2" in capsys.readouterr().out
    assert len(losses(tmp_path / "a")) == 3
