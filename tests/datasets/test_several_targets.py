# SPDX-License-Identifier: Apache-2.0
"""Several right answers of a query ("targets") in triplets of one's own."""

import json

import numpy as np
import pytest

from cir_jax import config
from cir_jax.data import loader, pipeline, tokens
from cir_jax.data.triplets import Triplet
from cir_jax.datasets import generated, loading
from cir_jax.datasets.readers import folder
from cir_jax.errors import UserError
from cir_jax.evals.benchmarks import folder as benchmark
from cir_jax.generation import images
from tests import runs

SEVERAL = {"reference": "0", "targets": ["1.png", "2", "3.png"], "text": "darker"}
ONE = {"reference": "4", "target": "5", "text": "brighter"}


@pytest.fixture
def root(tmp_path):
    for i in range(9):
        runs.write_image(tmp_path / "images" / f"{i}.png", (i * 25, 99, 99), i)
    write(tmp_path / "train.jsonl", SEVERAL, ONE)
    write(tmp_path / "val.jsonl", SEVERAL | {"reference": "6"}, ONE)
    return tmp_path


def write(file, *records):
    file.write_text("\n".join(map(json.dumps, records)))


def small(root, *changes, stage=2):
    flags = (f"data.root={root}", *changes)
    return config.load(f"clip_sum:tiny,stage={stage}", flags)


def test_read(root):
    several, one = folder.read(root)[0].triplets
    assert several.truths == ("1.png", "2.png", "3.png") and several.target == "1.png"
    assert (one.target, one.truths) == ("5.png", ())
    names, files = folder.gallery(root)
    assert names == ["6.png", "1.png", "2.png", "3.png", "4.png", "5.png"] and len(files) == 6
    write(root / "train.jsonl", SEVERAL | {"targets": ["7.png"]})  # one is as "target"
    assert (folder.read(root)[0].triplets[0].target, folder.read(root)[0].triplets[0].truths) == (
        "7.png", (),
    )  # fmt: skip
    (root / "gallery.txt").unlink(missing_ok=True)
    assert {"1.png", "2.png", "3.png"} <= set(folder.held_out(root))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"targets": []}, "'targets' is empty; name the images that answer the query"),
        ({"targets": "1.png"}, "'targets' is '1.png', expected a list of image names"),
        ({"targets": ["1.png", ""]}, "expected a list of image names"),
        ({"target": "1.png"}, "has target and targets; write all right answers in targets"),
        ({"targets": ["1.png", "1"]}, "'targets' names image '1.png' twice"),
    ],
)
def test_refused(root, changes, message):
    write(root / "train.jsonl", ONE, SEVERAL | changes)
    with pytest.raises(UserError, match=rf"train.jsonl:2.*{message}"):
        folder.read(root)


def test_every_answer_is_trained_and_none_is_a_negative(root, capsys):
    sets = loading.load(small(root), captions=False)
    found = [(t.reference, t.target) for t in sets[0].triplets]
    assert found == [("0.png", f"{i}.png") for i in (1, 2, 3)] + [("4.png", "5.png")]
    assert "1 queries have several right answers: each answer is a triplet, and in stage two the " \
        "others are no negatives" in capsys.readouterr().out  # fmt: skip
    loaded = small(root, "loss.exclude_positives=False")
    loading.load(loaded, captions=False)
    assert "are negatives (loss.exclude_positives=False)" in capsys.readouterr().out
    data = pipeline.prepare(sets, tokens.load("clip"))
    fields = ("text", "exclude_id")
    options = loader.Options(4, 0, fields, exclude_positives=small(root).loss.exclude_positives)
    batch = next(pipeline.batches(data, options))
    names = np.asarray([*data.images.names, ""])
    for row in range(4):
        target, excluded = names[batch["target_id"][row]], set(names[batch["exclude_id"][row]])
        assert excluded - {""} == ({target} if target == "5.png" else set(names[1:4]))
    assert sorted(names[batch["target_id"]]) == ["1.png", "2.png", "3.png", "5.png"]


def test_what_an_answer_must_be(root):
    write(root / "val.jsonl", SEVERAL | {"targets": ["1.png", "0.png"]})
    with pytest.raises(UserError, match=r"target and reference are both '0.png'"):
        benchmark.Benchmark(root)
    write(root / "val.jsonl", SEVERAL)
    (root / "gallery.txt").write_text("0.png\n1.png\n2.png\n")
    with pytest.raises(UserError, match=r"its right answer '3.png' is not among the 3 gallery"):
        benchmark.Benchmark(root)
    assert "3.png" in str(folder.examine(root).outside)


def test_a_missing_answer(root):
    (root / "images/3.png").unlink()
    with pytest.raises(UserError, match=r"3.png"):
        benchmark.Benchmark(root)
    task = benchmark.Benchmark(root, on_missing="drop").task
    assert [t.reference for t in task.triplets] == ["4.png"] and task.dropped == 1
    sets = loading.load(small(root), captions=False)
    data = pipeline.prepare(sets, tokens.load("clip"), on_missing="drop")
    assert [t.target for t in data.triplets] == ["1.png", "2.png", "5.png"]
    assert data.dropped == {"folder": 1}


def test_generated_triplets(root):
    file = root / "more.jsonl"
    write(file, SEVERAL | {"targets": ["7.png", "8"]})
    (one,) = generated.read([file], folder.images(root), root)
    assert one.triplets[0].truths == ("7.png", "8.png") and {"7.png", "8.png"} <= set(one.paths)


def test_pairs_that_are_known(root):
    pool = images.Pool({}, triplets=(Triplet("a", "b", ("t",), "t", "s", "1", truths=("b", "c")),))
    assert pool.known() == {("a", "b"), ("a", "c")}


def test_positives_of_the_training_split_leave_the_gallery_out(root):
    (root / "gallery.txt").write_text("7.png\n8.png\n")
    write(root / "val.jsonl", {"reference": "7", "target": "8", "text": "x"})
    flags = [f"data.root={root}", "data.name=folder"]
    split = images.read(config.load("positives:titles", [*flags, "data.images=split"]))
    assert list(split.paths) == [f"{i}.png" for i in range(7)]
    named = images.read(config.load("positives:titles", flags))
    assert list(named.paths) == [f"{i}.png" for i in (0, 1, 2, 3, 4, 5)]


def test_captions_beside_own_triplets(root):
    with pytest.raises(UserError, match=r"there is no .*captions.jsonl; write one, or set data.c"):
        folder.captions(root)
    (root / "gallery.txt").write_text("7.png\n")
    write(root / "val.jsonl", {"reference": "7", "target": "8", "text": "x"})
    lines = [
        {"image_id": f"{i}.png", "image_path": f"images/{i}.png", "caption": f"shade {i}"}
        for i in (0, 7, 8)
    ]
    write(root / "captions.jsonl", *lines)
    (one,) = folder.captions(root)
    assert [(t.target, t.texts) for t in one.triplets] == [("0.png", ("shade 0",))]
    sets = loading.load(small(root, stage=0), captions=True)
    assert [t.target for t in sets[0].triplets] == ["0.png"]


def test_no_root():
    with pytest.raises(UserError, match=r"data.root is empty; set it to the folder of train.jsonl"):
        folder.read("")
