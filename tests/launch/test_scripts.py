# SPDX-License-Identifier: Apache-2.0
"""Every launch script: shellcheck, --help, --dry-run and bad flags."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.calls import HERE, LAUNCH, call, program

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
        ("local_gpu.sh", ["--confg", "x"], "unknown flag --confg; see --help"),
        ("local_gpu.sh", [], "no --config given"),
        ("local_gpu.sh", ["--config"], "--config needs a value"),
        ("slurm_gpu.sh", ["--node", "2"], "unknown flag --node"),
        ("slurm_gpu.sh", ["--gpus", "all", "--config", "x"], "'all' is no number above 0"),
        ("local_processes.sh", [], "no command of cir-jax given"),
        ("local_processes.sh", ["--processes", "0", "train"], "'0' is no number above 0"),
        ("local_processes.sh", ["--frobnicate", "train"], "unknown flag --frobnicate"),
        ("tpu_pod.sh", ["launch", *POD], "unknown action launch; there are: create install"),
        ("tpu_pod.sh", ["create", "--name", "x"], "--zone is missing"),
        ("tpu_pod.sh", ["create", *POD, "--tpye", "v4-8"], "unknown flag --tpye"),
        ("tpu_pod.sh", ["create", *POD, "--type", "v9-8", "--dry-run"], "no runtime is known"),
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
        ("local_gpu.sh", ["--config", "x"], "nvidia-smi finds no GPU; install the NVIDIA driver"),
        ("demo.sh", [], "no Python 3.11 or newer found; install one, or set PYTHON="),
    ],
)
def test_missing_programs(script, arguments, message, bare_path, tmp_path):
    done = call(script, *arguments, PATH=bare_path, PYTHON="", CIR_JAX_VENV=str(tmp_path / "venv"))
    assert done.returncode == 2 and message in done.stderr


@pytest.mark.parametrize("driver, extra", [("580.65.06", "cuda"), ("535.183.01", "cuda12")])
def test_gpu_extra_follows_the_driver(driver, extra, tmp_path, fake_python):
    program(tmp_path / "bin" / "nvidia-smi", f"#!/bin/sh\necho {driver}\n")
    done = call("local_gpu.sh", "--config", "clip_sum:cirr,stage=1", **fake_python)
    assert done.returncode == 0, done.stderr
    lines = Path(fake_python["LOG"]).read_text().splitlines()
    assert sum(line.endswith(f"[{extra}]") for line in lines) == 1
    assert lines[-1] == "train --config clip_sum:cirr,stage=1"


@pytest.mark.parametrize(
    "says, message",
    [("echo 470.82.01", "driver 470.82.01 is older than 525"), ("exit 9", "nvidia-smi finds no")],
)
def test_gpu_script_stops_without_a_usable_gpu(says, message, tmp_path, fake_python):
    program(tmp_path / "bin" / "nvidia-smi", f"#!/bin/sh\n{says}\n")
    done = call("local_gpu.sh", "--config", "clip_sum:cirr", **fake_python)
    assert done.returncode == 2 and message in done.stderr
    assert not Path(fake_python["LOG"]).exists()


def test_slurm_job(tmp_path):
    """One task per GPU; srun is told the CPUs again, and flags reach the run as they were given."""
    log = tmp_path / "log"
    program(tmp_path / "bin" / "sbatch", f'#!/bin/sh\nprintf "%s\\n" "$@" >{log}\n')
    program(tmp_path / "venv" / "bin" / "cir-jax", "#!/bin/sh\n")
    flags = ["--nodes", "2", "--gpus", "4", "--cpus", "12", "--account", "a", "--config", "x:y"]
    done = call(
        "slurm_gpu.sh",
        *flags,
        "--set",
        "data.root=/a b",
        PATH=f"{tmp_path}/bin:/usr/bin:/bin",
        CIR_JAX_VENV=str(tmp_path / "venv"),
    )
    assert done.returncode == 0, done.stderr
    *options, wrapped = log.read_text().strip().splitlines()
    assert " ".join(options).startswith("--job-name cir_jax --nodes 2 --ntasks-per-node 4")
    assert "--account a" in " ".join(options) and "--cpus-per-task 12" in " ".join(options)
    assert wrapped.startswith("CIR_JAX_DISTRIBUTED=auto srun --cpus-per-task 12 ")
    assert wrapped.endswith(r"train --config x:y --set data.root=/a\ b ".strip())


def test_slurm_needs_an_installed_environment(tmp_path):
    program(tmp_path / "sbatch", "#!/bin/sh\n")
    path = f"{tmp_path}:/usr/bin:/bin"
    done = call("slurm_gpu.sh", "--config", "x", PATH=path, CIR_JAX_VENV=str(tmp_path / "none"))
    assert done.returncode == 2 and "install it there first" in done.stderr
