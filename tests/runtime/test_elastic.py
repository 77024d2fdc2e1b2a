# SPDX-License-Identifier: Apache-2.0
"""A run goes on with other numbers of processes and devices: the same triplets, the same losses."""

import pytest

from cir_jax.runtime import metrics
from cir_jax.training import train
from tests import runs
from tests.runtime.test_processes import train_with


def test_a_run_goes_on_with_other_processes_and_devices(tmp_path):
    """1 x 8 -> 2 x 4 -> 4 x 2 -> 1 x 2 (processes x devices), with the bank that the first made.

    Each leg reads the parameters, the moments of the optimizer and the bank of the one before.
    """
    root = runs.write_fashioniq(tmp_path / "data")

    def config(folder, steps):
        generated = "data.generated=captions/cap.extend_clip.train.json"
        changes = (f"steps={steps}", "eval.benchmark=none", generated)
        return runs.tiny(tmp_path / folder, root, *changes, stage=2)

    def lines(folder):
        found = metrics.read(tmp_path / folder / metrics.FILE)
        # How many of a batch are annotated and how many generated tells one batch from another.
        drawn = [[v for k, v in sorted(x.items()) if k.startswith("count/")] for x in found]
        return [x["step"] for x in found], drawn, [x["loss"] for x in found]

    train.train(config("still", 8))
    train.train(config("moved", 2))
    for processes, devices, steps in ((2, 4, 4), (4, 2, 6), (1, 2, 8)):
        said = train_with(processes, devices, config("moved", steps), tmp_path / "moved")
        assert f"at step {steps - 2}" in said and "building the bank" not in said
    want, got = lines("still"), lines("moved")
    assert got[:2] == want[:2] and got[0] == list(range(1, 9))
    assert got[2] == pytest.approx(want[2], rel=1e-6)
