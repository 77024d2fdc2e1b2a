# SPDX-License-Identifier: Apache-2.0
"""From the images of OpenMoji to a trained model, with each kind of captioner.

Captions come from files, from a tiny LLaVA in this process, and from the same in a real server
process that is killed while it is asked. The weights are random, so the captions are noise; that
they lead somewhere is shown elsewhere, that none is lost or asked for twice is shown here.
"""

import json
import threading
import time
from collections import Counter

import pytest

from cir_jax import config as configs
from cir_jax.datasets.readers import emoji
from cir_jax.main import main
from cir_jax.servers import retry
from cir_jax.training import train
from tests import runs
from tests.generation import tiny_vlm


@pytest.fixture(scope="module")
def drawings(tmp_path_factory):
    return emoji.prepare(tmp_path_factory.mktemp("emoji") / "set", limit=120)


@pytest.fixture(scope="module")
def names(drawings):
    """The training images."""
    files = sorted((drawings / "fashioniq/image_splits").glob("split.*.train.json"))
    return sorted(n for file in files for n in json.loads(file.read_text()))


@pytest.fixture(scope="module")
def process(vlm):
    with tiny_vlm.serve(vlm) as running:
        yield running


def make(drawings, workdir, *changes):
    """Runs the command; its exit status."""
    common = (f"workdir={workdir}", f"data.root={drawings}", "data.threads=2")
    sets = [flag for change in (*common, *changes) for flag in ("--set", change)]
    return main(["positives", "--config", "positives:emoji", *sets])


def captions(workdir):
    """Image -> caption; each image must be there once."""
    lines = (workdir / "captions.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert max(Counter(r["image"] for r in records).values()) == 1
    return {r["image"]: r["text"] for r in records}


def trains(drawings, workdir, tmp_path):
    """Stage one on what was made, and on nothing else."""
    config = configs.load(
        "zero_shot:quicktest",
        [f"data.root={drawings}", f"workdir={tmp_path / 'trained'}", "steps=2", "batch=8",
         f"data.generated={workdir / 'triplets.jsonl'}", "eval.examples=0",
         "optim.warmup_steps=0", "data.threads=2", "eval.benchmark=none",
         f"model.name={runs.stand_in('cross_attention')}"],
    )  # fmt: skip
    results = train.train(config)
    assert results["finished"] and results["triplets"].keys() == {"generated"}
    return results["triplets"]["generated"]


def with_model(captioner, model, *changes):
    return (
        f"caption.captioner={captioner}", f"caption.model={model}", "caption.max_words=40",
        "pair.references_only=False", *changes,
    )  # fmt: skip


def test_captions_from_files(drawings, names, tmp_path):
    assert make(drawings, tmp_path / "made") == 0
    assert sorted(captions(tmp_path / "made")) == names
    assert trains(drawings, tmp_path / "made", tmp_path) > 50


@pytest.fixture(scope="module")
def expected(drawings, names, vlm, tmp_path_factory):
    """What the tiny model says in this process."""
    workdir = tmp_path_factory.mktemp("local") / "made"
    assert make(drawings, workdir, *with_model("local", vlm)) == 0
    found = captions(workdir)
    assert sorted(found) == names and len(set(found.values())) > 5
    return workdir, found


def test_captions_of_a_model_here(drawings, names, expected, tmp_path):
    workdir, _ = expected
    first = json.loads((workdir / "captions.jsonl").read_text().splitlines()[0])
    assert first["captioner"] == "local" and first["words"] == 10 and first["seed"] == 42
    assert first["prompt"] == "please briefly describe the image in 10 words" and first["date"]
    assert trains(drawings, workdir, tmp_path) == len(names)


def lines_of(file):
    return len(file.read_text().splitlines()) if file.is_file() else 0


def when_written(file, count, act):
    """Calls `act` in a thread once `file` has `count` lines."""

    def watch():
        end = time.monotonic() + tiny_vlm.START_SECONDS
        while lines_of(file) < count and time.monotonic() < end:
            time.sleep(0.005)
        act()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def test_a_server_killed_and_restarted(drawings, expected, process, tmp_path, monkeypatch, capsys):
    """First the run outlasts the outage; then one gives up, and the same command finishes it."""
    for name, value in (("FIRST_DELAY", 0.2), ("LONGEST_DELAY", 1.0), ("OUTAGE", 0.5)):
        monkeypatch.setattr(retry, name, value)
    server = (
        *with_model("server", process.folder, f"caption.url={process.url}"),
        "caption.concurrency=2",
    )
    waits = f"caption.wait={tiny_vlm.START_SECONDS}"

    outlasts = tmp_path / "outlasts"
    killed = when_written(outlasts / "captions.jsonl", 10, process.kill)
    back = when_written(outlasts / "captions.jsonl", 10, lambda: (killed.join(), process.start()))
    assert make(drawings, outlasts, *server, waits) == 0
    back.join()
    said = capsys.readouterr().out
    assert captions(outlasts) == expected[1]
    assert "trying again in" in said and "answers again" in said

    stopped = tmp_path / "stopped"
    killed = when_written(stopped / "captions.jsonl", 10, process.kill)
    assert make(drawings, stopped, *server, "caption.wait=1.5") == 2
    killed.join()
    assert "What is written is kept" in capsys.readouterr().err
    there = captions(stopped)
    assert 10 <= len(there) < len(expected[1]) and not (stopped / "triplets.jsonl").exists()
    process.start()
    assert make(drawings, stopped, *server, waits) == 0
    assert captions(stopped) == expected[1]
    first = (stopped / "captions.jsonl").read_text().splitlines()[: len(there)]
    assert [json.loads(line)["image"] for line in first] == list(there)
    assert (stopped / "pairs.jsonl").read_text() == (outlasts / "pairs.jsonl").read_text()
    assert trains(drawings, stopped, tmp_path) == len(expected[1])
