# SPDX-License-Identifier: Apache-2.0
"""A data set and a benchmark are one file each, in any folder; the package is not touched."""

import json
import shutil
from pathlib import Path

import pytest

from cir_jax.main import main
from cir_jax.training import train
from tests import runs

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """(reader, benchmark, root): the two files in a folder of the user's, and a data set."""
    folder = tmp_path_factory.mktemp("mine")
    files = [shutil.copy(HERE / f"my_{name}.py", folder) for name in ("reader", "benchmark")]
    root = folder / "data"
    for i, color in enumerate([*runs.COLORS.values()] * 2):
        runs.write_image(root / "images" / f"{i}.png", color, i)
    for split, count in (("train", 16), ("val", 5)):
        rows = [f"{i % 8}.png,{(i + 1) % 8}.png,the next colour" for i in range(count)]
        (root / f"{split}.csv").write_text("\n".join(["reference,target,text", *rows]) + "\n")
    return *files, root


@pytest.fixture(scope="module")
def trained(mine, tmp_path_factory):
    """The folder of a run of two steps."""
    reader, benchmark, root = mine
    workdir = tmp_path_factory.mktemp("run")
    train.train(runs.tiny(workdir, root, f"eval.benchmark={benchmark}", "steps=2", data=reader))
    return workdir


def test_doctor(mine, tmp_path, capsys):
    reader, _, root = mine
    assert main(["doctor", reader, str(root)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{reader} in {root}\n  train triplets ")
    assert "val triplets" in printed and printed.endswith("nothing wrong\n")
    broken = shutil.copytree(root, tmp_path / "broken")
    (broken / "images" / "3.png").write_bytes(b"")
    (broken / "val.csv").write_text("reference,target,text\n1.png,9.png,x\n")
    assert main(["doctor", reader, str(broken)]) == 1
    printed = capsys.readouterr().out
    assert "named by a triplet but not by its split: 1: val/0 (9.png)" in printed
    assert "empty (0 bytes): 1: 3.png" in printed


def test_training(mine, trained):
    results = json.loads((trained / "results.json").read_text())
    assert results["finished"] and results["step"] == 2
    assert results["triplets"] == {"mine": 16}
    assert results["protocol"]["benchmark"] == "mine" and results["protocol"]["gallery"] == 8
    assert set(results["scores"]) == {"recall_at1", "recall_at5"}
    assert results["history"][-1]["score"] == results["history"][-1]["recall_at5"]


def test_evaluation(trained, tmp_path, capsys):
    assert main(["evaluate", "--workdir", str(trained), "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "benchmark mine, reference removed" in printed and "recall_at5: " in printed
    kept = json.loads((tmp_path / "results.json").read_text())
    again = json.loads((trained / "results.json").read_text())
    assert kept["scores"] == pytest.approx(again["scores"])


def test_it_has_no_test_server(trained, tmp_path, capsys):
    assert main(["submit", "--workdir", str(trained), "--out", str(tmp_path)]) == 2
    assert "has no test server; there is one for: circo, cirr." in capsys.readouterr().err
