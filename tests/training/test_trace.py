# SPDX-License-Identifier: Apache-2.0
"""`--profile`: a trace of five steps, as TensorBoard and Perfetto read it."""

import gzip
import json

import jax
import pytest

from cir_jax import config as configs
from cir_jax.commands import train as command
from cir_jax.errors import UserError
from cir_jax.training import trace, train
from tests import runs


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return runs.write_fashioniq(tmp_path_factory.mktemp("fashioniq"))


def test_five_steps_of_a_run(root, tmp_path, capsys):
    config = runs.tiny(tmp_path, root, "steps=10", "eval.benchmark=none", "profile=true")
    assert train.train(config)["finished"]
    [folder] = (tmp_path / trace.FOLDER / "plugins" / "profile").iterdir()
    assert len(list(folder.glob("*.xplane.pb"))) == 1
    content = json.loads(gzip.decompress((folder / "perfetto_trace.json.gz").read_bytes()))
    events = [event for event in content["traceEvents"] if event.get("name") == "train"]
    steps = {int(event["args"]["step_num"]) for event in events}
    assert steps == {4, 5, 6, 7, 8}
    told = capsys.readouterr().out
    assert f"steps 4 to 8 are traced; https://ui.perfetto.dev opens {folder}/perfetto_tra" in told


@pytest.mark.parametrize(
    ("begun", "steps", "traced"),
    [(0, 100, [4, 8]), (40, 100, [44, 48]), (0, 7, [3, 7]), (0, 3, [1, 3]), (0, 1, [1, 1])],
)
def test_which_steps(begun, steps, traced, tmp_path, monkeypatch, capsys):
    """A run of few steps is traced from where five are left, or from its first."""
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda *a, **k: calls.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    (tmp_path / trace.FOLDER / "plugins/profile/x").mkdir(parents=True)
    (tmp_path / trace.FOLDER / "plugins/profile/x/perfetto_trace.json.gz").touch()
    with trace.Trace(tmp_path, begun, steps, wanted=True) as one:
        for step in range(begun + 1, steps + 1):
            if one.turns(step):
                one.turn(step)
            with one.annotate(step):
                pass
    assert calls == ["start", "stop"]
    assert f"steps {traced[0]} to {traced[1]} are traced" in capsys.readouterr().out


def test_a_run_that_is_over_and_a_trace_that_runs(root, tmp_path, capsys):
    changes = ("steps=1", "eval.benchmark=none")
    train.train(runs.tiny(tmp_path / "a", root, *changes))
    train.train(runs.tiny(tmp_path / "a", root, *changes, "profile=true"))
    assert "profile: no step was traced" in capsys.readouterr().out
    with jax.profiler.trace(tmp_path / "own"), pytest.raises(UserError, match="end the trace that"):
        train.train(runs.tiny(tmp_path / "b", root, *changes, "profile=true"))


def test_a_full_disk_costs_the_trace_alone(tmp_path, monkeypatch, capsys):
    def full():
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(jax.profiler, "start_trace", lambda *a, **k: None)
    monkeypatch.setattr(jax.profiler, "stop_trace", full)
    with trace.Trace(tmp_path, 0, 1, wanted=True) as one:
        one.turn(1)
    assert "could not be written ([Errno 28] No space left" in capsys.readouterr().out


def test_the_flag_is_the_key(monkeypatch):
    seen = []
    monkeypatch.setattr("cir_jax.runtime.distributed.initialize", lambda limits: None)
    monkeypatch.setattr("cir_jax.training.setup.make", lambda config: seen.append(config) or 1 / 0)
    for flags, want in (([], False), (["--profile"], True), (["--set", "profile=true"], True)):
        arguments = ["--config", "clip_sum:quicktest", "--dry-run", *flags]
        with pytest.raises(ZeroDivisionError):
            run(arguments)
        assert seen[-1].profile is want
    assert configs.load("clip_sum:quicktest").profile is False


def run(arguments):
    import argparse

    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args(arguments))
