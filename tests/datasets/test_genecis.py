# SPDX-License-Identifier: Apache-2.0
"""The reader of GeneCIS, the parts of images it names, and what `cir-jax doctor` says of it."""

import json

import numpy as np
import pytest
from PIL import Image

from cir_jax.data.pixels import Crop, Preprocess, open_image
from cir_jax.datasets import doctor
from cir_jax.datasets.readers import genecis
from cir_jax.errors import UserError
from cir_jax.main import main
from tests import runs, zero_shot_sets


@pytest.fixture
def root(tmp_path):
    return zero_shot_sets.write_genecis(tmp_path)


def change(root, task, number=0, **values):
    file = root / "genecis" / f"{task}.json"
    records = json.loads(file.read_text())
    records[number] |= values
    runs.dump(file, records)


def test_objects(root):
    ids = [{"val_image_id": n} for n in (50, 51, 52, 53)]
    change(root, "focus_object", reference=ids[0], target=ids[1], gallery=ids[2:], condition="car")
    read = genecis.read_task(root, "focus_object")
    first = read.triplets[0]
    assert (first.reference, first.target, first.members) == ("50", "51", ("51", "52", "53"))
    assert (first.eval_text, first.query_id) == ("car", "focus_object/0")
    assert read.paths["51"] == str(root / "val2017/000000000051.jpg")


def test_a_target_in_its_own_gallery_is_one_candidate(root):
    ids = [{"val_image_id": n} for n in (51, 52, 51, 52)]
    change(root, "change_object", reference={"val_image_id": 50}, target=ids[0], gallery=ids[1:])
    assert genecis.read_task(root, "change_object").triplets[0].members == ("51", "52")
    change(root, "change_object", gallery=ids[:1])
    with pytest.raises(UserError, match="its gallery holds nothing but the target"):
        genecis.read_task(root, "change_object")


def test_attributes_are_parts_of_images(root):
    box = {"image_id": 20, "instance_bbox": [2, 3, 12.5, 20]}
    change(root, "focus_attribute", reference=box)
    read = genecis.read_task(root, "focus_attribute")
    name = read.triplets[0].reference
    assert name == "20:2,3,12.5,20"
    expected = Crop(str(root / "VG_100K_all/20.jpg"), (2, 3, 12.5, 20), 0.7)
    assert read.paths[name] == expected and genecis.file_of(expected) == expected.source
    assert str(expected) == f"{expected.source} box 2, 3, 12.5, 20"
    (root / "VG_100K_all").rename(root / "VG_100K_2")  # as Visual Genome is unpacked
    assert genecis.read_task(root, "focus_attribute").paths[name].source == str(
        root / "VG_100K_2/20.jpg"
    )
    (root / "VG_100K_2/20.jpg").unlink()
    assert genecis.read_task(root, "focus_attribute").paths[name] == expected


@pytest.mark.parametrize(
    ("box", "corners"),
    [
        # dilate 0.5: the corner moves to (40 - 10, 30 - 5), the sizes are 30 and 15 from there
        ((40, 30, 20, 10), (30, 25, 60, 40)),
        # stopped by the border at 0: the sizes are 30 and 15 from there
        ((4, 2, 20, 10), (0, 0, 30, 15)),
        # the right and lower border stop the rest: 90 - 10 = 80, 80 + 30 > 100; 55 - 5 = 50
        ((90, 55, 20, 10), (80, 50, 100, 60)),
        # 10.5 and 6.5 go to the even neighbour
        ((15.5, 8.5, 10, 4), (10, 6, 26, 12)),
    ],
)
def test_crops_by_hand(box, corners):
    pixels = np.random.default_rng(0).integers(1, 256, (60, 100, 3), np.uint8)
    part = np.asarray(Crop("", box, 0.5).cut(Image.fromarray(pixels)))
    left, top, right, bottom = corners
    width, height = right - left, bottom - top
    side = max(width, height)
    assert part.shape == (side, side, 3)
    x, y = (side - width) // 2, (side - height) // 2
    expected = np.zeros_like(part)
    expected[y : y + height, x : x + width] = pixels[top:bottom, left:right]
    np.testing.assert_array_equal(part, expected)


def test_crops_go_wherever_paths_do(tmp_path):
    runs.write_image(tmp_path / "a.png", (200, 10, 10), size=(40, 30))
    crop = Crop(str(tmp_path / "a.png"), (5, 5, 10, 20), 0.7)
    again = Crop(str(tmp_path / "a.png"), (5, 5, 10, 20), 0.7)
    assert len({crop, again, Crop(crop.source, (5, 5, 10, 19), 0.7)}) == 2
    square = open_image(crop)
    assert square.size[0] == square.size[1]
    np.testing.assert_array_equal(Preprocess(8)(crop), Preprocess(8)(square))
    assert not np.array_equal(Preprocess(8)(crop), Preprocess(8)(crop.source))
    grey = Crop("", (0, 0, 10, 20)).cut(Image.new("L", (40, 30), 7))
    assert grey.mode == "L" and grey.getpixel((0, 0)) == 0 and grey.getpixel((10, 3)) == 7
    palette = Crop("", (0, 0, 10, 20)).cut(Image.new("P", (40, 30)))
    assert palette.mode == "RGB"
    with pytest.raises(UserError, match=r"holds no pixel of .*a.png, which is 40x30; correct"):
        open_image(Crop(crop.source, (60, 0, 5, 5)))
    with pytest.raises(UserError, match=r"no\.png does not exist"):
        open_image(Crop(str(tmp_path / "no.png"), (0, 0, 5, 5)))


@pytest.mark.parametrize(
    ("task", "values", "message"),
    [
        ("focus_object", {"gallery": []}, r"'gallery' is \[\], expected a list of images"),
        ("focus_object", {"target": {"image_id": 5}}, "record 0 has no 'val_image_id'"),
        ("focus_object", {"target": {"val_image_id": "5"}}, "'val_image_id' is '5', expected a wh"),
        ("focus_object", {"condition": ""}, "record 0 has no text"),
        ("focus_attribute", {"target": {"image_id": 20}}, "has no 'instance_bbox'"),
        (
            "focus_attribute",
            {"target": {"image_id": 20, "instance_bbox": [0, 0, 0, 5]}},
            r"'instance_bbox' is \[0, 0, 0, 5\], expected \[left, top, width, height\]",
        ),
    ],
)
def test_wrong_records(root, task, values, message):
    change(root, task, **values)
    with pytest.raises(UserError, match=message):
        genecis.read_task(root, task)


def test_wrong_places(root, tmp_path):
    with pytest.raises(UserError, match=r"no task 'focus_objects'; there are: .*'focus_object'"):
        genecis.find_tasks(("focus_objects",))
    with pytest.raises(UserError, match=r"no GeneCIS annotations .*set eval.root .*eval.tasks"):
        genecis.read_task(tmp_path / "no", "focus_object")
    runs.dump(root / "genecis/focus_object.json", [])
    with pytest.raises(UserError, match="holds no query"):
        genecis.read_task(root, "focus_object")


def test_doctor(root, capsys):
    (root / "VG_100K_all/21.jpg").write_bytes(b"no image")
    assert main(["doctor", "genecis", str(root)]) == 1
    said = capsys.readouterr().out
    assert "focus_object queries: 5, officially 1,960" in said
    assert f"no image: 1: {root / 'VG_100K_all/21.jpg'}" in said
    (root / "genecis/change_object.json").unlink()
    found = doctor.examine("genecis", root, decode=False)
    assert any("no annotation file genecis/change_object.json" in p for p in found["problems"])
    only = doctor.examine("genecis", root, ("focus_attribute",), decode=False)
    assert only["problems"] == []
    with pytest.raises(UserError, match="no task of GeneCIS in"):
        doctor.examine("genecis", root / "nothing")
