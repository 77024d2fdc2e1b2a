# SPDX-License-Identifier: Apache-2.0
"""Runs whose parameters are split over "data" as well (`mesh.fsdp`): what they leave is what any
run leaves, and either kind goes on from the other."""

import jax
import numpy as np
import pytest

from cir_jax import weights
from cir_jax.retrieval import load
from cir_jax.runtime import metrics, sharding
from cir_jax.training import dry_run, train
from tests import runs

MODEL = "sprc_shaped"  # references by text, K rows, and a query part that the index has too


def losses(workdir):
    return [line["loss"] for line in metrics.read(workdir / metrics.FILE) if "loss" in line]


def test_runs_with_and_without_it_continue_each_other(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sharding, "LEAST", 8)  # tiny matrices too
    root = runs.write_fashioniq(tmp_path / "data")

    def run(folder, stage, *changes):
        config = runs.tiny(tmp_path / folder, root, *changes, stage=stage, model=MODEL)
        return train.train(config)["best"], losses(tmp_path / folder)

    best, want = run("whole", 1, "steps=4")
    run("split", 1, "steps=2", "mesh.fsdp=true")
    run("split", 1, "steps=3", "mesh.fsdp=false")
    capsys.readouterr()
    got_best, got = run("split", 1, "steps=4", "mesh.fsdp=true", "mesh.model=2")
    assert "at step 3" in capsys.readouterr().out and len(got) == 4
    assert got == pytest.approx(want, rel=2e-5) and got_best == pytest.approx(best, abs=1e-3)

    # Stage two: two trees, a bank, and references by text.
    start = f"init_from={tmp_path / 'split'}"
    best, want = run("whole2", 2, start, "steps=2")
    got_best, got = run("split2", 2, start, "steps=2", "mesh.fsdp=true")
    assert got == pytest.approx(want, rel=2e-5) and got_best == pytest.approx(best, abs=1e-3)
    config, retriever = load.from_run(tmp_path / "split2")
    assert config.mesh.fsdp and retriever.functions.fsdp is not None
    kernel = retriever._index["former/kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // jax.device_count()
    index, query, _ = weights.of_run(tmp_path / "split2", retriever.functions)
    assert not np.array_equal(index["former/kernel"], query["former/kernel"])
    np.testing.assert_array_equal(index["former/kernel"], kernel)


def test_a_dry_run_counts_what_a_device_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(sharding, "LEAST", 10**6)  # only the table of the words
    root = runs.write_fashioniq(tmp_path / "data")

    def memory(*changes):
        config = runs.tiny("unused", root, "eval.benchmark=none", *changes, model="clip_sum")
        made, data = runs.set_up(config)
        return dry_run.memory(made, data.steps)

    whole, split = memory(), memory("mesh.fsdp=true")
    assert whole.keys() == split.keys()
    words = 49408 * 96 * 4
    for part in ("parameters that train", "gradients"):
        assert split[part] == whole[part] - words * 7 / 8
