# SPDX-License-Identifier: Apache-2.0
"""Triplets in columns are the triplets in memory: names, files, rows, tokens, batches, messages."""

import itertools
import json
import os
import random
import shutil

import numpy as np
import pytest

from cir_jax.data import (
    fingerprints,
    loader,
    pipeline,
    token_files,
    tokens,
    triplet_columns,
)
from cir_jax.data.triplet_columns import Columns
from cir_jax.data.triplets import TripletSet
from cir_jax.datasets import conversion, generated
from cir_jax.datasets.held_out import HeldOut
from tests import runs

FIELDS = ("text", "exclude_id")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of images: names that need care, a copy by link, and a folder that is a link."""
    root = tmp_path_factory.mktemp("set")
    for number in range(16):
        runs.write_image(
            root / "images" / f"{'ab'[number % 2]}" / f"{number}.png", (9, 9, 9), number
        )
    runs.write_image(root / "images" / "plain.png", (99, 9, 9))
    runs.write_image(root / "images" / "é 1.jpg", (9, 99, 9))
    runs.write_image(root / "images" / "Upper.PNG", (9, 9, 99))
    runs.write_image(root / "other" / "one.png", (9, 99, 99))
    runs.write_image(root / "other" / "two.png", (99, 99, 9))
    (root / "images" / "link.png").symlink_to("plain.png")
    os.link(root / "images" / "a" / "0.png", root / "images" / "hard.png")
    (root / "images" / "folder").symlink_to("b")
    return root


def records(count, seed=0):
    """Records of several kinds, in an order of their own."""
    drawn = random.Random(seed)
    names = [f"{'ab'[n % 2]}/{n}.png" for n in range(16)]
    names += ["link.png", "hard.png", "é 1.jpg", "folder/1.png", "plain.png"]
    made = []
    for number in range(count):
        reference, target, other, third = drawn.sample(names, 4)
        one = {"reference": reference, "target": target, "text": drawn.choice(["in red", "&lt; é"])}
        kind = number % 9
        if kind == 1:
            one["reference"] = f"./{reference}"
        if kind == 2:
            del one["target"]
            one["targets"] = [target, other, third]
        if kind == 3:
            del one["text"]
            one |= {"texts": ["one", " ", "in red", f"text {number}"], "id": f"mine-{number}"}
        if kind == 4:
            one |= {"source": "second", "group": [reference, "nowhere.png"]}
        if kind == 5:
            one |= {"reference": "one.png", "reference_path": "other/one.png"}
        if kind == 6:
            one |= {"target": "zwei", "target_path": "other/two.png"}
        if kind == 7:
            one |= {"reference": "UPPER.png", "meta": {"llm_caption": "x"}}
        made.append(one)
    return made


def write(path, made):
    path.write_text("".join(json.dumps(one) + "\n" for one in made))
    return str(path)


def known(root):
    """What a data set of some of the images knows."""
    return {"plain.png": str(root / "images/plain.png"), "Upper": str(root / "images/Upper.PNG")}


def read(files, root, columns, monkeypatch, blocks=8, gone=(), **options):
    """The sets of some files, as training reads them."""
    monkeypatch.setattr(conversion, "LEAST", 1 if columns else 1 << 40)
    monkeypatch.setattr(triplet_columns, "BLOCK", blocks)
    monkeypatch.setattr(token_files, "_BATCH", 5)
    sets = generated.read(files, known(root), root, images=root / "images", **options)
    assert all(isinstance(one.triplets, Columns) == columns for one in sets)
    out = HeldOut({name: str(root / "images" / name) for name in gone})
    return [out.without(one, "data.generated").of_each_target() for one in sets]


def prepared(sets, root, monkeypatch, **options):
    monkeypatch.setattr(conversion, "LEAST", 1 << 40)
    human = generated.read([human_file(root)], known(root), root, images=root / "images")
    human = [TripletSet("human", one.triplets, one.paths, by_name=True) for one in human]
    return pipeline.prepare([*human, *sets], tokens.load("clip"), **options)


def human_file(root):
    made = [{"reference": "plain.png", "target": "a/2.png", "text": "human"}] * 2
    return write(root / "human.jsonl", made)


def assert_equal(one, other):
    """Two data sets hold the same, and draw the same batches."""
    assert list(one.triplets) == list(other.triplets) and len(one.triplets) == len(other.triplets)
    assert one.triplets[-1] == other.triplets[-1] and one.triplets[3:9] == other.triplets[3:9]
    assert list(one.images.names) == list(other.images.names)
    assert list(map(str, one.images.paths)) == list(map(str, other.images.paths))
    assert dict(one.images.row_of) == dict(other.images.row_of)
    assert len(one.images.row_of) == len(other.images.row_of)
    assert dict(one.images.files()) == dict(other.images.files())
    assert one.images.fingerprint() == other.images.fingerprint()
    assert fingerprints.of(one) == fingerprints.of(other)
    assert one.sources == other.sources and one.dropped == other.dropped
    for name in ("source_of", "reference_id", "target_id", "text_start"):
        a, b = getattr(one, name), getattr(other, name)
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(one.tokens.start, other.tokens.start)
    joined = [np.concatenate([*data.tokens.blocks()]) for data in (one, other)]
    np.testing.assert_array_equal(*joined)
    for mixing in ("concatenate", "weights"):
        options = loader.Options(
            8, 3, FIELDS, mixing, (1,) * len(one.sources), exclude_reference=True,
            exclude_positives=True, rows=[0, 3, 5],
        )  # fmt: skip
        drawn = [itertools.islice(pipeline.batches(data, options), 9) for data in (one, other)]
        for a, b in zip(*drawn, strict=True):
            assert a.keys() == b.keys()
            for field in a:
                assert a[field].dtype == b[field].dtype
                np.testing.assert_array_equal(a[field], b[field])


def two_ways(files, root, monkeypatch, **options):
    return [
        prepared(read(files, root, columns, monkeypatch, **options), root, monkeypatch)
        for columns in (True, False)
    ]


def test_columns_are_the_same_triplets(images, monkeypatch):
    """One file of every kind of record, read as columns and as it always was."""
    file = write(images / "made.jsonl", records(60))
    one, other = two_ways([file], images, monkeypatch)
    assert_equal(one, other)
    assert (images / ".cir_jax" / "made.jsonl.triplets" / "record.json").is_file()
    again = read([file], images, True, monkeypatch)  # from what is kept
    assert_equal(prepared(again, images, monkeypatch), other)


def test_several_files(images, tmp_path, monkeypatch):
    """Names that files share are one image, also where a later file alone says where it lies."""
    for name in ("other", "images"):
        os.symlink(images / name, tmp_path / name)
    first = records(30, 1)
    first += [{"reference": "late.png", "target": "a/0.png", "text": "x"}]
    files = [write(tmp_path / "one.jsonl", first), write(tmp_path / "two.jsonl", records(40, 2))]
    late = {"reference": "a/0.png", "target": "a/2.png", "text": "y"}
    released = tmp_path / "three.json"
    runs.dump(released, [{"candidate": "a/4.png", "target": "b/5.png", "captions": ["p", "q"]}, {
        "reference": "a/6.png", "target_hard": "b/7.png", "caption": "r"}] * 3)  # fmt: skip
    write(tmp_path / "two.jsonl", [*records(40, 2), late])
    shutil.copy(images / "other" / "one.png", images / "images" / "late.png")
    one, other = two_ways([*files, str(released)], images, monkeypatch)
    assert_equal(one, other)
    small, large = files[0], str(released)
    monkeypatch.setattr(conversion, "is_large", lambda file: str(file) == large)
    monkeypatch.setattr(conversion, "LEAST", 1)
    mixed = generated.read([small, large], known(images), images, images=images / "images")
    assert all(isinstance(s.triplets, Columns) for s in mixed)
