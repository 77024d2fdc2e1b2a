# SPDX-License-Identifier: Apache-2.0
"""launch/tpu_pod.sh, against a gcloud whose slices go through states and whose workers are here."""

import os
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.launch import calls
from tests.launch.cloud import Cloud

POD = ["--name", "my-pod", "--zone", "us-central1-a"]
TRAIN = ["train", "--config", "clip_sum:cirr,stage=1", "--set", "data.root=/a b"]
UP = ("CREATING", "READY")


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
def cloud(tmp_path):
    return Cloud(tmp_path / "cloud", 2, tmp_path / "bin")


@pytest.fixture
def pod(tmp_path, cloud, checkout, fake_python):
    """Calls the script."""
    calls.program(tmp_path / "bin" / "python3", calls.PYTHON)
    environment = fake_python | cloud.environment | {"GIT_CONFIG_GLOBAL": "/dev/null"}
    del environment["CIR_JAX_VENV"]

    def run(*arguments, **more):
        return calls.call("tpu_pod.sh", *arguments, root=checkout, **environment | more)

    return run


def wait_for(path, text=""):
    deadline = time.monotonic() + 60
    while not (path.exists() and text in path.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def seen(done):
    """The states that were reported, without the time and name before them."""
    return [x.split(" my-pod: ")[1] for x in done.stdout.splitlines() if " my-pod: " in x]


def test_a_request_is_followed_until_its_slice_is_ready(pod, cloud):
    cloud.states("plan/1.requests", "CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING")
    cloud.states("plan/1.nodes", "-", "-", "-", "-", "CREATING", "REPAIRING", "READY")
    flags = ["--spot", "--type", "v6e-32", "--project", "p", "--network", "n", "--subnetwork", "s",
             "--service-account", "a@b", "--scopes", "storage-full", "--labels", "a=b",
             "--data-disk", "source=d1", "--data-disk", "source=d2", "--internal-ips"]  # fmt: skip
    done = pod("create", *POD, *flags)
    assert done.returncode == 0, done.stderr
    assert seen(done) == ["CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING",
                          "CREATING", "REPAIRING", "READY"]  # fmt: skip
    assert (
        "compute tpus queued-resources create my-pod --node-id my-pod --accelerator-type v6e-32 "
        "--spot --internal-ips --network n --subnetwork s --service-account a@b --scopes "
        "storage-full --labels a=b --data-disk source=d1 --data-disk source=d2 --runtime-version "
        "v2-alpha-tpuv6e --zone us-central1-a --project p" in cloud.calls
    )
    assert cloud.calls.count("--zone us-central1-a --project p") == cloud.calls.count("tpus")


@pytest.mark.parametrize(
    "flags, command",
    [
        (["--reserved"], "queued-resources create my-pod --node-id my-pod --accelerator-type "
         "v5litepod-16 --reserved --runtime-version v2-alpha-tpuv5-lite"),
        (["--direct", "--version", "r"], "tpu-vm create my-pod --accelerator-type v5litepod-16 "
         "--version r"),
    ],
)  # fmt: skip
def test_ways_to_ask(flags, command, pod, cloud):
    cloud.states("plan/1.nodes", *UP)
    done = pod("create", *POD, *flags)
    assert done.returncode == 0, done.stderr
    assert command in cloud.calls


@pytest.mark.parametrize(
    "nodes, reported",
    [
        (("READY",), ["READY"]),
        (("STOPPED",), ["STOPPED", "STARTING", "READY"]),
        (("RESTARTING", "REIMAGING", "UNHIDING", "STOPPING", "READY"),
         ["RESTARTING", "REIMAGING", "UNHIDING", "STOPPING", "READY"]),
    ],
)  # fmt: skip
def test_a_slice_that_comes_back_is_used(nodes, reported, pod, cloud):
    cloud.states("nodes", nodes[0], *nodes)
    done = pod("create", *POD)
    assert done.returncode == 0, done.stderr
    assert "exists already" in done.stdout and " create " not in cloud.calls
    assert seen(done) == reported


@pytest.mark.parametrize(
    "requests, nodes, state",
    [
        *(((), (s,), s) for s in ("PREEMPTED", "TERMINATED", "HIDDEN", "HIDING", "DELETING")),
        ((), ("UNKNOWN",), "UNKNOWN"),
        ((), ("SOMETHING_NEW",), "SOMETHING_NEW"),
        *(((s,), (), s) for s in ("FAILED", "SUSPENDING", "SUSPENDED", "DELETING", "ACTIVE")),
        (("SOMETHING_NEW",), (), "SOMETHING_NEW"),
    ],
)
def test_a_slice_that_does_not_come_back_is_named(requests, nodes, state, pod, cloud):
    cloud.states("requests", *requests)
    cloud.states("nodes", *nodes)
    (cloud.root / "reason").write_text("no capacity until the time given\n")
    done = pod("create", *POD, CIR_JAX_TRIES="3")
    assert done.returncode == 2 and f"my-pod is {state}; delete it" in done.stderr
    assert ("no capacity until" in done.stderr) == (state == "FAILED")
    patient = state in ("ACTIVE", "SOMETHING_NEW")  # may change in a moment: 3 looks
    assert (cloud.calls.count("tpu-vm describe") > 2) == patient


@pytest.mark.parametrize(
    "error, words, remedy",
    [
        ("denied", "Permission 'tpu.nodes.get' denied", "role roles/tpu.admin"),
        (
            "off",
            "Cloud TPU API has not been used",
            "services enable tpu.googleapis.com --project p",
        ),
        ("account", "active account selected", "gcloud auth login"),
        ("zone", "Location us-central1-a is not found", "the words above are gcloud's"),
    ],
)
def test_an_error_that_stays_ends_at_once(error, words, remedy, pod, cloud):
    cloud.states("nodes", f"!{error}")
    done = pod("create", *POD, "--project", "p")
    assert done.returncode == 2 and words in done.stderr and remedy in done.stderr
    assert cloud.calls.count("tpus") == 1


def test_an_error_that_passes_is_tried_again(pod, cloud):
    cloud.states("nodes", "!busy", "!rate", "CREATING", "!busy", "READY")
    done = pod("create", *POD)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("no answer, asked again: ERROR:") == 3
    cloud.states("nodes", "!busy")
    done = pod("create", *POD, CIR_JAX_TRIES="4")
    assert done.returncode == 2 and "could not be read 4 times" in done.stderr
    assert "UNAVAILABLE: The service is currently unavailable." in done.stderr


@pytest.mark.parametrize(
    "error, remedy", [("quota", "ask for quota of this type"), ("stockout", "without --direct")]
)
def test_a_refused_creation_is_shown(error, remedy, pod, cloud):
    cloud.states("plan/create", error)
    done = pod("create", *POD, "--direct")
    assert done.returncode == 2 and "my-pod was not created" in done.stderr
    assert "us-central1-a" in done.stderr and remedy in done.stderr


def test_ways_to_the_workers(pod, cloud):
    cloud.states("nodes", "READY")
    pod("stop", *POD, "--iap")
    assert "queued-resources ssh my-pod --worker all" in cloud.calls
    assert "--node 0 --tunnel-through-iap" in cloud.calls
    pod("stop", *POD, "--iap", "--direct")
    assert "alpha compute tpus tpu-vm ssh my-pod" in cloud.calls
    pod("logs", *POD, "--internal-ips", "--worker", "1")
    assert "log --internal-ip --zone" in cloud.calls and "--worker 1" in cloud.calls


def test_install_start_status_stop(pod, cloud, tmp_path):
    """The commands of the workers are run for once: in folders of workers that are here."""
    worker = cloud.root / "worker1" / "cir_jax"
    (worker / "cir_jax").mkdir(parents=True)
    (worker / "cir_jax" / "gone.py").touch()
    (worker / "runs").mkdir()
    cloud.states("nodes", "READY")
    done = pod("install", *POD)
    assert done.returncode == 0, done.stderr
    assert (worker / "pyproject.toml").read_text() == "# changed\n"
    assert not (worker / "cir_jax" / "gone.py").exists() and (worker / "runs").is_dir()
    assert "cir_jax[tpu]" in (cloud.root / "worker0/log").read_text()

    for i in (0, 1):
        cloud.states(f"plan/runs{i}", "stay")
    done = pod("start", *POD, "--", *TRAIN)
    assert done.returncode == 0, done.stderr
    wait_for(worker / "run/log", "auto: train --config clip_sum:cirr,stage=1 --set data.root=/a b")
    done = pod("start", *POD, "--", *TRAIN)
    assert done.returncode == 1 and "a run is on; stop it first" in done.stderr
    done = pod("status", *POD)
    assert done.stdout.splitlines() == ["READY", *(f"cir_jax worker {i}: running" for i in (0, 1))]
    for i in (0, 1):
        wait_for(cloud.root / f"on{i}")
    done = pod("stop", *POD)
    assert done.returncode == 0, done.stderr
    assert (worker / "run/log").read_text().endswith("saved\nended with status 75\n")
    assert "worker 1: stopped 75" in pod("status", *POD).stdout
    assert pod("stop", *POD).returncode == 0  # nothing is on


def babysit(pod, *flags, **more):
    return pod("babysit", *POD, *flags, "--", *TRAIN, **more)


def test_babysit_until_the_run_is_finished(pod, cloud):
    """Interrupted twice, then through: three starts on one slice, which is kept."""
    cloud.states("plan/1.requests", "WAITING_FOR_RESOURCES")
    cloud.states("plan/1.nodes", "-", *UP)
    for i in (0, 1):
        cloud.states(f"plan/runs{i}", "75", "75", "0")
    done = babysit(pod)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("interrupted and is started again") == 2
    assert "my-pod: the run is finished" in done.stdout
    assert cloud.calls.count(" create ") == 1 and " delete " not in cloud.calls


@pytest.mark.parametrize("state", ["PREEMPTED", "TERMINATED", "UNKNOWN"])
def test_babysit_makes_a_slice_anew_that_was_taken_away(state, pod, cloud):
    cloud.states("plan/1.requests", "ACTIVE")
    cloud.states("plan/1.nodes", "READY", "READY", *["READY"] * 6, state)
    cloud.states("plan/2.requests", "ACCEPTED", "PROVISIONING")
    cloud.states("plan/2.nodes", "-", "-", *UP)
    cloud.states("plan/runs0", "stay", "0")
    cloud.states("plan/runs1", "stay", "0")
    done = babysit(pod)
    assert done.returncode == 0, done.stderr
    assert f"my-pod is {state} and is made anew" in done.stdout
    assert cloud.calls.count("queued-resources create") == 2
    assert "queued-resources delete my-pod --force" in cloud.calls
    assert "my-pod: the run is finished" in done.stdout


def test_babysit_shows_bad_input_and_ends(pod, cloud):
    cloud.states("plan/1.nodes", *UP)
    cloud.states("plan/runs0", "1")
    cloud.states("plan/runs1", "2")
    done = babysit(pod)
    assert done.returncode == 2 and "correct it and call babysit again" in done.stderr
    assert "worker 1 ended with status 2; its last lines:" in done.stdout
    assert "says why on worker 1" in done.stdout
    assert cloud.calls.count(" start ") == 1


def test_babysit_ends_after_crashes_in_a_row(pod, cloud):
    cloud.states("plan/1.nodes", *UP)
    cloud.states("plan/runs0", *["75"] * 9)
    cloud.states("plan/runs1", *["134"] * 9)
    done = babysit(pod, "--restarts", "2")
    assert done.returncode == 1 and "crashed 3 times in a row" in done.stderr
    assert "crash 2 of at most 2 in a row" in done.stdout
    assert done.stdout.count("says why on worker 1") == 3  # the last lines, each time
    assert "says why on worker 0" not in done.stdout
    assert cloud.calls.count("tpu_worker.sh start") == 3


def test_babysit_ends_the_rest_of_a_run(pod, cloud):
    """A worker that stays while the other has ended is ended; then all start again."""
    cloud.states("plan/1.nodes", *UP)
    cloud.states("plan/runs0", "stay", "0")
    cloud.states("plan/runs1", "1", "0")
    done = babysit(pod)
    assert done.returncode == 0, done.stderr
    assert "run on without the others and are ended" in done.stderr
    assert "worker 0: ended 137" in done.stdout


def test_babysit_leaves_a_run_that_was_stopped(pod, cloud):
    """It finds the run that is on, starts no other, and ends as `stop` from elsewhere asks."""
    cloud.states("nodes", "READY")
    for i in (0, 1):
        cloud.states(f"plan/runs{i}", "stay")
    assert pod("install", *POD).returncode == 0
    assert pod("start", *POD, "--", *TRAIN).returncode == 0
    for i in (0, 1):
        wait_for(cloud.root / f"on{i}")
    with ThreadPoolExecutor() as pool:
        watching = pool.submit(babysit, pod, CIR_JAX_POLL="0.3")
        wait_for(cloud.root / "calls", "tpu_worker.sh state")
        assert pod("stop", *POD).returncode == 0
    done = watching.result()
    assert done.returncode == 75, done.stderr
    assert "the run was stopped; the same command goes on" in done.stdout
    assert cloud.calls.count("tpu_worker.sh start") == 1


def test_babysit_names_a_request_that_always_fails(pod, cloud):
    for number in range(1, 5):
        cloud.states(f"plan/{number}.requests", "FAILED")
    done = babysit(pod, "--restarts", "2")
    assert done.returncode == 2 and "failed 3 times in a row" in done.stderr


def test_babysit_names_workers_that_do_not_answer(pod, cloud):
    cloud.states("nodes", "READY")
    (cloud.root / "ssh_fails").touch()
    done = babysit(pod, CIR_JAX_TRIES="2")
    assert done.returncode == 2 and "the workers of my-pod do not answer" in done.stderr
    assert "Connection timed out" in done.stderr


def test_babysit_names_an_install_that_always_fails(pod, cloud):
    cloud.states("nodes", "READY")
    (cloud.root / "scp_fails").touch()
    done = babysit(pod, "--restarts", "2")
    assert done.returncode == 2 and "installed and started 3 times in a row" in done.stderr
    assert "Connection timed out" in done.stderr and cloud.calls.count(" scp ") == 3


def test_logs_of_all_workers_reach_the_bucket(cloud, checkout, fake_python, tmp_path):
    """While the run is on, and whole at its end."""
    worker = cloud.root / "worker0" / "cir_jax"
    checkout.rename(worker)
    calls.program(worker / ".venv/bin/cir-jax", cloud.runs.read_text())
    cloud.states("plan/runs0", "stay")
    bucket = tmp_path / "bucket"
    more = fake_python | cloud.environment | {"WORKER": "0", "CIR_JAX_SAVE": "1"}
    start = ["start", "my-pod-1", str(bucket), "--", *TRAIN]
    done = calls.call("tpu_worker.sh", *start, root=worker, **more)
    assert done.returncode == 0, done.stderr
    log = bucket / "my-pod-1-worker-0.log"
    wait_for(log, "auto: train")
    wait_for(cloud.root / "on0")
    # As a machine that is taken away: every process gets the signal, once.
    os.killpg(os.getpgid(int((worker / "run/pid").read_text())), signal.SIGTERM)
    wait_for(worker / "run/status")
    assert log.read_text().endswith("saved\nended with status 75\n")


def test_up_and_delete(pod, cloud):
    flags = [*POD, "--bucket", "gs://photos/", "--dry-run"]
    done = pod("up", *flags, "--", "train", "--config", "clip_sum:cirr")
    assert done.returncode == 0 and cloud.calls == ""
    printed = done.stdout.splitlines()
    steps = (
        "queued-resources create",
        "archive",
        "scp",
        "install",
        "mount\\ photos",
        "start",
        "log",
    )
    assert len(printed) == len(steps)
    for step, line in zip(steps, printed, strict=True):
        assert step in line
    assert "/mnt/photos/logs" in printed[5]
    cloud.states("requests", "ACTIVE")
    cloud.states("nodes", "READY")
    done = pod("delete", *POD)
    assert done.returncode == 0, done.stderr
    assert "queued-resources delete my-pod --force --quiet" in cloud.calls
    assert "there is no my-pod" in pod("delete", *POD).stdout
    cloud.states("nodes", "PREEMPTED")
    assert pod("delete", *POD).returncode == 0
    assert "tpu-vm delete my-pod --quiet" in cloud.calls
