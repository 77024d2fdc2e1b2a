# SPDX-License-Identifier: Apache-2.0
"""Every machine that a run may get: its mesh, the rows of its hosts, and what is compiled for it."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from cir_jax import contract, weights
from cir_jax.training import train
from tests import runs
from tests.runtime.test_processes import HERE, losses, train_with

INTERLEAVED = Path(__file__).parent / "interleaved"


@pytest.mark.parametrize(
    "model, stage, devices, changes",
    [
        ("clip_sum", 1, 2, ()),
        ("blip", 2, 4, ("loss.references=disk", "mesh.model=2")),
    ],
)
def test_hosts_whose_devices_interleave_equal_one_process(model, stage, devices, changes, tmp_path):
    """As on most slices of several hosts: a host's rows of a batch are not adjacent there."""
    root = runs.write_fashioniq(tmp_path / "data")
    # With a small epsilon Adam's first steps are signs, of gradients that are zero but for rounding.
    changes = (*changes, "steps=3", "eval.batch=6", "optim.epsilon=1e-3")
    alone = runs.tiny(tmp_path / "one", root, *changes, stage=stage, model=model)
    results = train.train(alone)
    path = os.pathsep.join([str(INTERLEAVED), str(HERE)])
    train_with(2, devices, alone, tmp_path / "two", {"PYTHONPATH": path})
    want, got = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(want) == 3 and got == pytest.approx(want, rel=2e-5)
    other = json.loads((tmp_path / "two" / "results.json").read_text())
    assert other["environment"]["processes"] == 2
    for one, two in zip(results["history"], other["history"], strict=True):
        del one["seconds"], two["seconds"]
        assert two == pytest.approx(one, abs=1e-3)
    functions = contract.build(alone.model)
    kept = [weights.of_run(tmp_path / run, functions, "last") for run in ("one", "two")]
    for (_, one, _), (_, two, _) in [kept]:
        for path, values in one.items():
            np.testing.assert_allclose(two[path], values, atol=2e-5, err_msg=path)
