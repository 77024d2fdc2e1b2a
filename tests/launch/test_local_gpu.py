# SPDX-License-Identifier: Apache-2.0
"""launch/local_gpu.sh, with an nvidia-smi that answers as the real one does."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.launch.calls import HARD, LAUNCH, SHOW, call, program, shown
from tests.launch.test_local_processes import is_alive, wait_for_files

FLAGS = ["--config", "clip_sum:cirr,stage=1"]
# Writes down what it was told, and stays until TERM if it is to.
RUN = """#!/usr/bin/env bash
echo "$CUDA_VISIBLE_DEVICES $CIR_JAX_PROCESS of $CIR_JAX_PROCESSES at $CIR_JAX_COORDINATOR: $*"
case "$DOES" in
  stay)
    trap 'sleep 0.2; echo saved >"$PLACE/saved-$CIR_JAX_PROCESS"; exit 75' TERM
    echo $$ >"$PLACE/started-$CIR_JAX_PROCESS"
    for _ in {1..600}; do sleep 0.1; done
    ;;
  fail) [ "$CIR_JAX_PROCESS" = 0 ] || exit 5; for _ in {1..600}; do sleep 0.1; done ;;
esac
"""


def smi(tmp_path, *lines, status=0):
    text = "".join(f"echo {line!r}\n" for line in lines)
    program(tmp_path / "bin" / "nvidia-smi", f"#!/bin/sh\n{text}exit {status}\n")


@pytest.fixture
def installed(tmp_path, fake_python):
    """An environment with two GPUs whose cir-jax is RUN."""
    smi(tmp_path, "0, 580.65.06", "1, 580.65.06")
    assert call("local_gpu.sh", *FLAGS, **fake_python).returncode == 0
    program(tmp_path / "venv/bin/cir-jax", RUN)
    return fake_python | {"PLACE": str(tmp_path), "DOES": "nothing"}


@pytest.mark.parametrize("driver, extra", [("580.65.06", "cuda"), ("535.183.01", "cuda12")])
def test_gpu_extra_follows_the_driver(driver, extra, tmp_path, fake_python):
    smi(tmp_path, f"0, {driver}")
    done = call("local_gpu.sh", *FLAGS, **fake_python)
    assert done.returncode == 0, done.stderr
    assert f"NVIDIA driver {driver}, 1 GPUs" in done.stdout
    lines = Path(fake_python["LOG"]).read_text().splitlines()
    assert sum(line.endswith(f"[{extra}]") for line in lines) == 1
    assert lines[-1] == "train --config clip_sum:cirr,stage=1"


@pytest.mark.parametrize("own", [[], ["--"]])
def test_gpu_script_hands_flags_on_unchanged(own, tmp_path, installed):
    program(tmp_path / "venv/bin/cir-jax", SHOW)
    flags = ["--config", "x:y,stage=1", *HARD]
    done = call("local_gpu.sh", *own, *flags, **installed)
    assert done.returncode == 0, done.stderr
    assert shown(tmp_path / "venv")[-1][1] == ["train", *flags]


@pytest.mark.parametrize(
    "says, status, message",
    [
        ("0, 470.82.01", 0, "driver 470.82.01 is older than 525"),
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure "
         "that the latest NVIDIA driver is installed and running.", 9, "sudo modprobe nvidia"),
        ("Failed to initialize NVML: Driver/library version mismatch", 18, "restart the machine"),
        ("No devices were found", 6, "the driver finds no GPU; see lspci"),
        ("", 0, "the driver finds no GPU; see lspci"),
        ("Failed to initialize NVML: Insufficient Permissions", 4, "ls -l /dev/nvidia"),
        ("Failed to initialize NVML: Unknown Error", 255, "nvidia-smi does not work; install"),
    ],
)  # fmt: skip
def test_gpu_script_stops_without_a_usable_gpu(says, status, message, tmp_path, fake_python):
    (tmp_path / "says").write_text(f"{says}\n" if says else "")
    text = f"#!/bin/sh\ncat {tmp_path}/says\nexit {status}\n"
    program(tmp_path / "bin" / "nvidia-smi", text)
    done = call("local_gpu.sh", *FLAGS, **fake_python)
    assert done.returncode == 2 and message in done.stderr
    assert status == 0 or says in done.stderr
    assert not Path(fake_python["LOG"]).exists()


def test_a_jax_without_gpus_is_named(tmp_path, installed):
    python = tmp_path / "venv/bin/python"
    python.write_text(
        python.read_text().replace('"-c "*)', '"-c import sys, jax"*) exit 1 ;;\n"-c "*)')
    )
    done = call("local_gpu.sh", *FLAGS, **installed | {"JAX_PLATFORMS": "cpu"})
    assert done.returncode == 2 and "jax sees no GPU" in done.stderr
    assert "JAX_PLATFORMS=cpu" in done.stderr


@pytest.mark.parametrize("flags, said", [([], "unset"), (["--grow-memory"], "false")])
def test_memory_is_taken_as_jax_does_unless_asked(flags, said, tmp_path, installed):
    text = '#!/bin/sh\necho "memory ${XLA_PYTHON_CLIENT_PREALLOCATE-unset}"\n'
    program(tmp_path / "venv/bin/cir-jax", text)
    installed.pop("XLA_PYTHON_CLIENT_PREALLOCATE", None)
    assert f"memory {said}" in call("local_gpu.sh", *flags, *FLAGS, **installed).stdout


@pytest.mark.parametrize("visible, ids", [("", ["0", "1"]), ("3,GPU-5a", ["3", "GPU-5a"])])
def test_a_process_for_each_gpu(visible, ids, tmp_path, installed):
    logs = ["--process-per-gpu", "--logs", str(tmp_path / "logs")]
    done = call("local_gpu.sh", *logs, *FLAGS, **installed | {"CUDA_VISIBLE_DEVICES": visible})
    assert done.returncode == 0, done.stderr
    lines = [done.stdout.splitlines()[-1], (tmp_path / "logs/process-1.log").read_text().strip()]
    for i, line in enumerate(lines):
        assert line.startswith(f"{ids[i]} {i} of 2 at 127.0.0.1:")
        assert line.endswith(": train --config clip_sum:cirr,stage=1")
    assert len({line.split()[5] for line in lines}) == 1


def test_one_process_that_fails_ends_all(installed):
    done = call("local_gpu.sh", "--process-per-gpu", "--grace", "5", *FLAGS,
                **installed | {"DOES": "fail"})  # fmt: skip
    assert done.returncode == 5 and "ended with status 5; logs" in done.stderr


def test_a_signal_reaches_all_and_their_status_comes_back(tmp_path, installed):
    running = subprocess.Popen(
        ["bash", str(LAUNCH / "local_gpu.sh"), "--process-per-gpu", *FLAGS],
        env=os.environ | installed | {"DOES": "stay"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    started = [tmp_path / f"started-{i}" for i in (0, 1)]
    wait_for_files(running, started)
    running.send_signal(signal.SIGTERM)
    running.communicate(timeout=60)
    assert running.returncode == 75  # what the processes said
    assert all((tmp_path / f"saved-{i}").exists() for i in (0, 1))
    assert not any(is_alive(int(file.read_text())) for file in started)


def test_processes_that_would_be_started(tmp_path):
    done = call("local_gpu.sh", "--process-per-gpu", "--dry-run", *FLAGS,
                CIR_JAX_VENV=str(tmp_path / "venv"), CUDA_VISIBLE_DEVICES="4,6")  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()[-2:]
    for i, gpu in enumerate((4, 6)):
        assert lines[i].startswith(f"env CUDA_VISIBLE_DEVICES={gpu} CIR_JAX_COORDINATOR=127.0.0.1:")
        assert f"CIR_JAX_PROCESSES=2 CIR_JAX_PROCESS={i} " in lines[i]
