# SPDX-License-Identifier: Apache-2.0
"""Every launch script: shellcheck, --help, --dry-run and bad flags."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.calls import HARD, HERE, LAUNCH, SHOW, call, program, shown
from tests.launch.slurm import Slurm

SOURCED = {"environment.sh", "together.sh", "cloud_tpu.sh"}  # by the others
SCRIPTS = sorted(
    p.relative_to(LAUNCH).as_posix() for p in LAUNCH.rglob("*.sh") if p.name not in SOURCED
)
DRY = {
    "demo.sh": ["--seeds", "3"],
    "search_demo.sh": ["a-folder"],
    "test.sh": ["-k", "bank"],
    "local_gpu.sh": ["--config", "clip_sum:quicktest"],
    "local_processes.sh": ["train", "--config", "clip_sum:quicktest"],
    "slurm_gpu.sh": None,  # installs nothing
    "slurm_job.sh": None,
    "tpu_pod.sh": None,  # takes the flag after its action
    "tpu_worker.sh": None,
    "gke/submit.sh": None,
    "gke/build_image.sh": None,
}
POD = ["--name", "my-pod", "--zone", "us-central1-a"]


def test_all_scripts_are_known():
    assert set(SCRIPTS) == set(DRY)


def test_shellcheck():
    binary = Path(sys.executable).parent / "shellcheck"
    files = [str(p) for p in [*LAUNCH.rglob("*.sh"), HERE / ".ci" / "run"]]
    done = subprocess.run([str(binary), "-x", *files], capture_output=True, text=True, cwd=HERE)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_help(script):
    done = call(script, "--help")
    assert done.returncode == 0 and "usage:" in done.stdout and not done.stderr
    assert "shellcheck" not in done.stdout and "set -e" not in done.stdout  # the comment, no more


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
        ("local_gpu.sh", ["--confg", "x"], "no --config given to cir-jax train, but --confg x;"),
        ("local_gpu.sh", [], "no --config given to cir-jax train; see --help"),
        ("local_gpu.sh", ["--config"], "--config needs a value"),
        ("local_gpu.sh", ["--grace", "0", "--config", "x"], "'0' is no number above 0"),
        ("local_gpu.sh", ["--logs"], "--logs needs a value"),
        ("local_gpu.sh", ["--config", "x", "--dry-run"], "--dry-run stands after the first flag"),
        ("slurm_gpu.sh", ["--node", "2"], "no --config given to cir-jax train, but --node 2;"),
        ("slurm_gpu.sh", ["--config", "x", "--nodes", "2"], "--nodes stands after the first flag"),
        ("slurm_gpu.sh", ["--nodes"], "--nodes needs a value"),
        ("slurm_gpu.sh", ["--request", "all", "--config", "x"], "--request all is none of"),
        ("slurm_gpu.sh", ["--restarts", "-1", "--config", "x"], "'-1' is no number above 0"),
        ("slurm_job.sh", ["begin", str(HERE)], "unknown action begin"),
        ("slurm_gpu.sh", ["--gpus", "all", "--config", "x"], "'all' is no number above 0"),
        ("local_processes.sh", [], "no command of cir-jax given"),
        ("local_processes.sh", ["--processes", "0", "train"], "'0' is no number above 0"),
        ("local_processes.sh", ["--frobnicate", "train"], "unknown flag --frobnicate"),
        ("tpu_pod.sh", ["launch", *POD], "unknown action launch; there are: create install"),
        ("tpu_pod.sh", ["create", "--name", "x"], "--zone is missing"),
        ("tpu_pod.sh", ["create", *POD, "--tpye", "v4-8"], "unknown flag --tpye"),
        ("tpu_pod.sh", ["create", *POD, "--type", "v9-8", "--dry-run"], "no runtime is known"),
        (
            "tpu_pod.sh",
            ["create", *POD, "--type", "tpu7x-16"],
            "no TPU7x, only GKE has: see",
        ),
        ("tpu_pod.sh", ["create", *POD, "--spot", "--reserved"], "exclude each other"),
        ("tpu_pod.sh", ["create", *POD, "--labels"], "--labels needs a value"),
        ("tpu_pod.sh", ["babysit", *POD], "babysit needs a command after --"),
        ("tpu_pod.sh", ["logs", *POD, "--worker", "all"], "'all' is no number"),
        ("tpu_worker.sh", ["begin"], "unknown action begin"),
        ("tpu_pod.sh", ["start", *POD], "start needs a command after --"),
        ("tpu_pod.sh", ["mount", *POD, "--dry-run"], "mount needs --bucket NAME"),
        ("tpu_pod.sh", ["mount", *POD, "--dry-run", "--bucket", "a;b"], "is no name of a bucket"),
    ],
)
def test_bad_flags(script, arguments, message):
    done = call(script, *arguments)
    assert done.returncode == 2 and message in done.stderr


@pytest.mark.parametrize(
    "script, arguments, message",
    [
        ("tpu_pod.sh", ["logs", *POD], "no gcloud found; install the Google Cloud CLI"),
        ("slurm_gpu.sh", ["--config", "x"], "no sbatch found; run this on a login node"),
        ("local_gpu.sh", ["--config", "x"], "no nvidia-smi found: install the NVIDIA driver"),
        ("demo.sh", [], "no Python 3.11 or newer found; install one, or set PYTHON="),
    ],
)
def test_missing_programs(script, arguments, message, bare_path, tmp_path):
    done = call(script, *arguments, PATH=bare_path, PYTHON="", CIR_JAX_VENV=str(tmp_path / "venv"))
    assert done.returncode == 2 and message in done.stderr


@pytest.mark.parametrize("script", ["local_gpu.sh", "slurm_gpu.sh"])
def test_a_dry_run_prints_what_bash_reads_back(script, tmp_path):
    """Also a flag that script and command both have: after -- it belongs to the command."""
    flags = ["--config", "x:y,stage=1", "--dry-run", *HARD]
    venv = tmp_path / "a venv"
    own = ["--logs", str(tmp_path)] if script == "slurm_gpu.sh" else []
    done = call(script, *own, "--dry-run", "--", *flags, CIR_JAX_VENV=str(venv))
    assert done.returncode == 0, done.stderr
    assert not venv.exists()
    program(venv / "bin/cir-jax", SHOW)
    queue = Slurm(tmp_path / "slurm", 1, tmp_path / "bin")
    last = done.stdout.splitlines()[-1]
    subprocess.run(["bash", "-c", last], env=os.environ | queue.environment, check=True)
    assert [arguments for _, arguments in shown(venv)] == [["train", *flags]]
