# SPDX-License-Identifier: Apache-2.0
"""Stopping and resuming: killed at any moment, damaged checkpoints, other meshes, other configs."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from cir_jax import config as configs
from cir_jax.errors import UserError
from cir_jax.runtime import checkpoint, interrupts, metrics, run_steps
from cir_jax.runtime import mesh as meshes
from cir_jax.training import train
from cir_jax.training.records import Records
from tests import runs
from tests.bank.test_bank_files import largest_file

STEPS = 8
CHANGES = (f"steps={STEPS}", "checkpoint.every_steps=1", "eval.benchmark=none")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return runs.write_fashioniq(tmp_path_factory.mktemp("fashioniq"))


@pytest.fixture(scope="module")
def reference(root, tmp_path_factory):
    """Losses of a run that was never stopped."""
    workdir = tmp_path_factory.mktemp("reference")
    train.train(runs.tiny(workdir, root, *CHANGES))
    return losses(workdir)


def losses(workdir):
    return {line["step"]: line["loss"] for line in metrics.read(Path(workdir) / metrics.FILE)}


def start_process(workdir, root):
    """The same run in a process that can be killed."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[3]); import tests.conftest\n"
        "from cir_jax.training import train; from tests import runs\n"
        f"train.train(runs.tiny(sys.argv[1], sys.argv[2], *{CHANGES!r}))"
    )
    here = str(Path(__file__).parents[2])
    arguments = [sys.executable, "-c", script, str(workdir), str(root), here]
    return subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.mark.parametrize("moment", ["after a step", "in a checkpoint"])
def test_kill_and_resume_is_exact(moment, root, reference, tmp_path):
    process = start_process(tmp_path, root)
    last = tmp_path / checkpoint.LAST

    def reached():
        names = os.listdir(last) if last.is_dir() else []
        if len([n for n in names if n.isdigit()]) < 2:
            return False
        return moment == "after a step" or any("tmp" in name for name in names)

    try:
        while not reached():
            assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(0.0005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    stopped = checkpoint.Checkpoints(last).steps()[-1]
    assert stopped < STEPS
    results = train.train(runs.tiny(tmp_path, root, *CHANGES))
    assert results["finished"] and results["step"] == STEPS
    assert losses(tmp_path) == reference  # bit for bit, and no line twice


def test_signal_stops_cleanly_and_the_same_command_resumes(root, reference, tmp_path, monkeypatch):
    asked = interrupts.StopRequest.now
    monkeypatch.setattr(interrupts.StopRequest, "now", lambda self, step: step == 3)
    results = train.train(runs.tiny(tmp_path, root, *CHANGES))
    assert not results["finished"] and results["step"] == 3
    monkeypatch.setattr(interrupts.StopRequest, "now", asked)
    assert train.train(runs.tiny(tmp_path, root, *CHANGES))["finished"]
    assert losses(tmp_path) == reference


def test_stop_request_notes_a_signal():
    with interrupts.StopRequest() as stop:
        assert not stop.now(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.now(1)


def test_damaged_newest_checkpoint_is_named_and_the_one_before_used(
    root, reference, tmp_path, capsys
):
    train.train(runs.tiny(tmp_path, root, *CHANGES))
    last = tmp_path / checkpoint.LAST
    newest = checkpoint.Checkpoints(last).steps()[-1]
    for file in (last / str(newest)).rglob("*"):
        if file.is_file() and file.stat().st_size > 2000:
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    train.train(runs.tiny(tmp_path, root, *CHANGES))
    said = capsys.readouterr().out
    assert f"damaged checkpoint: step {newest}" in said
    assert f"resuming {tmp_path} at step {newest - 1}" in said
    assert (tmp_path / "checkpoints/damaged" / f"last-{newest}").is_dir()
    assert losses(tmp_path) == reference


def test_all_checkpoints_damaged(root, tmp_path):
    train.train(runs.tiny(tmp_path, root, *CHANGES, "steps=2"))
    for record in (tmp_path / checkpoint.LAST).glob("*/record/metadata"):
        record.write_text("{")
    with pytest.raises(UserError, match=r"no checkpoint in .* can be read: step 2 .*step 1"):
        train.train(runs.tiny(tmp_path, root, *CHANGES, "steps=2"))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of Orbax's threads
def test_a_full_disk_and_the_same_command_after_making_room(
    root, reference, tmp_path, monkeypatch, capfd
):
    """Step 4 finds no room; the run says so, keeps step 3, and goes on when there is."""
    save, config = Records.save, runs.tiny(tmp_path, root, *CHANGES)

    def fills_up(self, state):
        if state.step == 4:
            self._last.wait()
            stack.enter_context(largest_file(100_000))
        save(self, state)

    monkeypatch.setattr(Records, "save", fills_up)
    message = (
        r"step 4 in .*last could not be saved: the disk is full. It needs \d.\d MB, and \S+ .B are "
        r"free there; steps there that are kept: 2, 3. Make room, then give the same command again"
    )
    with ExitStack() as stack, pytest.raises(UserError, match=message):
        train.train(config)
    monkeypatch.undo()
    assert "site-packages/orbax" not in capfd.readouterr().err  # its own pages of the same
    assert checkpoint.Checkpoints(tmp_path / checkpoint.LAST).steps() == [2, 3]
    assert train.train(config)["finished"]
    assert losses(tmp_path) == reference


def test_another_config_is_refused(root, tmp_path):
    train.train(runs.tiny(tmp_path, root, *CHANGES, "steps=1"))
    with pytest.raises(UserError, match=r"another config \(optim.learning_rate: 0.001 -> 0.01\)"):
        train.train(runs.tiny(tmp_path, root, *CHANGES, "optim.learning_rate=0.01"))


def rewritten(root, folder, change):
    """A copy of the data, of which one file of annotations is another."""
    shutil.copytree(root, folder)
    file = folder / "captions" / "cap.dress.train.json"
    records = json.loads(file.read_text())
    change(records)
    file.write_text(json.dumps(records))
    return folder


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        (lambda r: r[3].update(captions=["is red", "is not"]), r"texts \(128, with other content"),
        (lambda r: r[3].update(target="B0001"), r"triplets \(32, with other content or in an"),
        (lambda r: r.pop(), r"triplets \(32 then, 31 now\), texts \(128 then, 124 now\), tok"),
        (lambda r: r.reverse(), r"triplets .* or in another order\), texts .*, images \("),
    ],
    ids=["a text", "a target", "one less", "the order"],
)
def test_data_that_changed_is_refused_by_its_name(change, differs, root, tmp_path):
    train.train(runs.tiny(tmp_path / "run", root, *CHANGES, "steps=1"))
    other = rewritten(root, tmp_path / "other", change)
    message = f"was trained on other data than data.root={other} holds now; these differ: "
    with pytest.raises(UserError, match=f"{re.escape(message)}.*{differs}"):
        train.train(runs.tiny(tmp_path / "run", other, *CHANGES, "steps=2"))


def test_data_may_lie_elsewhere(root, tmp_path):
    train.train(runs.tiny(tmp_path / "run", root, *CHANGES, "steps=1"))
    moved = rewritten(root, tmp_path / "moved", lambda records: None)
    assert train.train(runs.tiny(tmp_path / "run", moved, *CHANGES, "steps=2"))["step"] == 2


def test_unlabelled_pictures_that_changed_are_refused(root, tmp_path, capsys):
    pictures = tmp_path / "pictures"
    for i in range(3):
        runs.write_image(pictures / f"{i}.png", (9, 9, 90 * i), i)
    changes = (*CHANGES, f"data.unlabelled=('{pictures}',)")
    train.train(runs.tiny(tmp_path / "run", root, *changes, "steps=1", stage=2))
    runs.write_image(pictures / "1.png", (200, 9, 9), 7)
    with pytest.raises(UserError, match=r"these differ: unlabelled images \(3, with other"):
        train.train(runs.tiny(tmp_path / "run", root, *changes, "steps=2", stage=2))


def test_a_finished_run_is_not_trained_again(root, tmp_path):
    config = runs.tiny(tmp_path, root, *CHANGES, "steps=2")
    assert train.train(config)["step"] == 2
    before = (tmp_path / metrics.FILE).read_text()
    assert train.train(config)["step"] == 2
    assert (tmp_path / metrics.FILE).read_text() == before


def test_restore_on_another_mesh(tmp_path):
    def placed(mesh, spec):
        return NamedSharding(mesh, spec)

    wide, square = meshes.make(8, 1), meshes.make(2, 4)
    x = np.arange(64, dtype=np.float32).reshape(8, 8)
    tree = {
        "fixed": {"a/b": jax.device_put(x, placed(wide, PartitionSpec("data")))},
        "trained": {"c": jax.device_put(jnp.float32(3), placed(wide, PartitionSpec()))},
        "optimizer": (jax.device_put(x + 1, placed(wide, PartitionSpec("data"))),),
    }
    kept = checkpoint.Checkpoints(tmp_path / "c")
    kept.save(5, tree, {"step": 5})
    kept.close()
    spec = placed(square, PartitionSpec(None, "model"))
    abstract = {
        "fixed": {"a/b": jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=spec)},
        "trained": {
            "c": jax.ShapeDtypeStruct((), jnp.float32, sharding=placed(square, PartitionSpec()))
        },
        "optimizer": (jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=spec),),
    }
    step, got, record = checkpoint.restore_newest(kept, abstract, lambda record: None)
    assert (step, record["step"]) == (5, 5)
    np.testing.assert_array_equal(got["fixed"]["a/b"], x)
    np.testing.assert_array_equal(got["optimizer"][0], x + 1)
    assert got["fixed"]["a/b"].sharding == spec and float(got["trained"]["c"]) == 3


def test_find_lists_what_exists(tmp_path):
    with pytest.raises(UserError, match=r"no checkpoint 'best' in .*; there are steps best=\[\]"):
        run_steps.find(tmp_path)


def test_init_from_another_model_is_refused(root, tmp_path):
    train.train(runs.tiny(tmp_path / "a", root, *CHANGES, "steps=1"))
    change = f"init_from={tmp_path / 'a'}"
    with pytest.raises(UserError, match=r"holds .*cross_attention.py / tiny-vit, not this model"):
        train.train(runs.tiny(tmp_path / "b", root, change, model="sprc_shaped"))


def test_config_of_a_run_comes_back(root, tmp_path):
    config = runs.tiny(tmp_path, root, *CHANGES)
    assert configs.from_json(configs.to_json(config)) == config
