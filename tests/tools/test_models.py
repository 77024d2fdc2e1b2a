# SPDX-License-Identifier: Apache-2.0
"""The table of models is made of kept runs; every model goes through both stages."""

import json

import pytest

from cir_jax import plugins
from tools import models


def test_every_model_of_the_package_is_in_the_table():
    there = {n for n in plugins.available("cir_jax.models") if n != "contract"}
    assert there == set(models.MODELS)


def test_the_quicktest_of_every_model_through_both_stages(tmp_path, capsys):
    flags = ["--quick", "--out", str(tmp_path)]
    first = models.main(flags)
    assert list(first) == list(models.MODELS)
    assert json.loads((tmp_path / "models.json").read_text()) == first
    for name, stages in first.items():
        assert all(stages[s]["steps"] == 20 and len(stages[s]["epochs"]) >= 1 for s in stages)
        scores = [x for s in stages.values() for x in s["epochs"]]
        assert all(0 < x <= 100 for x in scores), name
    shown = capsys.readouterr()
    assert f"| `sprc` | {first['sprc']['one']['epochs'][0]:.1f}" in shown.out
    assert "sprc, stage 1: " in shown.out
    assert models.main(flags) == first and "sprc, stage" not in capsys.readouterr().out


def test_a_stage_that_was_stopped_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(models.train, "train", lambda config: {"finished": False})
    with pytest.raises(SystemExit):
        models.run(tmp_path, tmp_path, "sprc", "", "quicktest", 1)
    assert not list(tmp_path.rglob("scores.json"))
