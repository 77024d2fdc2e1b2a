# SPDX-License-Identifier: Apache-2.0
"""launch/slurm_gpu.sh and slurm_job.sh, on a cluster that runs its jobs here."""

import socket

import pytest

from tests.launch.calls import HARD, LAUNCH, SHOW, call, program, shown
from tests.launch.slurm import RUN, Slurm

HOST = socket.gethostname()


@pytest.fixture
def slurm(tmp_path):
    """A cluster with two tasks a job."""
    program(tmp_path / "venv" / "bin" / "cir-jax", RUN)
    return Slurm(tmp_path / "slurm", 2, tmp_path / "bin")


@pytest.fixture
def queue(slurm, tmp_path):
    """Queues a job; returns the result of the script and what the job printed."""

    def run(*flags, **more):
        environment = slurm.environment | {"CIR_JAX_VENV": str(tmp_path / "venv")}
        logs = ["--logs", str(tmp_path / "logs")]
        done = call("slurm_gpu.sh", *logs, *flags, **environment | more)
        out = tmp_path / "logs/12.out"
        return done, out.read_text() if out.exists() else ""

    return run


def test_a_job(slurm, queue, tmp_path):
    """One task per GPU; srun is told the CPUs again, and flags reach the run as they were given."""
    program(tmp_path / "venv" / "bin" / "cir-jax", SHOW)
    flags = ["--config", "x:y", *HARD]
    done, _ = queue("--nodes", "2", "--gpus", "4", "--cpus", "12", "--account", "a", *flags)
    assert done.returncode == 0, done.stderr
    options = slurm.read("sbatch")
    assert options.startswith("--job-name cir_jax --nodes 2 --ntasks-per-node 4 --gpus-per-node 4 ")
    for option in ("--account a", "--cpus-per-task 12", "--signal TERM@300", "--open-mode=append"):
        assert option in options
    assert slurm.read("srun").startswith("--cpus-per-task 12 --kill-on-bad-exit=1 ")
    checked, *runs = shown(tmp_path / "venv")
    assert checked == [
        "--xla_force_host_platform_device_count=8",
        ["train", "--dry-run", *flags],
    ]
    assert [run[1] for run in runs] == [["train", *flags]] * 2


@pytest.mark.parametrize(
    "request_, option, sees",
    [
        ("gpus-per-node", "--gpus-per-node h100:4", "auto   "),
        ("gres", "--gres gpu:h100:4", "auto   "),
        # Each task sees one GPU: jax does not find its way, so all is said.
        ("gpus-per-task", "--gpus-per-task h100:1", " node1:20012 2 1"),
    ],
)
def test_ways_to_ask_for_gpus(request_, option, sees, slurm, queue, tmp_path):
    flags = ["--gpus", "4", "--gpu-type", "h100", "--config", "x"]
    done, _ = queue("--request", request_, *flags)
    assert done.returncode == 0, done.stderr
    assert option in slurm.read("sbatch") and slurm.read("status") == "0\n"
    assert (tmp_path / "logs/12/task-1.log").read_text().splitlines()[0] == sees


def test_an_interrupted_run_is_queued_again_until_it_is_finished(slurm, queue):
    slurm.plan(["75", "75", "0"], ["75", "75", "0"])
    done, out = queue("--config", "x")
    assert done.returncode == 0 and slurm.read("status") == "0\n"
    assert out.count("interrupted; the job is queued again and resumes") == 2
    assert slurm.read("srun").count("\n") == 3


def test_at_the_time_limit_all_tasks_save(slurm, queue, tmp_path):
    """The first that has saved does not end the others."""
    (slurm.root / "signal").touch()
    slurm.plan(["stay", "0"], ["stay", "0"])
    _, out = queue("--config", "x")
    assert "queued again and resumes" in out and slurm.read("status") == "0\n"
    for i in (0, 1):  # two starts in one log
        log = (tmp_path / f"logs/12/task-{i}.log").read_text()
        assert "saved" in log and log.count("says why") == 2


def test_the_time_limit_itself_queues_again(slurm, queue):
    """What did not end after the signal is killed; the last checkpoint stands."""
    (slurm.root / "state").write_text("TIMEOUT")
    slurm.plan(["137", "137"], ["137", "137"])
    _, out = queue("--restarts", "1", "--config", "x")
    assert out.count("the job is queued again") == 1
    assert "queued again 1 times already" in out and slurm.read("status") == "75\n"


def test_queueing_again_is_bounded(slurm, queue):
    slurm.plan(["75"] * 9, ["75"] * 9)
    _, out = queue("--restarts", "2", "--config", "x")
    assert slurm.read("srun").count("\n") == 3 and slurm.read("status") == "75\n"
    assert "queued again 2 times already; the same command resumes it" in out


def test_a_cluster_that_requeues_nothing_gets_a_new_job(slurm, queue, tmp_path):
    (slurm.root / "no_requeue").touch()
    slurm.plan(["75"], ["75"])
    queue("--restarts", "5", "--config", "x y")
    first, second = slurm.read("sbatch").splitlines()
    assert " job " in second and f"{tmp_path}/logs 4 8 gpus-per-node" in second
    assert second.replace("/logs 4 ", "/logs 5 ") == first


@pytest.mark.parametrize("status", ["1", "2", "134"])
def test_a_failure_is_not_queued_again_and_its_task_is_named(status, slurm, queue):
    slurm.plan(["stay"], [status])
    _, out = queue("--config", "x")
    assert slurm.read("srun").count("\n") == 1 and slurm.read("status") == f"{status}\n"
    assert f"task 1 on {HOST} failed first, with status {status}; the end of" in out
    assert out.endswith("says why in task 1\n")


@pytest.mark.parametrize("state", ["DOWN*", "ALLOCATED+NOT_RESPONDING", "ALLOCATED*"])
def test_a_lost_node_is_an_interruption(state, slurm, queue):
    (slurm.root / "node").write_text(state)
    slurm.plan(["late", "0"], ["lost", "0"])
    _, out = queue("--config", "x")
    assert "a node was lost; the job is queued again" in out and slurm.read("status") == "0\n"


def test_a_killed_task_on_a_good_node_is_a_crash(slurm, queue):
    slurm.plan(["late"], ["lost"])
    _, out = queue("--config", "x")
    assert "failed first, with status 1" in out and slurm.read("srun").count("\n") == 1


def test_scancel_is_no_interruption(slurm, queue):
    (slurm.root / "cancel").touch()
    (slurm.root / "state").write_text("CANCELLED")
    slurm.plan(["stay"], ["stay"])
    _, out = queue("--config", "x")
    assert "cancelled; the same command resumes the run" in out
    assert slurm.read("srun").count("\n") == 1 and slurm.read("status") == "75\n"


def test_what_cir_jax_refuses_is_not_queued(slurm, queue, tmp_path):
    program(tmp_path / "venv" / "bin" / "cir-jax", SHOW)
    done, _ = queue("--node", "2", "--config", "x", FAILS="2")
    assert done.returncode == 2
    assert len(shown(tmp_path / "venv")) == 1 and not slurm.read("sbatch")


def test_the_job_says_what_it_would_run(slurm, tmp_path):
    words = ["job", str(tmp_path), "3", "8", "gres", "--time", "1", "--", "cir-jax", "train", "a b"]
    root = LAUNCH.parent
    done = call("slurm_job.sh", "--dry-run", words[0], str(root), *words[1:])
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("srun --cpus-per-task 8") and r"train a\ b" in done.stdout


def test_slurm_needs_an_installed_environment(tmp_path):
    program(tmp_path / "sbatch", "#!/bin/sh\n")
    path = f"{tmp_path}:/usr/bin:/bin"
    done = call("slurm_gpu.sh", "--config", "x", PATH=path, CIR_JAX_VENV=str(tmp_path / "none"))
    assert done.returncode == 2 and "install it there first" in done.stderr
