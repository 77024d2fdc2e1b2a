# SPDX-License-Identifier: Apache-2.0
"""Training on generated triplets: beside annotated ones and alone, both stages, by the configs.

The triplets are made by the pipeline, of the drawings of OpenMoji and the captions they come with.
"""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from cir_jax import config
from cir_jax.datasets.readers import emoji
from cir_jax.generation import steps
from cir_jax.runtime import metrics
from cir_jax.training import setup, train
from tests import runs


@pytest.fixture(scope="module")
def drawings(tmp_path_factory):
    return emoji.prepare(tmp_path_factory.mktemp("emoji") / "set", limit=300)


@pytest.fixture(scope="module")
def made(drawings, tmp_path_factory):
    """Both files of the recipe, the released layout in its place below the data set."""
    workdir = tmp_path_factory.mktemp("made")
    settings = config.load(
        "positives:emoji", [f"workdir={workdir}", f"data.root={drawings}", "data.threads=2"]
    )
    neutral, released = map(Path, steps.run(settings)["files"])
    place = drawings / "fashioniq" / "captions" / released.name
    place.write_bytes(released.read_bytes())
    return neutral, place


@pytest.fixture(scope="module")
def one(drawings, made, tmp_path_factory):
    """A stage-one run on annotated and generated triplets."""
    workdir = tmp_path_factory.mktemp("run") / "one"
    return workdir, trained("clip_sum:quicktest,stage=1,positives", workdir, drawings)


def trained(spec, workdir, root, *changes, model=""):
    tiny = (
        "data.threads=2", "steps=3", "log_every=1", "optim.warmup_steps=0", "eval.examples=0",
        "eval.benchmark=none", "optim.learning_rate=1e-2",
        f"model.name={model or runs.stand_in('cross_attention')}",
    )  # fmt: skip
    settings = config.load(spec, [f"workdir={workdir}", f"data.root={root}", *tiny, *changes])
    return train.train(settings)


def logged(workdir):
    return [line for line in metrics.read(Path(workdir) / metrics.FILE) if "loss" in line]


def check_sources(workdir, batch, sources):
    """Counts add up to the batch, and losses by source to the loss."""
    lines = logged(workdir)
    assert lines
    for line in lines:
        counts = {name: line[f"count/{name}"] for name in sources}
        assert sum(counts.values()) == batch
        mean = sum(counts[n] * line[f"loss/{n}"] for n in sources if counts[n]) / batch
        assert line["loss"] == pytest.approx(mean, rel=1e-4)
        assert all((f"loss/{n}" in line) == (counts[n] > 0) for n in sources)
        assert not {k for k in line if k.startswith("count/")} - {f"count/{n}" for n in sources}
    return sum((Counter({n: line[f"count/{n}"] for n in sources}) for line in lines), Counter())


def test_what_was_made(drawings, made):
    records = [json.loads(line) for line in made[0].open()]
    human = emoji.read(drawings)[0].triplets
    assert {r["reference"] for r in records} == {t.reference for t in human}
    assert not {(r["reference"], r["target"]) for r in records} & {
        (t.reference, t.target) for t in human
    }
    assert all(r["texts"] == [r["meta"]["caption2"]] for r in records)


def test_stage_one_with_positives(drawings, made, one):
    workdir, results = one
    count = len(json.loads(made[1].read_text()))
    human = len(emoji.read(drawings)[0].triplets)
    assert results["triplets"] == {"fashioniq": human, "generated": count}
    check_sources(workdir, 16, ("fashioniq", "generated"))


def test_stage_two_with_positives(drawings, one, tmp_path):
    start = f"init_from={one[0]}"
    trained("clip_sum:quicktest,stage=2,positives", tmp_path, drawings, start)
    check_sources(tmp_path, 16, ("fashioniq", "generated"))


def test_zero_shot_stages(drawings, made, one, tmp_path):
    """Neither stage sees an annotated triplet; the second is told a file by its path."""
    results = trained("zero_shot:quicktest,stage=1", tmp_path / "one", drawings)
    assert results["triplets"].keys() == {"generated"}
    second = (f"init_from={tmp_path / 'one'}", f"data.generated={made[0]}")
    results = trained("zero_shot:quicktest,stage=2", tmp_path / "two", drawings, *second)
    assert results["triplets"].keys() == {"generated"}
    for name in ("one", "two"):
        assert check_sources(tmp_path / name, 16, ("generated",)) == {"generated": 48}


def test_the_model_of_the_recipe(drawings, made, tmp_path):
    spec = "clip_sum:quicktest,stage=2,positives"
    trained(spec, tmp_path, drawings, "steps=1", "batch=8", model="clip_sum")
    check_sources(tmp_path, 8, ("fashioniq", "generated"))


def test_several_files_by_weight(drawings, made, tmp_path):
    """Sources are drawn as their weights say, whatever they hold."""
    few = tmp_path / "few.jsonl"
    records = [json.loads(line) for line in made[0].open()][:20]
    few.write_text("".join(json.dumps(r | {"source": "few"}) + "\n" for r in records))
    changes = (
        "data.mixing=weights", "data.weights=2.0,1.0,1.0", f"data.generated={made[1]},{few}",
        "data.annotated=50", "steps=6",
    )  # fmt: skip
    results = trained("clip_sum:quicktest,stage=1", tmp_path / "run", drawings, *changes)
    assert {k: results["triplets"][k] for k in ("fashioniq", "few")} == {"fashioniq": 50, "few": 20}
    drawn = check_sources(tmp_path / "run", 16, ("fashioniq", "generated", "few"))
    assert drawn == {"fashioniq": 48, "generated": 24, "few": 24}


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("data", ["fashioniq", "cirr", "fashioniq-cc", "cirr-cc"])
def test_zero_shot_configs_of_the_benchmarks(data, stage, tmp_path):
    """With the file of the recipe where the config looks for it, and a small model."""
    name = data.removesuffix("-cc")
    root = {"fashioniq": runs.write_fashioniq, "cirr": runs.write_cirr}[name](tmp_path / "data")
    listed = [
        {"image_id": p.stem, "image_path": str(p), "caption": f"a {p.stem}"}
        for p in sorted(root.rglob("*.png"))
        if p.parent.name in ("images", "train")
    ]
    runs.dump(tmp_path / "it.json", listed)
    if name == data:
        recipe, given = f"zs-{name}", (f"data.root={root}", f"caption.file={tmp_path / 'it.json'}")
    else:
        recipe, given = f"cc-{name}", (f"data.lists={tmp_path / 'it.json'}",)
    common = ("caption.captioner=texts", "caption.unknown=ignore", "data.threads=2")
    settings = config.load(f"positives:{recipe}", [f"workdir={tmp_path / 'made'}", *given, *common])
    _, released = map(Path, steps.run(settings)["files"])
    spec = f"zero_shot:{data},stage={stage}"
    (place,) = config.load(spec).data.generated
    (root / place).write_bytes(released.read_bytes())
    for file in root.rglob("cap*.train.json"):
        if "extend" not in file.name and "cc" not in file.name:
            file.unlink()  # no annotated triplet is read
    changes = (
        f"workdir={tmp_path / 'run'}", f"data.root={root}", "eval.benchmark=none", "batch=8",
        f"model.name={runs.stand_in('cross_attention')}", "model.dtype=float32", "steps=1",
    )  # fmt: skip
    made, read = runs.set_up(config.load(spec, changes))
    triplets = read.triplets
    assert triplets.sources == ("generated",) and len(triplets.triplets) > 8
    batch = next(setup.make_batches(made, read, None))
    names = np.asarray(triplets.images.names)
    pairs = set(zip(names[batch["reference_id"]], names[batch["target_id"]], strict=True))
    keys = ("candidate", "target") if data == "fashioniq" else ("reference", "target_hard")
    keys = ("reference", "target") if data != name else keys
    assert pairs <= {tuple(r[k] for k in keys) for r in json.loads(released.read_text())}
