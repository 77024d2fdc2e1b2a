# SPDX-License-Identifier: Apache-2.0
"""Every launch script: shellcheck, --help, --dry-run, bad flags, and runs against stand-ins."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parents[2]
LAUNCH = HERE / "launch"
SCRIPTS = sorted(p.name for p in LAUNCH.glob("*.sh") if p.name != "environment.sh")
DRY = {
    "demo.sh": ["--seeds", "3"],
    "test.sh": ["-k", "bank"],
    "local_gpu.sh": ["--config", "clip_sum:quicktest"],
    "local_processes.sh": ["train", "--config", "clip_sum:quicktest"],
    "slurm_gpu.sh": None,  # installs nothing
    "tpu_pod.sh": None,  # takes the flag after its action
}
POD = ["--name", "my-pod", "--zone", "us-central1-a"]


def call(script, *arguments, **environment):
    return subprocess.run(
        ["bash", str(LAUNCH / script), *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_all_scripts_are_known():
    assert set(SCRIPTS) == set(DRY)


def test_shellcheck():
    binary = Path(sys.executable).parent / "shellcheck"
    files = [str(p) for p in [*LAUNCH.glob("*.sh"), HERE / ".ci" / "run"]]
    done = subprocess.run([str(binary), "-x", *files], capture_output=True, text=True, cwd=HERE)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_help(script):
    done = call(script, "--help")
    assert done.returncode == 0 and "usage:" in done.stdout and not done.stderr


@pytest.mark.parametrize("script", [s for s in SCRIPTS if DRY[s] is not None])
def test_dry_run_prints_and_changes_nothing(script, tmp_path):
    venv = tmp_path / "venv"
    done = call(script, "--dry-run", *DRY[script], CIR_JAX_VENV=str(venv))
    assert done.returncode == 0, done.stderr
    assert f"-m venv {venv}" in done.stdout and not venv.exists()
    for flag in DRY[script]:
        assert flag in done.stdout


@pytest.mark.parametrize(
    "script, arguments, message",
    [
        ("local_gpu.sh", ["--confg", "x"], "unknown flag --confg; see --help"),
        ("local_gpu.sh", [], "no --config given"),
        ("local_gpu.sh", ["--config"], "--config needs a value"),
        ("slurm_gpu.sh", ["--node", "2"], "unknown flag --node"),
        ("local_processes.sh", [], "no command of cir-jax given"),
        ("local_processes.sh", ["--processes", "0", "train"], "'0' is no number above 0"),
        ("local_processes.sh", ["--frobnicate", "train"], "unknown flag --frobnicate"),
        ("tpu_pod.sh", ["launch", *POD], "unknown action launch; there are: create install"),
        ("tpu_pod.sh", ["create", "--name", "x"], "--zone is missing"),
        ("tpu_pod.sh", ["start", *POD], "start needs a command after --"),
        ("tpu_pod.sh", ["mount", *POD, "--dry-run"], "mount needs --bucket NAME"),
    ],
)
def test_bad_flags(script, arguments, message):
    done = call(script, *arguments)
    assert done.returncode == 2 and message in done.stderr


def test_no_python(tmp_path):
    done = call(
        "demo.sh", "--dry-run", PATH="/usr/bin-none:/bin", PYTHON="", CIR_JAX_VENV=str(tmp_path)
    )
    if "no Python 3.11" not in done.stderr:  # a machine whose /bin has a new enough Python
        assert done.returncode == 0 and "-m venv" in done.stdout
    else:
        assert done.returncode == 2


def test_second_run_installs_nothing(tmp_path):
    """The stamp decides; it is written after the install and holds the state of pyproject.toml."""
    log = tmp_path / "log"
    fake = tmp_path / "python"
    fake.write_text(
        f'#!/bin/sh\necho "$@" >>{log}\n'
        'if [ "$2" = venv ]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; '
        'cp "$0" "$3/bin/cir-jax"; fi\n'
    )
    fake.chmod(0o755)
    options = {"PYTHON": str(fake), "CIR_JAX_VENV": str(tmp_path / "venv")}
    for _ in range(2):
        done = call("demo.sh", "--quick", **options)
        assert done.returncode == 0, done.stderr
    lines = log.read_text().splitlines()
    assert sum("pip install" in line for line in lines) == 1
    assert lines.count("demo --quick") == 2


def test_gpu_script_stops_without_a_gpu(tmp_path):
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\nexit 9\n")
    fake.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = call("local_gpu.sh", "--config", "clip_sum:cirr", PATH=path)
    assert done.returncode == 2 and "nvidia-smi finds no GPU" in done.stderr


@pytest.fixture
def gcloud(tmp_path):
    """A gcloud that writes down how it was called; `describe` says the slice does not exist."""
    log = tmp_path / "calls"
    fake = tmp_path / "gcloud"
    fake.write_text(f'#!/bin/sh\necho "$@" >>{log}\ncase "$*" in *describe*) exit 1 ;; esac\n')
    fake.chmod(0o755)
    return lambda *arguments: (
        call("tpu_pod.sh", *arguments, PATH=f"{tmp_path}:{os.environ['PATH']}"),
        log.read_text() if log.exists() else "",
    )


def test_tpu_pod_up(gcloud):
    command = ["train", "--config", "clip_sum:fashioniq,stage=1", "--set", "data.root=/mnt/b/fiq"]
    done, calls = gcloud("up", *POD, "--spot", "--type", "v5litepod-32", "--", *command)
    assert done.returncode == 0, done.stderr
    assert "tpu-vm create my-pod --accelerator-type v5litepod-32" in calls and "--spot" in calls
    assert "tpu-vm scp" in calls and "--worker all" in calls and "prepare_environment tpu" in calls
    assert "CIR_JAX_DISTRIBUTED=auto nohup .venv/bin/cir-jax train --config" in calls
    assert "data.root=/mnt/b/fiq" in calls and "tail -n 100 -F" in calls
    assert calls.count("--zone us-central1-a") == calls.count("compute tpus tpu-vm")


def test_tpu_pod_actions(gcloud):
    for action, expected in (
        ("stop", "pkill -TERM"),
        ("logs", "--worker 0"),
        ("delete", "tpu-vm delete my-pod --quiet"),
    ):
        done, calls = gcloud(action, *POD, "--project", "p")
        assert done.returncode == 0 and expected in calls and "--project p" in calls
    done, calls = gcloud("mount", *POD, "--bucket", "photos")
    assert "gcsfuse --implicit-dirs photos /mnt/photos" in calls


def test_tpu_pod_dry_run_calls_nothing(gcloud):
    done, calls = gcloud("up", *POD, "--dry-run", "--", "train", "--config", "clip_sum:cirr")
    assert done.returncode == 0 and calls == ""
    assert done.stdout.count("gcloud compute tpus tpu-vm") == 5


def test_slurm_dry_run_is_one_job():
    done = call(
        "slurm_gpu.sh", "--dry-run", "--nodes", "2", "--gpus", "4", "--config", "clip_sum:cirr"
    )
    assert done.stdout.startswith("sbatch --job-name cir_jax --nodes 2 --ntasks-per-node 4")
    assert "CIR_JAX_DISTRIBUTED=auto" in done.stdout
