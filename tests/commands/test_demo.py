# SPDX-License-Identifier: Apache-2.0
"""What the demo says of itself; its runs are those of other tests, here their results alone."""

import json

import pytest

from cir_jax import main
from cir_jax.commands import demo
from cir_jax.datasets.readers import emoji
from cir_jax.runtime import metrics


@pytest.fixture
def finished(monkeypatch):
    """Results of all runs, without the runs."""

    def seed(out, data, seed, quick):
        found = {}
        for number, name in enumerate(demo.RUNS):
            workdir = out / name
            workdir.mkdir(parents=True)
            (workdir / metrics.FILE).write_text(
                "".join(json.dumps({"step": s, "loss": 3.0 - s}) + "\n" for s in (1, 2))
            )
            scores = {key: 10.0 * number for key in demo.COLUMNS}
            found[name] = {
                "workdir": str(workdir), "scores": scores, "step": 2, "seconds": 1.0,
                "bank_seconds": 0.0, "triplets": {"a": 3},
                "history": [{"step": 2, "average_recall_at10": 5.0}],
            }  # fmt: skip
        return found

    monkeypatch.setattr(demo, "_seed", seed)
    monkeypatch.setattr(emoji, "prepare", lambda folder, limit: folder)


@pytest.mark.parametrize("quick", [True, False])
def test_a_smoke_test_says_that_its_numbers_mean_nothing(quick, finished, tmp_path, capsys):
    assert main.main(["demo", "--out", str(tmp_path), *["--quick"] * quick]) == 0
    said = capsys.readouterr().out
    page = (tmp_path / "report.html").read_text()
    assert said.count("Its numbers mean nothing") == 2 * quick  # first, and below the table
    assert page.count("Its numbers mean nothing") == quick
    assert ("<h1>Smoke test: " in page) is quick and "Scaling positives and negatives" in page
    # What is in the table is explained, and nothing else; a history of one point has no chart.
    assert "R@K (recall at K)" in page and "Rsub@K" in page and "harmonic mean" not in page
    assert page.count("<svg") == 3 and "Average R@10 on validation" not in page
