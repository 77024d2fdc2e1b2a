# SPDX-License-Identifier: Apache-2.0
"""launch/tpu_pod.sh, against a gcloud that keeps a list of its calls and has one worker: here."""

import subprocess
import time

import pytest

from tests.launch import calls

POD = ["--name", "my-pod", "--zone", "us-central1-a"]
# `describe` says what the file KIND.FIELD holds; ssh and scp reach the folder of one "worker".
GCLOUD = """#!/usr/bin/env bash
echo "$*" >>"$HOME/calls"
case "$*" in
  *" describe "*)
    field="$*"
    field="${field#*value(}"
    file="$HOME/$3.${field%%)*}"
    head -n 1 "$file" 2>/dev/null || exit 1
    sed -i 1d "$file"
    ;;
  *" scp "*) cp "$5" "$HOME/${6#*:}" ;;
  *" ssh "*)
    while [ "$1" != --command ]; do shift; done
    cd "$HOME" && exec bash -c "$2"
    ;;
esac
"""
RUN = """#!/usr/bin/env bash
trap 'echo saved; exit 0' TERM
echo "$CIR_JAX_DISTRIBUTED: $*"
for _ in {1..600}; do sleep 0.1; done
"""


@pytest.fixture
def checkout(tmp_path):
    """A git checkout of the scripts with one change that is not committed."""
    root = calls.copy_checkout(tmp_path / "checkout")
    git = ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *command], check=True)
    (root / "pyproject.toml").write_text("# changed\n")
    return root


@pytest.fixture
def pod(tmp_path, checkout, fake_python):
    """Calls the script; returns its result and the calls of gcloud."""
    calls.program(tmp_path / "bin" / "gcloud", GCLOUD)
    calls.program(tmp_path / "bin" / "python3", calls.PYTHON)
    calls.program(tmp_path / "bin" / "sudo", "#!/bin/sh\nexit 1\n")
    environment = fake_python | {"CIR_JAX_POLL": "0", "GIT_CONFIG_GLOBAL": "/dev/null"}
    del environment["CIR_JAX_VENV"]

    def run(*arguments):
        log = tmp_path / "calls"
        log.unlink(missing_ok=True)
        done = calls.call("tpu_pod.sh", *arguments, root=checkout, **environment)
        return done, log.read_text() if log.exists() else ""

    return run


def wait_for(path, text):
    deadline = time.monotonic() + 60
    while not (path.exists() and text in path.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_create(pod):
    done, said = pod("create", *POD, "--spot", "--type", "v6e-32", "--project", "p")
    assert done.returncode == 0, done.stderr
    assert (
        "compute tpus tpu-vm create my-pod --accelerator-type v6e-32 --spot "
        "--version v2-alpha-tpuv6e --zone us-central1-a --project p" in said
    )
    assert said.count("--zone us-central1-a --project p") == said.count("compute tpus")


def test_create_uses_what_exists(pod, tmp_path):
    (tmp_path / "tpu-vm.state").write_text("READY\n")
    done, said = pod("create", *POD)
    assert done.returncode == 0 and "exists already" in done.stdout and " create " not in said
    (tmp_path / "tpu-vm.state").write_text("PREEMPTED\n")
    done, said = pod("create", *POD)
    assert done.returncode == 2 and "my-pod is PREEMPTED; delete it" in done.stderr


def test_queued_waits_until_active(pod, tmp_path):
    states = tmp_path / "queued-resources.state.state"
    states.write_text("WAITING_FOR_RESOURCES\nWAITING_FOR_RESOURCES\nPROVISIONING\nACTIVE\n")
    done, said = pod("create", *POD, "--queued", "--version", "r")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        "my-pod:", "WAITING_FOR_RESOURCES", "my-pod:", "PROVISIONING", "my-pod:", "ACTIVE",
    ]  # fmt: skip
    assert "queued-resources create my-pod --node-id my-pod" in said
    assert "--runtime-version r" in said
    states.write_text("FAILED\n")
    done, _ = pod("create", *POD, "--queued")
    assert done.returncode == 2 and "the request for my-pod is FAILED" in done.stderr
    assert "queued-resources delete my-pod --force" in pod("delete", *POD, "--queued")[1]


def test_install_start_status_stop(pod, tmp_path):
    """The commands of the workers are run for once: in the folder of a worker that is here."""
    worker = tmp_path / "cir_jax"
    (worker / "cir_jax").mkdir(parents=True)
    (worker / "cir_jax" / "gone.py").touch()
    (worker / "runs").mkdir()
    done, _ = pod("install", *POD)
    assert done.returncode == 0, done.stderr
    assert (worker / "pyproject.toml").read_text() == "# changed\n"
    assert not (worker / "cir_jax" / "gone.py").exists() and (worker / "runs").is_dir()
    assert "cir_jax[tpu]" in (tmp_path / "log").read_text()

    calls.program(worker / ".venv/bin/cir-jax", RUN)
    train = ["train", "--config", "clip_sum:cirr,stage=1", "--set", "data.root=/a b"]
    done, _ = pod("start", *POD, "--", *train)
    assert done.returncode == 0, done.stderr
    wait_for(worker / "run.log", "auto: train --config clip_sum:cirr,stage=1 --set data.root=/a b")
    done, _ = pod("start", *POD, "--", *train)
    assert done.returncode == 1 and "a run is on; stop it first" in done.stderr
    (tmp_path / "tpu-vm.state").write_text("READY\n")
    done, _ = pod("status", *POD)
    assert done.stdout.splitlines()[:2] == ["READY", "running"]
    assert done.stdout.splitlines()[2].startswith("auto: train")
    done, _ = pod("stop", *POD)
    assert done.returncode == 0, done.stderr
    assert (worker / "run.log").read_text().endswith("saved\n")
    done, _ = pod("stop", *POD)  # nothing is on
    assert done.returncode == 0, done.stderr


def test_up_and_delete(pod):
    flags = [*POD, "--bucket", "gs://photos/", "--dry-run"]
    done, said = pod("up", *flags, "--", "train", "--config", "clip_sum:cirr")
    assert done.returncode == 0 and said == ""
    printed = done.stdout.splitlines()
    steps = ("tpu-vm create", "archive", "scp", "prepare_environment", "gcsfuse", "nohup", "tail")
    assert len(printed) == len(steps)
    for step, line in zip(steps, printed, strict=True):
        assert step in line
    assert "/mnt/photos" in printed[4] and "apt-key" not in printed[4].replace("apt-key.gpg", "")
    assert "tpu-vm delete my-pod --quiet" in pod("delete", *POD)[1]
