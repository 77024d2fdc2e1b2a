# SPDX-License-Identifier: Apache-2.0
"""One start tells of all images that cannot be used: of triplets, gallery and queries."""

import json

import pytest

from cir_jax.data import refusals
from cir_jax.errors import UserError
from cir_jax.main import main
from cir_jax.training import train
from tests import runs

PAGE = b"<!DOCTYPE html><html>403</html>"


@pytest.fixture
def own(tmp_path):
    """A folder of eight images to train on, four queries and two more gallery images."""
    root = tmp_path / "own"
    names = {"train": [f"t{i}.png" for i in range(8)], "val": [f"v{i}.png" for i in range(4)]}
    for number, name in enumerate([*names["train"], *names["val"], "g0.png", "g1.png"]):
        runs.write_image(root / "images" / name, (9 * number, 50, 90), number)
    for split, of in names.items():
        triplets = [
            {"reference": name, "target": of[i - 1], "text": "a red one"}
            for i, name in enumerate(of)
        ]
        (root / f"{split}.jsonl").write_text("".join(json.dumps(t) + "\n" for t in triplets))
    (root / "gallery.txt").write_text("\n".join([*names["val"], "g0.png", "g1.png"]))
    return root


def tiny(own, tmp_path, *changes):
    return runs.tiny(tmp_path / "run", own, *changes, model="clip_sum", data="folder")


def spoil(own):
    (own / "images/t3.png").write_bytes(PAGE)
    (own / "images/v1.png").unlink()
    (own / "images/g1.png").write_bytes(b"")


def spoil_within(file):
    """The ends of the file stay those of a whole one."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)


@pytest.mark.parametrize("seen", ["g0.png", "t0.png"])
def test_where_one_is_refused_all_others_are_decoded(seen, own, tmp_path):
    """Of what was looked at before and after it, too."""
    (own / "images" / seen).write_bytes(PAGE)
    for name in ("t3.png", "g1.png"):
        spoil_within(own / "images" / name)
    with pytest.raises(
        UserError, match=r"3 images cannot be used \(.* of 6 of val.jsonl; "
    ) as error:
        train.train(tiny(own, tmp_path))
    assert all(f"/{name} (" in str(error.value) for name in (seen, "t3.png", "g1.png"))


def test_one_start_tells_of_training_gallery_and_queries(own, tmp_path):
    spoil(own)
    with pytest.raises(UserError) as error:
        train.train(tiny(own, tmp_path))
    said = str(error.value)
    assert said.startswith(
        "3 images cannot be used (2 of 6 of val.jsonl; 1 of 8 of the training set: 1 empty "
        "(0 bytes), 1 missing, 1 no image), all listed in "
    )
    assert all(f"/{name}.png (" in said for name in ("t3", "v1", "g1"))
    assert said.count("data.on_missing=drop") == 1
    listed = [json.loads(line) for line in (tmp_path / "run" / refusals.LIST).open()]
    reasons = {"v1.png": "missing", "g1.png": "empty (0 bytes)", "t3.png": "no image"}
    assert {one["image"]: one["reason"] for one in listed} == reasons


def test_what_else_stops_the_start_is_told_with_them(own, tmp_path):
    spoil(own)
    with (own / "train.jsonl").open("a") as file:
        file.write(json.dumps({"reference": "t0.png", "target": "t1.png", "text": "a " * 99}))
    with pytest.raises(UserError, match=r"(?s)3 images cannot .*\nBeside that: .* 101 tokens") as e:
        train.train(tiny(own, tmp_path))
    assert str(e.value).count("cannot be used") == 1


def test_each_key_is_named_where_there_are_two(own, tmp_path):
    spoil(own)
    with pytest.raises(UserError, match=r"set eval.on_missing=drop and data.on_missing=drop to"):
        train.train(tiny(own, tmp_path, "eval.on_missing=error"))
    with pytest.raises(UserError, match=r"^val.jsonl: 2 of 6 images .*set eval.on_missing=drop to"):
        train.train(tiny(own, tmp_path, "eval.on_missing=error", "data.on_missing=drop"))


def test_a_dry_run_tells_of_them_too(own, tmp_path, capsys):
    spoil(own)
    flags = ("data.name=folder", f"data.root={own}", "eval.benchmark=folder", "batch=8",
             f"workdir={tmp_path / 'run'}", "model.tower=tiny-vit")  # fmt: skip
    sets = [word for flag in flags for word in ("--set", flag)]
    assert main(["train", "--config", "clip_sum:emoji,stage=1", "--dry-run", *sets]) == 2
    assert "2 of 6 of val.jsonl; 1 of 8 of the training set" in capsys.readouterr().err


def test_an_image_that_breaks_later_tells_of_those_of_the_evaluation_too(own, tmp_path):
    loaded = tiny(own, tmp_path)
    for name in ("t3.png", "g1.png"):
        spoil_within(own / "images" / name)
    with pytest.raises(UserError, match=r"2 images .* \(1 of 6 of val.jsonl; 1 of 8 of the t"):
        train.train(loaded)
