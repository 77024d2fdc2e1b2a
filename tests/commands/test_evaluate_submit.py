# SPDX-License-Identifier: Apache-2.0
"""`cir-jax evaluate` and `cir-jax submit` on a run of one step."""

import json

import pytest

from cir_jax.evals.benchmarks import cirr
from cir_jax.evals.submissions import cirr as submission
from cir_jax.main import main
from cir_jax.training import train
from tests import runs, zero_shot_sets


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(workdir, CIRR root, FashionIQ root) of a model trained on CIRR."""
    root = runs.write_cirr(tmp_path_factory.mktemp("cirr"))
    fashion = runs.write_fashioniq(tmp_path_factory.mktemp("fashioniq"))
    workdir = tmp_path_factory.mktemp("runs") / "one"
    train.train(runs.tiny(workdir, root, "steps=1", model="cross_attention", data="cirr"))
    return workdir, root, fashion


def test_evaluate(run, capsys):
    workdir, _, _ = run
    assert main(["evaluate", "--workdir", str(workdir)]) == 0
    printed = capsys.readouterr().out
    assert "benchmark CIRR, split val, reference removed" in printed
    assert "Rsub@3" in printed and "recall_mean: " in printed
    results = json.loads((workdir / "evaluation" / "results.json").read_text())
    trained = json.loads((workdir / "results.json").read_text())
    assert results["scores"] == pytest.approx(trained["scores"])
    assert results["protocol"] == trained["protocol"]
    assert "data:image/" in (workdir / "evaluation" / "report.html").read_text()


def test_save_and_compare(run, tmp_path, capsys):
    workdir, _, _ = run
    for step in ("best", "last"):
        flags = [f"--step={step}", "--save=rankings,features.npz", "--ranked=3"]
        assert main(["evaluate", f"--workdir={workdir}", f"--out={tmp_path / step}", *flags]) == 0
        assert f"saved: {tmp_path / step / 'rankings.parquet'}" in capsys.readouterr().out
    lines = (tmp_path / "best/rankings.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert len(records) == 12 and all(len(r["ranked"]) == 3 for r in records)
    assert all(r["excluded"] == [r["reference"]] and r["subset_rank"] <= 5 for r in records)
    assert main(["compare", str(tmp_path / "best"), str(tmp_path / "last")]) == 0
    assert "recall_subset_at1" in capsys.readouterr().out
    before = {p: p.read_bytes() for p in (tmp_path / "best").iterdir()}
    for flags, why in (("--ranked=0", "--ranked=0 is below 1"), ("--save=all", "no 'all' to save")):
        assert main(["evaluate", f"--workdir={workdir}", f"--out={tmp_path / 'best'}", flags]) == 2
        assert why in capsys.readouterr().err
    assert before == {p: p.read_bytes() for p in (tmp_path / "best").iterdir()}


def test_evaluate_on_another_benchmark(run, tmp_path, capsys):
    workdir, _, fashion = run
    flags = [
        "--step=last", f"--out={tmp_path}", f"--config.data.root={fashion}",
        "--set", "eval.benchmark=fashioniq", "--set", "eval.gallery=val",
        "--set", "eval.reference=kept",
    ]  # fmt: skip
    assert main(["evaluate", "--workdir", str(workdir), *flags]) == 0
    assert "gallery val, reference kept" in capsys.readouterr().out
    protocol = json.loads((tmp_path / "results.json").read_text())["protocol"]
    assert (protocol["gallery"], protocol["reference"]) == ("val", "kept")
    assert set(protocol["galleries"]) == {"dress", "shirt"}


def test_evaluate_needs_a_benchmark_and_a_run(run, tmp_path, capsys):
    flags = ["evaluate", "--workdir", str(run[0])]
    assert main([*flags, "--set", "eval.benchmark=none"]) == 2
    assert "name one, --set eval.benchmark=fashioniq" in capsys.readouterr().err
    assert main([*flags, "--step", "7"]) == 2
    assert "no checkpoint '7'" in capsys.readouterr().err
    assert main(["evaluate", "--workdir", str(tmp_path / "nothing")]) == 2


def test_submit(run, tmp_path, capsys):
    workdir, root, _ = run
    assert main(["submit", "--workdir", str(workdir), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "the gallery has 24 images, so a query has 23 names" in printed
    assert printed.count("12 queries") == 2
    split = cirr.Benchmark(root, "test1")
    names = {t.query_id: t.reference for t in split.task.triplets}
    members = {t.query_id: t.members for t in split.task.triplets}
    for metric in ("recall", "recall_subset"):
        file = tmp_path / "out" / f"{metric}_submission_one.json"
        wanted = submission.Predictions({}, {}, names, members, split.task.names)
        submission.check(json.loads(file.read_text()), metric, wanted)


def test_submit_needs_a_root(run, tmp_path, capsys):
    workdir, root, _ = run
    flags = ["submit", f"--workdir={workdir}", f"--out={tmp_path}", "--set", "data.root="]
    assert main(flags) == 2
    assert "give the folder of the cirr data set, --root FOLDER" in capsys.readouterr().err
    assert main([*flags, f"--root={root}", "--name=other", "--split=val"]) == 0
    assert (tmp_path / "recall_subset_submission_other.json").is_file()


def test_submit_needs_a_test_server(run, tmp_path, capsys):
    flags = ["submit", f"--workdir={run[0]}", f"--out={tmp_path}", "--split=val"]
    for name in ("fashioniq", "none"):
        assert main([*flags, "--set", f"eval.benchmark={name}"]) == 2
        said = capsys.readouterr().err
        assert f"has eval.benchmark={name}, which has no test server; there is one for: " in said
        assert "circo, cirr. Name it and the folder of its data set, --set eval.benchm" in said


def test_submit_says_why_there_is_no_server(run, tmp_path, capsys):
    flags = ["submit", f"--workdir={run[0]}", f"--out={tmp_path}"]
    for name, why in (
        ("fashioniq", "the answers of its validation split are public"),
        ("genecis", "all its answers are public"),
        ("emoji", "its answers are made here"),
        ("folder", "the answers are your own"),
    ):
        assert main([*flags, "--set", f"eval.benchmark={name}"]) == 2
        said = capsys.readouterr().err
        assert f"Of {name}, {why}" in said and "--save rankings writes its answers" in said
    assert not list(tmp_path.iterdir())


MINE = """
class Benchmark:
    def {method}(self, retriever, folder, name):
        file = folder + "/" + name
        with open(file, "w") as out:
            out.write(type(retriever).__name__)
        return [file]

def build(config):
    assert (config.eval.root, config.eval.on_missing) == ("here", "error")
    assert config.eval.split == TEST_SPLIT
    return Benchmark()

TEST_SPLIT = "hidden"
"""


def test_submit_for_a_benchmark_of_ones_own(run, tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text(MINE.format(method="submit"))
    flags = ["submit", f"--workdir={run[0]}", f"--out={tmp_path}", "--root=here", "--name=me"]
    dropped = ["--set", "eval.on_missing=drop"]  # not in a submission
    assert main([*flags, *dropped, "--set", f"eval.benchmark={file}"]) == 0
    assert (tmp_path / "me").read_text() == "Retriever"
    other = tmp_path / "other.py"
    other.write_text(MINE.format(method="answer"))
    assert main([*flags, "--set", f"eval.benchmark={other}"]) == 2
    assert (
        "other.py defines TEST_SPLIT, but its benchmark has no submit(" in capsys.readouterr().err
    )


def test_circo(run, tmp_path, capsys):
    workdir, root, _ = run
    data = zero_shot_sets.write_circo(tmp_path / "circo")
    flags = [f"--workdir={workdir}", "--set", "eval.benchmark=circo"]
    here = [*flags, "--set", f"eval.root={data}"]
    assert main(["evaluate", *here, f"--out={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    assert "benchmark CIRCO, split val, reference kept, shared_concept without" in printed
    assert "map_at5: " in printed and "negation" in printed
    assert "mAP and recall" in (tmp_path / "report.html").read_text()
    assert main(["evaluate", *here, "--set", "eval.split=test"]) == 2
    assert "`cir-jax submit` writes the file" in capsys.readouterr().err
    assert main(["submit", *here, f"--out={tmp_path}", "--name=mine"]) == 0
    assert (
        "the gallery has 16 images, so a query has 16 names; the CIRCO" in capsys.readouterr().out
    )
    content = json.loads((tmp_path / "circo_submission_mine.json").read_text())
    assert set(content) == set("012345") and len(content["3"]) == 16
    assert main(["submit", *flags, "--set", "data.root=", f"--out={tmp_path}"]) == 2
    assert "give the folder of the circo data set" in capsys.readouterr().err
    assert main(["submit", *flags, f"--out={tmp_path}"]) == 2  # data.root is CIRR's
    assert f"no CIRCO annotations {root}" in capsys.readouterr().err


def test_genecis(run, tmp_path, capsys):
    data = zero_shot_sets.write_genecis(tmp_path / "genecis")
    place = ["--set", "eval.benchmark=genecis", "--set", f"eval.root={data}"]
    assert main(["evaluate", "--workdir", str(run[0]), *place, f"--out={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    assert "benchmark GeneCIS, reference kept" in printed
    assert "average_recall_at1: " in printed and "change_attribute" in printed
    assert "data:image/" in (tmp_path / "report.html").read_text()


def test_cirr_below_eval_root(run, tmp_path, capsys):
    """The data set of the evaluation may lie elsewhere than that of the training."""
    workdir, root, fashion = run
    place = ["--set", f"eval.root={root}", "--set", f"data.root={fashion}"]
    assert main(["submit", f"--workdir={workdir}", *place, f"--out={tmp_path}"]) == 0
    assert (tmp_path / "recall_submission_one.json").is_file()
    place = ["--set", f"eval.root={fashion}", "--set", "eval.benchmark=fashioniq"]
    assert main(["evaluate", f"--workdir={workdir}", *place, f"--out={tmp_path}"]) == 0
    assert "benchmark FashionIQ" in capsys.readouterr().out
