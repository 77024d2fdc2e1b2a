# SPDX-License-Identifier: Apache-2.0
"""Runs whose parameters are split over "data" as well (`mesh.fsdp`): what they leave is what any
run leaves, and either kind goes on from the other."""

import json

import jax
import numpy as np
import pytest

from cir_jax import weights
from cir_jax.commands import export
from cir_jax.runtime import metrics, sharding
from cir_jax.training import dry_run, train
from tests import runs

MODEL = "sprc_shaped"  # references by text, K rows, and a query part that the index has too


@pytest.fixture
def small(monkeypatch):
    """Splits tiny matrices too."""
    monkeypatch.setattr(sharding, "LEAST", 8)


def losses(workdir):
    return [line["loss"] for line in metrics.read(workdir / metrics.FILE) if "loss" in line]


def test_runs_with_and_without_it_continue_each_other(tmp_path, small, capsys):
    root = runs.write_fashioniq(tmp_path / "data")

    def run(folder, stage, *changes):
        config = runs.tiny(tmp_path / folder, root, *changes, stage=stage, model=MODEL)
        return train.train(config), losses(tmp_path / folder)

    want, whole = run("whole", 1, "steps=4")
    run("split", 1, "steps=2", "mesh.fsdp=true", "checkpoint.every_steps=2")
    capsys.readouterr()
    run("split", 1, "steps=3", "mesh.fsdp=false")
    got, split = run("split", 1, "steps=4", "mesh.fsdp=true", "mesh.model=2")
    assert "at step 2" in capsys.readouterr().out and len(split) == 4
    assert split == pytest.approx(whole, rel=2e-5)
    assert got["best"] == pytest.approx(want["best"], abs=1e-3)
    # Stage two: two trees, a bank, and references by text.
    start = f"init_from={tmp_path / 'split'}"
    want, whole = run("whole2", 2, start, "steps=2")
    got, split = run("split2", 2, start, "steps=2", "mesh.fsdp=true")
    assert split == pytest.approx(whole, rel=2e-5)
    assert got["best"] == pytest.approx(want["best"], abs=1e-3)
