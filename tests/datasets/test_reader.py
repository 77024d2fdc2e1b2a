# SPDX-License-Identifier: Apache-2.0
"""The contract of a reader: which parts each data set has, and what is said if one is missing."""

import inspect

import pytest

from cir_jax import plugins
from cir_jax.datasets import examination, held_out, reader, unlabelled
from cir_jax.errors import UserError
from tests import runs

PARTS = (
    reader.Reader, reader.HasImages, reader.HasCaptions, reader.HasCaptionFile, reader.HasHeldOut,
    reader.HasHome, reader.Examinable,
)  # fmt: skip
TRAINABLE = ["cirr", "emoji", "fashioniq", "folder"]


def module(name):
    return plugins.load(reader.PACKAGE, name, marker="__name__")


def having(part):
    return [n for n in plugins.available(reader.PACKAGE) if isinstance(module(n), part)]


def test_who_has_what():
    assert having(reader.Reader) == having(reader.HasImages) == TRAINABLE
    assert having(reader.HasCaptions) == having(reader.HasCaptionFile) == ["emoji", "folder"]
    assert having(reader.HasHome) == ["emoji"] and having(reader.HasHeldOut) == ["folder"]
    assert having(reader.Examinable) == ["circo", *TRAINABLE, "genecis"]


@pytest.mark.parametrize("part", PARTS)
def test_a_part_takes_what_the_contract_says(part):
    """Same names, same defaults: what one data set can be called with, all can."""
    [name] = [n for n, x in vars(part).items() if inspect.isfunction(x) and n[0] != "_"]
    said = list(inspect.signature(getattr(part, name)).parameters.values())[1:]
    for one in having(part):
        takes = list(inspect.signature(getattr(module(one), name)).parameters.values())
        assert [p.name for p in takes] == [p.name for p in said], one
        assert [p.default for p in takes] == [p.default for p in said], one


@pytest.mark.parametrize("name", ["circo", "genecis"])
def test_a_benchmark_is_no_data_to_train_on(name, tmp_path):
    with pytest.raises(UserError) as error:
        runs.load(name, tmp_path)
    assert str(error.value) == (
        f"data.name={name} has no triplets to train on, it is for evaluation alone: set "
        f"eval.benchmark={name}, and data.name to one of cirr, emoji, fashioniq, folder"
    )


def test_a_file_without_read(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def images(root, split='train'): return {}\n")
    with pytest.raises(UserError, match=r"mine.py defines no read\(root, split, categories\)"):
        reader.load(str(file))


def test_images_and_home_of_a_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def read(root, split='train', categories=()): return []\n")
    assert reader.home(str(file), "there") == "there"
    changes = (f"data.name={file}", "data.unlabelled=split")
    with pytest.raises(UserError, match=r"no images\(root, split\), which data.unlabelled=split t"):
        unlabelled.read(runs.tiny(tmp_path, tmp_path, *changes, stage=2), held_out.HeldOut({}))
    file = tmp_path / "other.py"
    file.write_text(
        "def read(root, split='train', categories=()): return []\n"
        "def images(root, split='train'): return {split: root}\n"
        "def home(root): return root + '/below'\n"
    )
    assert reader.home(str(file), "there") == "there/below"
    assert reader.training_images(str(file), "there", "x") == {"train": "there"}


def test_packed_images_and_those_in_folders(tmp_path):
    found = examination.Examination()
    found.note_folders("root", {})
    found.note_folders("root", {"a": "root/x/a.png", "b": "root/b.jpg"})
    found.note_folders("root", {"a": tmp_path, "b": "root/b.jpg"})
    assert found.notes == ["no image at all", "2 images (.jpg, .png) in , x", "2 images, packed"]


def test_names_are_reported_once(tmp_path):
    root = runs.write_cirr(tmp_path)
    first, second = runs.load("cirr", root)[0].triplets[:2]
    found = examination.Examination()
    found.check_names([n for n in first.members if n != first.target], [first])
    assert found.outside == [f"{first.query_id} ({first.target})"]  # it is a member too
    found.check_names([], [second], targets_only=True)
    assert found.outside[1:] == [f"{second.query_id} ({second.target})"]
