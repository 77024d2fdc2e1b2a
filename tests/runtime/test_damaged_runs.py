# SPDX-License-Identifier: Apache-2.0
"""Run folders that are damaged, or made up: a sentence, the step before, and nothing lost."""

import json
import os
import shutil

import jax.numpy as jnp
import pytest

import cir_jax
from cir_jax import config as configs
from cir_jax import files, main, weights
from cir_jax.bank import files as bank_files
from cir_jax.errors import UserError
from cir_jax.evals.reports import run_report
from cir_jax.retrieval import load
from cir_jax.runtime import checkpoint, checksums, metrics, run_steps
from cir_jax.training import records
from tests.convert import published

NOISE = bytes(range(7, 256)) * 3


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A run with the best step 2, and the steps 1 and 2 as its last."""
    folder = tmp_path_factory.mktemp("kept") / "run"
    config = configs.load("base", [f"model.tower={published.VIT}", "eval.benchmark=none",
                                   "model.name=clip_sum", "model.dtype=float32"])  # fmt: skip
    functions = published.functions()
    params = functions.init(0)
    weights.save_run(folder, config, functions, weights.Weights(params, params, {"layout": "x"}))
    best = folder / checkpoint.BEST
    record = checkpoint.Checkpoints(best).record(0) | {"source": None}
    shutil.rmtree(best)
    for place, steps in ((checkpoint.BEST, (2,)), (checkpoint.LAST, (1, 2))):
        held = checkpoint.Checkpoints(folder / place)
        for step in steps:
            scaled = {path: jnp.asarray(x) * step for path, x in params.items()}
            held.save(step, {"fixed": scaled, "trained": {}}, record | {"step": step})
        held.close()
    return folder


@pytest.fixture
def run(kept, tmp_path):
    return shutil.copytree(kept, tmp_path / "run")


def step_of(run, which="best"):
    return run_steps.sound(run, which)[1]


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def folder_instead(file):
    file.unlink()
    file.mkdir()


HARM = {
    "cut": cut,
    "empty": lambda file: file.write_bytes(b""),
    "noise": lambda file: file.write_bytes(NOISE),
    "gone": lambda file: file.unlink(),
    "another type": lambda file: file.write_text("[5]"),
    "a folder": folder_instead,
    "deep": lambda file: file.write_text("[" * 100_000),
}
FILES = ["record/metadata", "checksums.json", "state/_METADATA", "_CHECKPOINT_METADATA"]


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_step_is_named_and_the_one_before_it_is_used(file, harm, run, capsys):
    HARM[harm](run / checkpoint.BEST / "2" / file)
    assert step_of(run) == 2  # the same step is among the last
    said = capsys.readouterr().out
    assert f"step 2 in {run}/checkpoints/best is damaged (" in said
    assert f"step 2 in {run}/checkpoints/last is used in its place" in said
    HARM[harm](run / checkpoint.LAST / "2" / file)
    assert step_of(run) == step_of(run, "last") == 1
    assert f"step 1 in {run}/checkpoints/last is used in its place" in capsys.readouterr().out
    assert weights.config_of(run).model.tower == published.VIT
    with pytest.raises(UserError, match=r"step 2 in .* is damaged .*another step of the run"):
        run_steps.sound(run, "2")  # who asks for a number gets no other
    HARM[harm](run / checkpoint.LAST / "1" / file)
    with pytest.raises(UserError, match=r"step 2 in .*best is damaged"):
        run_steps.sound(run)
    assert sorted(p.name for p in (run / "checkpoints/last").iterdir() if p.is_dir()) == ["1", "2"]


def test_every_way_to_read_a_run_says_it(run, tmp_path, capsys):
    cut(next(file for file in (run / checkpoint.BEST / "2/state").rglob("d/*") if file.is_file()))
    for way in (lambda: load.from_run(run), lambda: cir_jax.load(run)):
        way()
        assert "checkpoints/last is used in its place" in capsys.readouterr().out
    out = str(tmp_path / "a.safetensors")
    assert main.main(["export", str(run), out, "--format", "safetensors"]) == 0
    assert "checkpoints/last is used in its place" in capsys.readouterr().out
    shutil.rmtree(run / checkpoint.LAST)
    export = ["export", str(run), out, "--format", "safetensors"]
    for command in (export, ["evaluate", "--workdir", str(run)]):
        assert main.main(command) == 2
        assert "checkpoints/best is damaged (" in capsys.readouterr().err


def rewritten(run, change):
    """The record of the best step says something else, and its checksums say it too."""
    shutil.rmtree(run / checkpoint.LAST)
    step = run / checkpoint.BEST / "2"
    path = step / "record/metadata"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(change(record)))
    checksums.write(step, {}, (checkpoint.commits.COMMITTED,))
    return run


def config(**changes):
    def change(record):
        content = json.loads(record["config"])
        for key, value in changes.items():
            section, _, name = key.partition("__")
            (content[section] if name else content)[name or section] = value
        return record | {"config": json.dumps(content)}

    return change


RECORDS = [
    lambda record: [record], lambda record: 5, lambda record: {}, lambda record: None,
    *(lambda record, key=key, value=value: record | {key: value}
      for key in ("config", "paths", "shapes", "index_is_query", "step")
      for value in (None, 5.5, [1], {"a": 1}, "no JSON")),
    lambda record: record | {"config": "[]"}, lambda record: record | {"config": "5"},
    lambda record: record | {"config": "[" * 99_999}, lambda record: record | {"config": "{}"},
    lambda record: record | {"config": '{"stage": 1, "model": 5}'},
    lambda record: record | {"paths": {"fixed": [5], "trained": []}},
    lambda record: record | {"shapes": {"logit_scale": ["x"]}},
    lambda record: record | {"shapes": {"logit_scale": [-1]}},
    lambda record: record | {"version": "new"}, lambda record: record | {"version": 99},
    lambda record: record | {"paths": {"fixed": [*record["paths"]["fixed"], "no/such"]}},
    lambda record: record | {"paths": {"fixed": []}},
    config(model=5), config(model__tower=5), config(model__name=["a"]), config(data="x"),
    config(model__tower="\x1b[31mred"), config(model__name="../evil"), config(model__context="77"),
    config(data__pad="sideways"), config(mesh__data=10**30), config(eval__batch=-1),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(RECORDS)))
def test_a_record_that_somebody_made_up_is_a_sentence(number, run):
    rewritten(run, RECORDS[number])
    with pytest.raises(UserError):
        load.from_run(run)


@pytest.mark.parametrize("name", ["²", "1" * 200, "-1", "2.5", "x"])
def test_folders_that_are_no_steps(name, run):
    shutil.copytree(run / checkpoint.BEST / "2", run / checkpoint.LAST / name)
    if len(name) < 100:
        assert step_of(run) == step_of(run, "last") == 2
    with pytest.raises(UserError, match="no checkpoint '²'"):
        run_steps.find(run, "²")


def test_checksums_that_lead_out_of_the_step(run):
    os.mkfifo(run / "pipe")
    content = {"version": 1, "algorithm": "x", "about": {}, "files": {"../../../pipe": [0, "x"]}}
    (run / checkpoint.BEST / "2" / "checksums.json").write_bytes(checksums.sealed(content))
    assert run_steps.sound(run)[0].folder.name == "last"
    os.mkfifo(run / checkpoint.LAST / "2" / "pipe")
    content["files"] = {"pipe": [0, "x"]}
    (run / checkpoint.LAST / "2" / "checksums.json").write_bytes(checksums.sealed(content))
    assert step_of(run) == 1


SIDE = [b"", NOISE, b"[5]", b"5", b"{}", b"null", b"\xff\xfe", b"[" * 100_000, b'{"history": 5}',
        b'{"scores": 5}', b'{"scores": {}, "protocol": {}, "examples": [5]}',
        b'{"scores": {"a": "b"}, "protocol": {}, "examples": []}']  # fmt: skip


@pytest.mark.parametrize("content", SIDE)
def test_side_files_that_are_damaged_are_set_aside(content, tmp_path, capsys):
    """The best evaluation, the evaluations since the last checkpoint, and a bank that was begun."""
    place = tmp_path / "examples.json"
    place.write_bytes(content)
    assert run_report._best(place) == ({}, ([], [], []))
    assert (tmp_path / "examples.json.damaged").read_bytes() == content and not place.exists()
    assert "what was there is kept as examples.json.damaged" in capsys.readouterr().out
    place.write_bytes(content)
    assert files.set_aside(place, "x").endswith("examples.json.damaged-2")
    place.write_bytes(content)
    assert records._evaluations_in(place)[0] == [] and records._evaluations_in(place)[1]
    assert bank_files._partial_record(place) == {}
    assert "is built anew" in capsys.readouterr().out


SEALED = [5, [5], [{"step": "1", "score": 2}], [{"step": 1}], [{"step": 1, "score": None}], {}]


@pytest.mark.parametrize("history", SEALED)
def test_evaluations_that_are_none(history, tmp_path):
    place = tmp_path / "evaluations.json"
    place.write_bytes(checksums.sealed({"history": history}))
    assert records._evaluations_in(place) == ([], "it holds no evaluations")


LINES = [
    NOISE,
    b"5",
    b"[]",
    b'{"step": "1"}',
    b'{"loss": 2}',
    b"[" * 100_000,
    b'{"step": 1',
    b"\xff",
]


@pytest.mark.parametrize("line", LINES)
def test_lines_of_metrics_that_are_none_are_kept_beside(line, tmp_path, capsys):
    good = b'{"step": 1, "loss": 2.0}\n'
    place = tmp_path / metrics.FILE
    place.write_bytes(good + line + b"\n" + good.replace(b"1", b"2"))
    assert [one["step"] for one in metrics.read(place)] == [1, 2]
    metrics.Logger(tmp_path, 2).close()
    assert (tmp_path / f"{metrics.FILE}.damaged").read_bytes().startswith(good + line)
    assert place.read_bytes() == good + good.replace(b"1", b"2")
    assert "is damaged (line 2 is none of a run)" in capsys.readouterr().out


def test_a_line_that_a_kill_has_cut_is_no_damage(tmp_path, capsys):
    (tmp_path / metrics.FILE).write_bytes(b'{"step": 1}\n{"step": 2, "lo')
    metrics.Logger(tmp_path, 2).close()
    assert [p.name for p in tmp_path.glob("*.damaged")] == []
    assert (tmp_path / metrics.FILE).read_text() == '{"step": 1}\n'


def test_scores_of_a_run_whose_best_evaluation_is_lost():
    history = [{"step": 1, "seconds": 2.0, "score": 3.0, "recall_at5": 3.0},
               {"step": 2, "seconds": 4.0, "score": 2.0, "recall_at5": 2.0}]  # fmt: skip
    assert run_report._scores_in({"history": history, "best": 3.0}) == {"recall_at5": 3.0}
    assert run_report._scores_in({"history": [], "best": None}) == {}
