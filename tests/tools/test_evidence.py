# SPDX-License-Identifier: Apache-2.0
"""The experiments of the README run at a tiny size, are kept, and end in tables and a plot."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import runs
from tools import evidence, evidence_plot

HERE = Path(__file__).parents[2]


def test_quick(tmp_path, capsys):
    """The script as people start it."""
    flags = ["--quick", "--seeds=1", f"--out={tmp_path}", "--questions", "negatives"]
    done = subprocess.run(
        [sys.executable, "tools/evidence.py", *flags], cwd=HERE, env=runs.one_device(),
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results, said = json.loads((tmp_path / "evidence.json").read_text()), done.stdout
    rows = results["negatives"]
    assert list(rows) == ["16", "all"]
    assert all(
        len(seeds) == 1 and 0 < seeds[0]["cirr_recall_at5"] <= 100 for seeds in rows.values()
    )
    assert f"| all | {rows['all'][0]['cirr_recall_at1']:.2f} |" in said
    assert "equal training time" in (tmp_path / "evidence.svg").read_text()
    assert evidence.main(flags) == results
    said_again = capsys.readouterr().out
    assert "seed 0 zero:" in said and "seed 0 zero:" not in said_again  # it was kept


def test_tables_and_plot_of_all_questions(tmp_path):
    scores = [{"cirr_recall_at1": x, "cirr_recall_at5": 2 * x, "fiq_recall_at10": 3 * x, "steps": 5}
              for x in (1.0, 3.0)]  # fmt: skip
    results = {
        "positives": {
            f"{n}: {label}": scores for n in (100, "all") for label in evidence_plot.COLOURS
        },
        "negatives": {"16": scores, "all": scores},
        "zero_shot": {"plain sum": scores},
        "recipes": {"none": scores},
    }
    table = evidence.tables(results)
    assert "| 100: stage one | 2.00 ± 1.41 | 4.00 ± 2.83 | 6.00 ± 4.24 | 5 |" in table
    assert table.count("|---|---|---|---|---|\n") == 4
    evidence_plot.plot(results, evidence.COLUMNS, tmp_path / "plot.svg")
    drawn = (tmp_path / "plot.svg").read_text()
    assert all(title in drawn for title in ("Positives", "equal training time", "Zero-shot"))


def test_wrong_flags(capsys):
    with pytest.raises(SystemExit):
        evidence.main(["--seeds", "0"])
    assert "--seeds 0 is below 1" in capsys.readouterr().err


def test_a_run_that_was_stopped_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence.train, "train", lambda config: {"finished": False})
    with pytest.raises(SystemExit, match="75"):
        evidence.Runs(tmp_path, tmp_path, 0, quick=True).train("one", 1, "")
    assert not list(tmp_path.rglob("scores.json"))


def test_both_sums_get_the_same_time_and_start(tmp_path, monkeypatch):
    asked = []

    def trained(config):
        asked.append(config)
        Path(config.workdir).mkdir(parents=True)
        scores = dict.fromkeys(evidence.ICON_COLUMNS, 25.0)
        return {"finished": True, "history": [scores], "step": 5, "seconds": 2.0}

    monkeypatch.setattr(evidence.train, "train", trained)
    runs_of_seed = evidence.Runs(tmp_path, tmp_path, 0, quick=True)
    found = evidence.icons(runs_of_seed)
    models = ("clip_sum", "clip_weighted")
    assert list(found) == [f"{m}: stage {stage}" for m in models for stage in ("one", "two")]
    assert [config.model.name for config in asked] == [m for m in models for _ in range(2)]
    assert {config.max_seconds for config in asked} == {2.0}
    one = [tmp_path / "quick-seed-0" / f"icons-{model}-one" for model in models]
    assert [config.init_from for config in asked] == ["", str(one[0]), "", str(one[1])]
    # What they train on is there: triplets from titles, and a customer's questions.
    data = tmp_path / "quick-icons" / "cir"
    assert {config.data.root for config in asked} == {str(data)}
    [generated] = asked[0].data.generated
    assert (data / generated).read_text().count("\n") > 50
    assert (data / "val.jsonl").read_text().count("\n") == 20
    table = evidence.tables({"icons": {name: [scores] for name, scores in found.items()}})
    assert "| icons | R@1 | R@5 | R@10 | steps |" in table
