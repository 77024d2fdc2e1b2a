# SPDX-License-Identifier: Apache-2.0
"""Rows of the bank for images that no triplet names: after the labelled ones, each image once."""

import hashlib
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from cir_jax.data.image_table import ImageTable
from cir_jax.errors import UserError
from cir_jax.losses import sampled
from cir_jax.training import setup, train
from cir_jax.training.state import State
from tests import runs


@pytest.fixture(scope="module")
def fiq(tmp_path_factory):
    """Thirty images, eight triplets; extra/ holds two new images and a copy of a labelled one."""
    root = runs.write_fashioniq(
        tmp_path_factory.mktemp("fiq"), images=30, triplets=4, categories=("dress", "shirt")
    )
    for i in range(2):
        runs.write_image(root / "extra" / "deep" / f"{i}.png", (9, 90 * i, 200), 50 + i)
    shutil.copy(root / "images" / first(root), root / "extra" / "copy.png")
    runs.dump(root / "list.json", ["extra/./deep/1.png", f"images/{first(root)}"])
    return root


def first(root):
    return runs.load("fashioniq", root)[0].triplets[0].reference + ".png"


def prepared(root, *changes, **options):
    changes = ("batch=8", "eval.benchmark=none", *changes)
    return runs.set_up(runs.tiny(root / "run", root, *changes, **{"stage": 2} | options))


def test_rows_come_after_the_labelled_ones(fiq):
    plain = prepared(fiq)[1].triplets
    _, data = prepared(fiq, "data.unlabelled=split,extra,list.json")
    images = data.triplets.images
    assert images.names[: len(plain.images)] == plain.images.names
    np.testing.assert_array_equal(data.triplets.target_id, plain.target_id)
    assert len(images) == 30 + 3 and images.unlabelled == 33 - len(plain.images)
    assert images.names[-3:] == ("extra/copy.png", "extra/deep/0.png", "extra/deep/1.png")
    assert images.fingerprint() != plain.images.fingerprint()
    # References are those of the triplets, as before.
    assert len(data.references) == len(np.unique(plain.reference_id))
    count = prepared(fiq, "data.unlabelled=split", "data.unlabelled_count=2")[1].triplets.images
    assert count.names == images.names[: len(plain.images) + 2]


def test_summary_says_how_many(fiq):
    made, data = prepared(fiq, "data.unlabelled=extra")
    said = train.summary(made, data, State({}, {}, None))
    assert f"{len(data.triplets.images)} images, 3 of them unlabelled" in said


@pytest.mark.parametrize("known", [True, False])
def test_the_picture_of_a_labelled_image_does_not_come_in(known, fiq, tmp_path):
    """By the file of equal images where it names them, else by the pixels."""
    names = sorted(p.stem for p in (fiq / "images").iterdir())
    group = {name: i for i, name in enumerate(names)}
    labelled = prepared(fiq)[1].triplets.images.names
    rest = [n for n in names if n not in labelled]
    group[rest[0]] = group[labelled[0]]  # said to be alike, and not compared
    group[rest[2]] = group[rest[1]]
    if known:
        group |= {"extra/copy.png": group[labelled[0]], "extra/deep/0.png": 90}
        group["extra/deep/1.png"] = 91
    runs.dump(tmp_path / "optimized_images.json", [names, names, group])
    change = f"data.optimized={tmp_path / 'optimized_images.json'}"
    images = prepared(fiq, "data.unlabelled=split,extra", change)[1].triplets.images
    want = [*labelled, rest[1], *rest[3:], "extra/deep/0.png", "extra/deep/1.png"]
    assert sorted(images.names) == sorted(want)


def test_every_row_is_encoded_and_may_be_a_negative(fiq, tmp_path):
    """No row of the bank is empty: a row of zeros would be a negative that every query knows."""
    made, data = prepared(fiq, "data.unlabelled=split", f"loss.bank_path={tmp_path}")
    bank, _ = setup.build_bank(made, data, made.functions.init(0))
    targets = np.asarray(bank.targets)[: bank.rows]
    assert bank.rows == 30
    np.testing.assert_allclose(np.linalg.norm(targets, axis=-1), 1.0, rtol=1e-5)
    label = np.zeros(1, np.int32)
    drawn = sampled.sample_negatives(jax.random.key(0), label, bank.rows - 1, bank.rows)
    assert drawn[0].tolist() == list(range(1, 30))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("data.unlabelled=gone",), r"no folder and no file gone, nor .*/gone; use split, a fold"),
        (("data.unlabelled=captions",), r"no image in .*/captions; give another folder or list"),
        (("data.unlabelled=bad.json",), r"bad.json record 0 is 3, expected the path of a file"),
        (("data.unlabelled=lost.json",), r"data.unlabelled: 1 of 1 images cannot be used .1 miss"),
        (("data.unlabelled=known.json",), r"every image there is one of the labelled ones; set it"),
        (
            ("data.unlabelled=extra", "data.unlabelled_count=4"),
            r"data.unlabelled_count=4, but there are 3 images that no triplet names; use 0",
        ),
        (("data.unlabelled_count=-1",), r"data.unlabelled_count=-1 is out of range; it must be at"),
        (("data.unlabelled_count=5",), r"data.unlabelled_count=5, but data.unlabelled names no im"),
    ],
)
def test_errors(changes, message, fiq):
    runs.dump(fiq / "bad.json", [3])
    runs.dump(fiq / "lost.json", ["lost.png"])
    runs.dump(fiq / "known.json", [f"images/{first(fiq)}"])
    with pytest.raises(UserError, match=message):
        prepared(fiq, *changes)


def test_stages_without_a_bank(fiq):
    with pytest.raises(UserError, match=r"data.unlabelled=\('split',\) adds rows to the bank, and"):
        prepared(fiq, "data.unlabelled=split", stage=1)


def test_one_name_of_two_pictures(fiq, tmp_path):
    runs.write_image(tmp_path / "extra" / "copy.png", (1, 2, 3))
    with pytest.raises(UserError, match=r"image 'extra/copy.png' is .* and .*; one name cannot be"):
        prepared(fiq, f"data.unlabelled=extra,{tmp_path / 'extra'}")


def test_the_bank_of_other_pictures_by_the_same_names_is_refused(fiq, tmp_path):
    def table(place):
        return prepared(fiq, f"data.unlabelled={tmp_path / place / 'more'}")[1].triplets.images

    for seed, place in enumerate("ab"):
        for i in range(2):  # without compression all files have one size and one beginning
            picture = np.full((64, 64, 3), 255, np.uint8)
            picture[32 + seed, 5] = i
            (tmp_path / place / "more").mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(tmp_path / place / "more" / f"{i}.png", compress_level=0)
    one, other = table("a"), table("b")
    assert one.names == other.names and one.fingerprint() != other.fingerprint()
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    assert table("copy").fingerprint() == one.fingerprint()
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(UserError, match=r"0.png cannot be read \(No such file or directory\); br"):
        one.fingerprint()


def test_labelled_images_are_told_apart_by_name(fiq):
    """Banks of earlier versions stay good."""
    table = ImageTable(["a", "b"], ["gone/a.png", "gone/b.png"], {"a": 0, "b": 1, "c": 1})
    want = hashlib.sha256(b"a\nb\na\t0\nb\t1\nc\t1\n").hexdigest()
    assert table.fingerprint() == want


def write_folder(root):
    """Twelve images: 0 and 1 of train, 2 and 3 of val, 4 of a subset there, 5 and 6 of test."""
    for i in range(12):
        runs.write_image(root / "images" / f"{i}.png", (20 * i, 9, 99), i)
    for split, a, b in (("train", 0, 1), ("val", 2, 3), ("test", 5, 6)):
        line = {"reference": f"{a}", "target": f"{b}.png", "text": "is red"}
        line |= {"group": ["2", "4"]} if split == "val" else {}
        (root / f"{split}.jsonl").write_text("\n".join([json.dumps(line)] * 8))
    return root


def test_images_of_the_evaluation_of_a_folder_stay_out(tmp_path):
    root = write_folder(tmp_path / "mine")

    def names(*changes):
        return set(
            prepared(root, "data.unlabelled=split", *changes, data="folder")[
                1
            ].triplets.images.names
        )

    assert names() == {f"{i}.png" for i in (0, 1, 5, 6, 7, 8, 9, 10, 11)}
    assert names("eval.split=test") == {f"{i}.png" for i in (0, 1, 7, 8, 9, 10, 11)}
    (root / "gallery.txt").write_text("7\n8.png\n0\n")
    assert names() == {f"{i}.png" for i in (0, 1, 5, 6, 9, 10, 11)}
    by_folder = prepared(root, "data.unlabelled=images", data="folder")[1].triplets.images.names
    assert set(by_folder) == {"0.png", "1.png", *(f"images/{i}.png" for i in (5, 6, 9, 10, 11))}
    (root / "gallery.txt").write_text("\n".join(map(str, range(12))))
    with pytest.raises(
        UserError, match=r"set it to \(\) \(images that a folder's val.jsonl or gal"
    ):
        names()
