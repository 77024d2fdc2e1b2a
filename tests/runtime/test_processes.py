# SPDX-License-Identifier: Apache-2.0
"""Two processes on loopback train what one process trains: the code path of a pod."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cir_jax import config as configs
from cir_jax.errors import UserError
from cir_jax.runtime import distributed, metrics
from cir_jax.training import train
from tests import runs
from tests.convert import published

HERE = Path(__file__).parents[2]


def launch(*arguments, env=()):
    """launch/local_processes.sh with this interpreter."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "CIR_JAX": f"{sys.executable} -m cir_jax.main",
        "PYTHONPATH": str(HERE),
        **dict(env),
    }
    return subprocess.run(
        ["bash", str(HERE / "launch/local_processes.sh"), "--port", str(port), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
    )


def train_with_two(config, workdir):
    """Trains this config in another run folder, with two processes of two devices each."""
    train_with(2, 2, config, workdir)


def train_with(processes, devices, config, workdir, env=()):
    """Trains this config in another run folder, with so many processes of so many devices.

    Returns what process 0 has said.
    """
    file, text = workdir.with_suffix(".py"), configs.to_json(config)
    file.write_text(
        "from cir_jax import config\n\n\ndef get_config(arg=''):\n"
        f"    loaded = config.from_json({text!r}).copy_and_resolve_references()\n"
        f"    loaded.unlock()\n    loaded.workdir = {str(workdir)!r}\n    return loaded\n"
    )
    size = ("--processes", str(processes), "--devices", str(devices))
    done = launch(*size, "train", "--config", str(file), env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def losses(workdir):
    return [line["loss"] for line in metrics.read(workdir / metrics.FILE) if "loss" in line]


@pytest.mark.parametrize(
    "model, stage",
    [
        ("cross_attention", 0),
        ("cross_attention", 1),
        ("clip_sum", 1),
        ("siglip", 1),
        ("clip_combiner", 2),
        ("tgcir", 1),
        ("blip", 2),
        ("sprc", 2),
        ("gemma_embedding", 2),
    ],
)
def test_two_processes_equal_one(model, stage, tmp_path):
    root = runs.write_fashioniq(tmp_path / "data")
    captions = f"data.captions={runs.write_captions(root)}"
    changes = [captions, "steps=3"]
    if model == "tgcir":
        changes.append("loss.auxiliary=teacher_ranking:1,matching:0.5")
    if model == "clip_combiner":  # whose text encoder is frozen: here it has adapters
        changes += ["lora.rank=3", "lora.modules=text/.*"]
    if model in ("blip", "sprc"):  # each process reads its rows of the file that one of them writes
        changes.append("loss.references=disk")
    if model == "siglip":  # its sigmoid loss passes targets on from process to process
        changes.append("eval.benchmark=none")
    if model == "gemma_embedding":  # its vectors may be cut, which blocks of a bank are too
        changes += ["loss.matryoshka=32,8", "eval.benchmark=none"]
    if model == "clip_sum":  # from a file of weights, which each process reads
        place = published.write("spn", tmp_path, published.state())
        changes += [f"init_from={place}", "model.tower=auto"]
    alone = runs.tiny(tmp_path / "one", root, *changes, stage=stage, model=model)
    results = train.train(alone)
    # One of the models with its parameters in parts that no process has all of.
    split = ["mesh.fsdp=true"] if model == "sprc" else []
    train_with_two(configs.override(alone, split), tmp_path / "two")
    want, got = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(want) == 3 and got == pytest.approx(want, rel=2e-5)
    other = json.loads((tmp_path / "two" / "results.json").read_text())
    assert other["environment"]["processes"] == 2
    assert other["best"] == pytest.approx(results["best"], abs=1e-3)


def test_a_failing_process_stops_all():
    done = launch("train", "--config", "clip_sum:nothing")
    assert done.returncode == 2 and "ended with status 2" in done.stderr


@pytest.mark.parametrize(
    "variables, message",
    [
        ({"CIR_JAX_COORDINATOR": "localhost:1"}, "set but not CIR_JAX_PROCESSES"),
        ({"CIR_JAX_PROCESSES": "2", "CIR_JAX_PROCESS": "2"}, "CIR_JAX_PROCESS=2 is not below"),
        ({"CIR_JAX_PROCESSES": "two", "CIR_JAX_PROCESS": "0"}, "CIR_JAX_PROCESSES='two' is not a"),
    ],
)
def test_bad_environment(variables, message, monkeypatch):
    monkeypatch.setenv("CIR_JAX_COORDINATOR", "localhost:1")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        distributed.initialize()
