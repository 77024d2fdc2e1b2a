# SPDX-License-Identifier: Apache-2.0
"""What the demo says of itself; its runs are those of other tests, here their results alone."""

import json

import pytest

from cir_jax import main
from cir_jax.commands import demo
from cir_jax.datasets.readers import emoji
from cir_jax.evals import benchmark
from cir_jax.evals.reports import run_report
from cir_jax.retrieval import load
from cir_jax.runtime import metrics
from cir_jax.training import train


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


@pytest.mark.parametrize("quick", [True, False])
def test_so_does_the_report_of_each_of_its_runs(quick, tmp_path, monkeypatch):
    run = {
        "stage": "one_in_batch", "model": "clip_sum tiny", "step": 2, "finished": True,
        "seconds": 1.0, "bank_seconds": 0.0, "triplets": {"a": 3}, "dropped": {}, "unusable": {},
        "best": 5.0, "history": [{"step": 2, "score": 5.0, "average_recall_at10": 5.0}],
        "config": {"seed": 3},
    }  # fmt: skip
    written = []

    def trained(config):
        assert config.seed == 7
        written.append(run_report.write(config.workdir, run))
        return written[0]

    class Scores:
        scores = {"recall_at1": 2.0}  # noqa: RUF012

        def run(self, retriever):
            return self

    monkeypatch.setattr(train, "train", trained)
    monkeypatch.setattr(load, "from_run", lambda *arguments: (None, None))
    monkeypatch.setattr(benchmark, "build", lambda config: Scores())
    result = demo._train(tmp_path / "one", tmp_path, 1, 7, quick)
    assert result["scores"] == {"average_recall_at10": 5.0, "cirr_recall_at1": 2.0}
    page = (tmp_path / "one" / "report.html").read_text()
    assert page.count("Its numbers mean nothing") == quick and "one_in_batch" in page
    assert json.loads((tmp_path / "one" / "results.json").read_text()) == written[0]
