# SPDX-License-Identifier: Apache-2.0
"""A run that is stopped or killed anywhere, and one whose loss is not finite: what it leaves."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cir_jax import config as configs
from cir_jax.errors import UserError
from cir_jax.runtime import checkpoint, metrics, supervision
from cir_jax.training import diverged, records, step, train
from tests import runs

HERE = Path(__file__).parents[2]
STEPS = 8  # two epochs, and an evaluation after each
CHANGES = (f"steps={STEPS}",)


class Killed(BaseException):
    """Stands for a SIGKILL: nothing of ours handles it."""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return runs.write_fashioniq(tmp_path_factory.mktemp("fashioniq"))


@pytest.fixture(scope="module")
def undisturbed(root, tmp_path_factory):
    """(metrics without times, results) of a run that was never stopped."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    results = train.train(runs.tiny(workdir, root, *CHANGES))
    return lines(workdir), results


def lines(workdir):
    found = metrics.read(Path(workdir) / metrics.FILE)
    return [{k: v for k, v in line.items() if k not in metrics.TIMED} for line in found]


def scores(results):
    return [(entry["step"], entry["score"]) for entry in results["history"]]


def kill(monkeypatch, owner, name, call):
    """Has the run end in the given call of a method, before it or after it."""
    number, before = call
    real, calls = getattr(owner, name), []

    def method(self, *arguments):
        calls.append(name)
        if len(calls) == number and before:
            raise Killed
        result = real(self, *arguments)
        if len(calls) == number:
            raise Killed
        return result

    monkeypatch.setattr(owner, name, method)


@pytest.mark.parametrize(
    "owner, name, call",
    [
        (records.Records, "evaluate", (1, True)),  # saved, not evaluated
        (records.Records, "_log_once", (1, False)),  # logged, not noted as made
        (records.Records, "evaluate", (2, True)),  # the last one
        (records.Records, "evaluate", (2, False)),  # before the report
    ],
)
def test_an_evaluation_that_was_not_made_is_made_once(
    owner, name, call, root, undisturbed, tmp_path, monkeypatch
):
    config = runs.tiny(tmp_path, root, *CHANGES)
    with monkeypatch.context() as patched:
        kill(patched, owner, name, call)
        with pytest.raises(Killed):
            train.train(config)
    saved = checkpoint.Checkpoints(tmp_path / checkpoint.LAST).steps()[-1]
    assert saved == STEPS // 2 * call[0]  # the step before the evaluation
    results = train.train(config)
    assert lines(tmp_path) == undisturbed[0]
    assert scores(results) == scores(undisturbed[1]) and results["best"] == undisturbed[1]["best"]
    (best,) = checkpoint.Checkpoints(tmp_path / checkpoint.BEST).steps()
    assert best == max(results["history"], key=lambda entry: entry["score"])["step"]
    assert train.train(config)["history"] == results["history"]  # a finished run stays as it is
    assert lines(tmp_path) == undisturbed[0]


PROGRAM = """
import sys; sys.path.insert(0, sys.argv[1]); import tests.conftest
import os, signal
from cir_jax.runtime import watchdog
from cir_jax import main
real, phase, left = watchdog.progress, sys.argv[2], [1]
def progress(name="", step=None):
    real(name, step)
    if name == phase and (step or 0) >= int(sys.argv[3]) and left:
        left.clear()
        os.kill(os.getpid(), signal.SIGTERM)
watchdog.progress = progress
sys.exit(main.main(["train", "--config", sys.argv[4]]))
"""


def config_file(config, path):
    path.write_text(
        "from cir_jax import config\n\n\ndef get_config(arg=''):\n"
        f"    loaded = config.from_json({configs.to_json(config)!r})"
        ".copy_and_resolve_references()\n"
        "    loaded.unlock()\n    return loaded\n"
    )
    return path


@pytest.mark.parametrize("phase, at, saved", [("compile", 0, 0), ("read", 3, 3), ("save", 4, 4)])
def test_sigterm_saves_and_ends_with_75(phase, at, saved, root, undisturbed, tmp_path):
    config = runs.tiny(tmp_path / "run", root, *CHANGES, "checkpoint.grace_seconds=60")
    file = config_file(config, tmp_path / "c.py")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(HERE), phase, str(at), str(file)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 75, done.stdout + done.stderr
    steps = checkpoint.Checkpoints(tmp_path / "run" / checkpoint.LAST).steps()
    # In "save" the loop may get through the evaluation and a step before it hears of the signal.
    assert steps[-1:] in ([[saved]] if phase != "save" else [[saved], [saved + 1]]) or not saved
    assert saved or not steps
    said = done.stdout + done.stderr
    assert "the same command resumes" in said or "The same command goes on" in said
    results = train.train(config)
    assert lines(tmp_path / "run") == undisturbed[0]
    assert scores(results) == scores(undisturbed[1])


def test_two_processes_save_the_same_step_and_one_goes_on(root, tmp_path):
    """SIGTERM to launch/local_processes.sh, which hands it on to both."""
    changes = ("steps=100000", "checkpoint.grace_seconds=60", "eval.benchmark=none")
    config = runs.tiny(tmp_path / "run", root, *changes)
    file = config_file(config, tmp_path / "c.py")
    running = subprocess.Popen(
        ["bash", str(HERE / "launch/local_processes.sh"), "--devices", "2", "--grace", "60",
         "--logs", str(tmp_path / "logs"), "train", "--config", str(file)],
        env=os.environ
        | {"CIR_JAX": f"{sys.executable} -m cir_jax.main", "PYTHONPATH": str(HERE)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip
    log = tmp_path / "run" / metrics.FILE
    while not metrics.read(log):
        assert running.poll() is None, running.communicate()[0]
    running.send_signal(signal.SIGTERM)
    said = running.communicate(timeout=120)[0]
    other = (tmp_path / "logs/process-1.log").read_text()
    assert running.returncode == 75, said + other
    (saved,) = checkpoint.Checkpoints(tmp_path / "run" / checkpoint.LAST).steps()
    assert f"stopped at step {saved}; the same command resumes" in said
    assert "Traceback" not in said + other
    more = runs.tiny(tmp_path / "run", root, *changes, f"steps={saved + 1}")
    assert train.train(more)["step"] == saved + 1


def test_a_program_that_uses_the_library_keeps_its_signals(root, tmp_path, monkeypatch):
    """Two Ctrl-C in an evaluation: the first is a request, the second is the program's own."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    evaluate = records.Records.evaluate

    def interrupted(self, *arguments):
        os.kill(os.getpid(), signal.SIGINT)
        evaluate(self, *arguments)

    monkeypatch.setattr(records.Records, "evaluate", interrupted)
    try:
        config = runs.tiny(tmp_path, root, *CHANGES)
        results = train.train(config)
        assert not results["finished"] and results["step"] == STEPS // 2 + 1
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert supervision.current() is None
        monkeypatch.setattr(
            records.Records, "evaluate", lambda self, *a: (interrupted(self, *a), interrupted(self))
        )
        with pytest.raises(KeyboardInterrupt):
            train.train(config)
    finally:
        signal.signal(signal.SIGINT, before)


class Spoiling:
    """An update that is given parameters that are not finite at one step."""

    def __init__(self, update, step):
        self.lower, self._update, self._left = update.lower, update, step

    def __call__(self, trained, *others):
        self._left -= 1
        spoilt = {k: v * jnp.nan for k, v in trained.items()}
        return self._update(trained if self._left else spoilt, *others)


@pytest.mark.parametrize("every, bad, saved", [(1, 5, 4), (4, 6, 4), (4, 8, 4)])
def test_a_loss_that_is_not_finite_names_its_triplets(
    every, bad, saved, root, tmp_path, monkeypatch
):
    """Also where other steps are on their way by the time that it is looked at."""
    changes = ("eval.benchmark=none", "steps=8", f"checkpoint.every_steps={every}")
    config = runs.tiny(tmp_path, root, *changes)
    real, made, drawn = train._place, step.make, []

    def place(rows, mesh, batch):
        drawn.append(rows["text_id"])
        return real(rows, mesh, batch)

    monkeypatch.setattr(train, "_place", place)
    monkeypatch.setattr(step, "make", lambda *arguments: Spoiling(made(*arguments), bad))
    with pytest.raises(UserError, match=rf"loss nan at step {bad}; .*not_finite.jsonl names the t"):
        train.train(config)
    found = [json.loads(line) for line in (tmp_path / diverged.FILE).read_text().splitlines()]
    steps = [bad - 2, bad - 1, bad]
    assert [line["step"] for line in found] == [step for step in steps for _ in range(8)]
    data = runs.set_up(config)[1].triplets
    owner = data.triplet_of_text()
    ids = [data.triplets[owner[text]].query_id for text in np.concatenate(drawn[bad - 3 : bad])]
    assert [line["triplet"] for line in found] == ids
    assert all(Path(line["reference_file"]).is_file() and line["text"] for line in found)
    assert checkpoint.Checkpoints(tmp_path / checkpoint.LAST).steps()[-1] == saved
    assert [line["step"] for line in metrics.read(tmp_path / metrics.FILE)][-1] == bad - 1
    monkeypatch.undo()
    assert train.train(config)["finished"]  # from the checkpoint, which is sound


def test_a_step_that_is_not_finite_changes_nothing(root, tmp_path):
    """The device keeps parameters and moments, whether the loss or only a gradient is at fault."""

    class Stage:
        index_is_query = True

        def loss(self, functions, query, index, batch, bank, key):
            losses = query["w"] * batch["x"] + jnp.sqrt(query["v"]) * 0
            return losses, {}

    tx = optax.adam(0.1)
    update = step.make(Stage(), None, tx, 1)
    batch = {"x": jnp.ones(4), "source_id": jnp.zeros(4, jnp.int32)}
    start = {"w": jnp.float32(2), "v": jnp.float32(1)}

    def after(changes):
        trained = jax.tree.map(jnp.copy, start | changes)
        old = jax.tree.map(np.asarray, (trained, tx.init(trained)))
        trained, state, values = update(
            trained, tx.init(trained), {}, batch, None, jax.random.key(0)
        )
        same = jax.tree.map(np.array_equal, old, jax.tree.map(np.asarray, (trained, state)))
        return jax.tree.leaves(same), float(values["loss"]), float(values["gradient_norm"])

    same, loss, norm = after({})
    assert not all(same) and np.isfinite([loss, norm]).all()
    same, loss, norm = after({"w": jnp.float32(np.inf)})
    assert all(same) and loss == np.inf
    same, loss, norm = after({"v": jnp.float32(0)})  # the slope of a root at zero, times zero
    assert all(same) and np.isfinite(loss) and np.isnan(norm)


def test_a_key_is_folded_inside_the_program():
    """The same numbers are drawn as if it were folded before."""

    class Stage:
        index_is_query = True

        def loss(self, functions, query, index, batch, bank, key):
            drawn = jax.random.normal(key, batch["x"].shape)
            return query["w"] * drawn, {"drawn": drawn}

    tx, key = optax.sgd(0.1), jax.random.key(4_294_967_295)
    update = step.make(Stage(), None, tx, 1)
    batch = {"x": jnp.ones(4), "source_id": jnp.zeros(4, jnp.int32)}

    def after(*which):
        trained = {"w": jnp.float32(2)}
        return jax.tree.map(np.asarray, update(trained, tx.init(trained), {}, batch, None, *which))

    for number in (0, 7, 2**31 - 1):
        want = after(jax.random.fold_in(key, number))
        jax.tree.map(np.testing.assert_array_equal, want, after(key, np.int32(number)))
    assert not np.array_equal(want[2]["drawn"], after(key)[2]["drawn"])
