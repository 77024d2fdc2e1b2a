# SPDX-License-Identifier: Apache-2.0
"""The table of models is made of kept runs; every model goes through both stages."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cir_jax import plugins
from tests import runs
from tools import models

HERE = Path(__file__).parents[2]
NEW = ("tgcir", "blip", "sprc")


def test_every_model_of_the_package_is_in_the_table():
    there = set(plugins.available("cir_jax.models"))
    assert there - set(models.MODELS) == {"served"}  # of which nothing but a head is ours
    assert set(models.MODELS) <= there


def test_quicktests_through_both_stages(tmp_path, capsys):
    """The script as people start it, with the models whose quicktest no other test runs."""
    flags = ["--quick", "--out", str(tmp_path), "--models", *NEW]
    done = subprocess.run(
        [sys.executable, "tools/models.py", *flags], cwd=HERE, env=runs.one_device(),
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, said = json.loads((tmp_path / "models.json").read_text()), done.stdout
    assert tuple(first) == NEW
    for name, stages in first.items():
        assert all(stages[s]["steps"] == 20 and len(stages[s]["epochs"]) >= 1 for s in stages)
        scores = [x for s in stages.values() for x in s["epochs"]]
        assert all(0 < x <= 100 for x in scores), name
    assert f"| `sprc` | {first['sprc']['one']['epochs'][0]:.1f}" in said
    assert "sprc, stage 1: " in said
    assert models.main(flags) == first and "sprc, stage" not in capsys.readouterr().out  # kept


def test_a_stage_that_was_stopped_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(models.train, "train", lambda config: {"finished": False})
    with pytest.raises(SystemExit, match="75"):
        models.run(tmp_path, tmp_path, "sprc", "", "quicktest", 1)
    assert not list(tmp_path.rglob("scores.json"))
