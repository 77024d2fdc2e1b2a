# SPDX-License-Identifier: Apache-2.0
"""launch/gke/: JobSets as they are filled in, by their schema; what kubectl, xpk, docker get."""

import copy
import json
import os
import re
import subprocess

import jsonschema
import pytest
import yaml

from tests.launch.calls import HARD, LAUNCH, call, copy_checkout, program

SCHEMA = json.loads((LAUNCH / "gke/jobset.schema.json").read_text())
WHO = ["--name", "my-run", "--image", "europe-docker.pkg.dev/p/r/cir_jax:1"]
TRAIN = ["--", "train", "--config", "clip_sum:cirr"]
TPU = ["tpu", "--tpu", "v5e", "--topology", "4x4"]
GPU = ["gpu", "--gpu", "nvidia-h100-80gb", "--nodes", "2"]
ALL = ["--bucket", "gs://photos", "--spot", "--queue", "mine", "--service-account", "reads",
       "--namespace", "team", "--restarts", "2"]  # fmt: skip


def filled(*flags, run=TRAIN):
    """The JobSet, valid by the schema."""
    done = call("gke/submit.sh", *flags, *WHO, "--dry-run", *run)
    assert done.returncode == 0, done.stderr
    assert "__" not in done.stdout and "# if" not in done.stdout
    jobset = yaml.safe_load(done.stdout)
    jsonschema.validate(jobset, SCHEMA, format_checker=jsonschema.FormatChecker())
    return jobset


def pods(jobset):
    """Its one kind of Job, and the pod and container of that."""
    (job,) = jobset["spec"]["replicatedJobs"]
    pod = job["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    return job, pod, container


@pytest.mark.parametrize("kind", [TPU, GPU])
def test_with_everything_that_can_be_asked_for(kind):
    jobset = filled(*kind, *ALL)
    job, pod, container = pods(jobset)
    assert jobset["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "mine"}
    assert jobset["metadata"]["namespace"] == "team" and pod["serviceAccountName"] == "reads"
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] == 2
    annotations = job["template"]["spec"]["template"]["metadata"]["annotations"]
    assert annotations == {"gke-gcsfuse/volumes": "true"}
    mounts = {m["name"]: m["mountPath"] for m in container["volumeMounts"]}
    assert mounts["bucket"] == "/mnt/photos"
    assert {v["name"] for v in pod["volumes"]} == set(mounts)
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert pod["tolerations"][0]["key"] == "cloud.google.com/gke-spot"


@pytest.mark.parametrize("kind", [TPU, GPU])
def test_with_nothing_beside_what_must_be(kind):
    jobset = filled(*kind)
    _, pod, container = pods(jobset)
    assert "labels" not in jobset["metadata"] and "tolerations" not in pod
    assert "bucket" not in json.dumps(jobset)
    assert container["args"] == TRAIN[1:]


@pytest.mark.parametrize(
    "tpu, topology, slices, hosts, chips, accelerator",
    [
        ("v5e", "1x1", 1, 1, 1, "tpu-v5-lite-podslice"),
        ("v5e", "2x2", 1, 1, 4, "tpu-v5-lite-podslice"),
        ("v5e", "2x4", 1, 1, 8, "tpu-v5-lite-podslice"),
        ("v5e", "16x16", 4, 64, 4, "tpu-v5-lite-podslice"),
        ("v6e", "2x4", 1, 1, 8, "tpu-v6e-slice"),
        ("v6e", "4x8", 2, 8, 4, "tpu-v6e-slice"),
        ("v5p", "2x2x4", 1, 4, 4, "tpu-v5p-slice"),
        ("v4", "2x2x4", 3, 4, 4, "tpu-v4-podslice"),
        ("tpu7x", "4x4x4", 2, 16, 4, "tpu7x"),
    ],
)
def test_slices_and_hosts(tpu, topology, slices, hosts, chips, accelerator):
    jobset = filled("tpu", "--tpu", tpu, "--topology", topology, "--slices", str(slices))
    job, pod, container = pods(jobset)
    assert job["replicas"] == slices
    assert job["template"]["spec"]["parallelism"] == hosts == job["template"]["spec"]["completions"]
    assert container["resources"]["limits"] == {"google.com/tpu": chips}
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": accelerator,
        "cloud.google.com/gke-tpu-topology": topology,
    }
    # One slice on one node pool; a host alone needs none for itself.
    assert ("annotations" in jobset["metadata"]) == (hosts > 1)
    assert container["env"] == [{"name": "CIR_JAX_DISTRIBUTED", "value": "auto"}]


def test_hosts_with_other_chips():
    job, _, container = pods(filled(*TPU[:3], "--topology", "2x4", "--chips", "4"))
    assert job["template"]["spec"]["parallelism"] == 2
    assert container["resources"]["limits"] == {"google.com/tpu": 4}


def test_gpu_pods_are_told_where_the_others_are():
    jobset = filled(*GPU, "--gpus", "4")
    job, pod, container = pods(jobset)
    env = {x["name"]: x.get("value") for x in container["env"]}
    first = f"my-run-{job['name']}-0-0.my-run"  # as JobSet names the host of a pod
    assert env["CIR_JAX_COORDINATOR"] == f"{first}:8482" and env["CIR_JAX_PROCESSES"] == "2"
    (index,) = [x["valueFrom"] for x in container["env"] if x["name"] == "CIR_JAX_PROCESS"]
    assert "job-completion-index" in index["fieldRef"]["fieldPath"]
    assert job["replicas"] == 1 and job["template"]["spec"]["parallelism"] == 2
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 4}
    assert pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}


def decide(jobset, status=None, condition=None):
    """What follows when a pod ends so: the rules as Kubernetes and JobSet read them."""
    reason, message = "BackoffLimitExceeded", "Job has reached the specified backoff limit"
    job, _, container = pods(jobset)
    for index, rule in enumerate(job["template"]["spec"]["podFailurePolicy"]["rules"]):
        codes = rule.get("onExitCodes")
        if codes and status in codes["values"] and codes["containerName"] == container["name"]:
            message = (
                f"Container cir-jax for pod team/my-run-0 failed with exit code {status} matching "
                f"FailJob rule at index {index}"
            )
        elif condition in [c["type"] for c in rule.get("onPodConditions", [])]:
            message = f"Pod team/my-run-0 has condition {condition} matching FailJob rule"
        else:
            continue
        reason = "PodFailurePolicy"
        break
    for rule in jobset["spec"]["failurePolicy"]["rules"]:
        patterns = rule.get("onJobFailureMessagePatterns", [""])
        if reason in rule["onJobFailureReasons"] and any(re.search(p, message) for p in patterns):
            return rule["action"]
    return "RestartJobSet"


@pytest.mark.parametrize("kind", [TPU, GPU])
def test_what_a_status_leads_to(kind):
    """0 never comes here: a pod that ends so has not failed."""
    jobset = filled(*kind)
    assert decide(jobset, 75) == "RestartJobSetAndIgnoreMaxRestarts"
    assert decide(jobset, condition="DisruptionTarget") == "RestartJobSetAndIgnoreMaxRestarts"
    assert decide(jobset, 2) == "FailJobSet"
    for crash in (1, 134, 137, 22, 120):
        assert decide(jobset, crash) == "RestartJobSet"  # counted by maxRestarts


@pytest.mark.parametrize("kind", [TPU, GPU])
def test_arguments_arrive_as_they_were_given(kind):
    hard = [*HARD, "a\tb", "$(NAME) & __NAME__ # if bucket", "{x: [1]}"]
    _, _, container = pods_unchecked(*kind, run=["--", "train", *hard])
    assert [x.replace("$$(", "$(") for x in container["args"]] == ["train", *hard]
    assert "$$(NAME)" in container["args"][-2]  # Kubernetes would put a variable there


def pods_unchecked(*flags, run):
    done = call("gke/submit.sh", *flags, *WHO, "--dry-run", *run)
    assert done.returncode == 0, done.stderr
    return pods(yaml.safe_load(done.stdout))


def changed(jobset, *path, to):
    """A copy with another value at a place; None takes the place away."""
    jobset = copy.deepcopy(jobset)
    at = jobset
    for key in path[:-1]:
        at = at[key]
    if to is None:
        del at[path[-1]]
    else:
        at[path[-1]] = to
    return jobset


def test_the_schema_refuses_what_a_cluster_would():
    jobset = filled(*TPU, *ALL)
    job = ("spec", "replicatedJobs", 0, "template", "spec")
    pod = (*job, "template", "spec")
    for wrong in (
        changed(jobset, "spec", "failurePolicies", to={}),
        changed(jobset, "spec", "failurePolicy", "rules", 0, "action", to="Restart"),
        changed(jobset, "metadata", "name", to="A_b"),
        changed(jobset, *job, "parallelism", to="4"),
        changed(jobset, *job, "backoffLimit", to=6),
        changed(
            jobset, *job, "podFailurePolicy", "rules", 2, "onPodConditions", 0, "status", to=None
        ),
        changed(jobset, *pod, "restartPolicy", to="OnFailure"),
        changed(jobset, *pod, "containers", 0, "resources", "limits", to={"google.com/tpus": 4}),
        changed(jobset, *pod, "containers", 0, "args", 0, to=1),
        changed(jobset, *pod, "volumes", 0, "csi", "driver", to="gcsfuse"),
        changed(jobset, *pod, "tolerations", 0, "value", to=True),
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, SCHEMA)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["pod", *WHO, *TRAIN], "pod is neither tpu nor gpu"),
        (["tpu", *WHO, *TRAIN], "--tpu is missing: it must be v4, v5e"),
        (["tpu", "--tpu", "v5e", *WHO, *TRAIN], "--topology is missing: it must be like 4x4"),
        (["tpu", "--tpu", "v4", "--topology", "4x4", *WHO, *TRAIN], "v4, v5p and tpu7x like 2x2x4"),
        (["tpu", "--tpu", "v5e", "--topology", "2x4", "--slices", "2", *WHO, *TRAIN],
         "GKE joins only slices of several hosts, and v5e 2x4 has one"),
        ([*TPU, "--chips", "3", *WHO, *TRAIN], "4x4 has 16 chips, which --chips 3 does not divide"),
        (["gpu", *WHO, *TRAIN], "--gpu is missing: it must be a type of GPU"),
        ([*GPU, "--gpus", "all", *WHO, *TRAIN], "--gpus all is no number above 0"),
        ([*TPU, "--image", "i", *TRAIN], "--name is missing: it must be lower case letters"),
        ([*TPU, "--name", "My_run", "--image", "i", *TRAIN], "--name My_run must be lower case"),
        ([*TPU, *WHO, "--bucket", "a b", *TRAIN], "--bucket a b must be the name of a bucket"),
        ([*TPU, *WHO], "a command is missing after --"),
        ([*TPU, *WHO, "--slice", "2", *TRAIN], "unknown flag --slice"),
        ([*TPU, *WHO, "--xpk", "c", "--bucket", "b", *TRAIN], "is attached by xpk storage"),
        ([*TPU, *WHO, "--xpk", "c", "--", "train", "it's"], "xpk cannot hand on"),
    ],
)  # fmt: skip
def test_bad_flags(flags, message):
    done = call("gke/submit.sh", *flags)
    assert done.returncode == 2 and message in done.stderr


@pytest.fixture
def path(tmp_path):
    """A PATH with stand-ins that note how they were called, and what they were handed."""
    hands = {
        "kubectl": 'cat >"{0}/handed"',
        "xpk": "true",
        "docker": 'for x; do [ ! -d "$x" ] || ls -A "$x" >"{0}/handed"; done',
    }
    for name, hand in hands.items():
        notes = f'for x in {name} "$@"; do printf "%s\\n" "$x"; done >>"{tmp_path}/calls"'
        text = f'#!/bin/sh\n{notes}\n{hand.format(tmp_path)}\nexit "${{STATUS:-0}}"\n'
        program(tmp_path / "bin" / name, text)
    return f"{tmp_path}/bin:{os.environ['PATH']}"


def test_kubectl_gets_the_jobset(path, tmp_path):
    done = call("gke/submit.sh", *TPU, *WHO, *TRAIN, PATH=path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "calls").read_text().split() == ["kubectl", "create", "--filename", "-"]
    assert yaml.safe_load((tmp_path / "handed").read_text()) == filled(*TPU)
    assert "jobset-name=my-run" in done.stdout
    done = call("gke/submit.sh", *TPU, *WHO, *TRAIN, PATH=path, STATUS="1")
    assert done.returncode == 1 and "jobset-name" not in done.stdout


@pytest.mark.parametrize(
    "flags, options, command",
    [
        (["tpu", "--tpu", "v5e", "--topology", "4x4", "--slices", "2"],
         ["--tpu-type", "v5litepod-4x4", "--num-slices", "2"], "CIR_JAX_DISTRIBUTED=auto "),
        (["tpu", "--tpu", "tpu7x", "--topology", "4x4x4"],
         ["--tpu-type", "tpu7x-4x4x4", "--num-slices", "1"], "CIR_JAX_DISTRIBUTED=auto "),
        (["gpu", "--gpu", "h100-mega-80gb-8", "--nodes", "2"],
         ["--device-type", "h100-mega-80gb-8", "--num-nodes", "2"],
         "CIR_JAX_COORDINATOR=my-run-slice-job-0-0.my-run:8482 CIR_JAX_PROCESSES=2 "
         "CIR_JAX_PROCESS=$NODE_RANK "),
    ],
)  # fmt: skip
def test_xpk(flags, options, command, path, tmp_path):
    own = ["--xpk", "cluster", "--zone", "z", "--project", "p", "--spot"]
    run = ["--", "train", "--set", "data.root=/a b"]
    done = call("gke/submit.sh", *flags, *WHO, *own, *run, PATH=path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "calls").read_text().splitlines() == [
        "xpk", "workload", "create", "--cluster", "cluster", "--workload", "my-run",
        "--docker-image", WHO[-1], "--max-restarts", "100", "--restart-on-exit-codes", "75",
        *options, "--spot", "--zone", "z", "--project", "p",
        "--command", f"{command}cir-jax train --set 'data.root=/a b'",
    ]  # fmt: skip


def test_an_image_of_the_tracked_files(path, tmp_path):
    root = copy_checkout(tmp_path / "checkout")
    git = ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *command], check=True)
    (root / "data.bin").touch()
    build = ["--image", "r/i:1", "--for", "gpu"]
    done = call("gke/build_image.sh", *build, root=root, PATH=path)
    assert done.returncode == 0, done.stderr
    said = (tmp_path / "calls").read_text().splitlines()
    assert said[:4] == ["docker", "build", "--build-arg", "EXTRA=cuda"]
    assert said[-3:] == ["docker", "push", "r/i:1"]
    assert (tmp_path / "handed").read_text().split() == ["launch", "pyproject.toml"]
    for flags, message in (
        ([], "--image is missing"),
        (["--image", "i", "--for", "cpu"], "--for cpu is neither tpu nor gpu"),
        (["--push"], "unknown flag --push"),
    ):
        done = call("gke/build_image.sh", *flags, root=root, PATH=path)
        assert done.returncode == 2 and message in done.stderr
    printed = call("gke/build_image.sh", *build, "--no-push", "--dry-run").stdout
    assert "docker build" in printed and "docker push" not in printed


def test_the_image_installs_what_the_project_has():
    """Its extra, its interpreter and its command are those of pyproject.toml."""
    text = (LAUNCH / "gke/Dockerfile").read_text()
    project = (LAUNCH.parent / "pyproject.toml").read_text()
    assert "\nFROM python:3.11-slim\n" in text and 'requires-python = ">=3.11"' in project
    for extra in ("tpu", "cuda"):
        assert re.search(rf"^{extra} = ", project, re.MULTILINE)
    assert 'cir-jax = "cir_jax.main:program"' in project
    assert text.rstrip().endswith('ENTRYPOINT ["tini", "--", "cir-jax"]')
