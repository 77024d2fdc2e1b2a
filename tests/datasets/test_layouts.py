# SPDX-License-Identifier: Apache-2.0
"""Data sets as they lie on people's disks: other folders, lost files, one file under two names."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from cir_jax.data.image_table import ImageTable
from cir_jax.data.inspection import inspect_images
from cir_jax.data.screening import drop_missing
from cir_jax.data.triplets import Triplet, TripletSet
from cir_jax.datasets.readers import cirr, folder
from cir_jax.errors import UserError
from tests import runs


@pytest.mark.parametrize("split", ["train", "val", "test1"])
@pytest.mark.parametrize(
    "images, root",
    [
        (".", "."),  # CLIP4CIR's layout
        ("cirr/img_raw", "."),  # that of the data set's authors
        ("img_raw", "."),
        ("cirr/img_raw", "cirr"),  # the root is their repository
        (".", "cirr"),
    ],
)
def test_cirr_layouts(tmp_path, images, root, split):
    runs.write_cirr(tmp_path)
    if images != ".":
        (tmp_path / images).mkdir(parents=True)
        for name in ("train", "dev", "test1"):
            shutil.move(tmp_path / name, tmp_path / images / name)
    (found,) = cirr.read(tmp_path / root, split)
    assert len(found.paths) == 24 and not inspect_images(found.paths).unusable()


def test_a_blank_caption_of_cirr_stays(tmp_path):
    root = runs.write_cirr(tmp_path)
    file = root / "cirr/captions/cap.rc2.test1.json"
    records = json.loads(file.read_text())
    runs.dump(file, [records[0] | {"caption": " "}, *records[1:]])
    triplets = cirr.read(root, "test1")[0].triplets
    assert len(triplets) == 12 and triplets[0].eval_text == " "


def lose_generated_target(root):
    """A split lists an image that only a generated triplet names, and its file is gone."""
    for file in root.glob("image_splits/split.dress.train.json"):
        runs.dump(file, [*json.loads(file.read_text()), "B9000"])
    file = root / "captions/cap.extend_clip.train.json"
    records = json.loads(file.read_text())
    runs.dump(file, [records[0] | {"target": "B9000"}, *records[1:]])
    return "captions/cap.extend_clip.train.json"


def test_a_lost_image_of_a_generated_triplet_can_be_dropped(tmp_path):
    root = runs.write_fashioniq(tmp_path)
    sets = runs.load("fashioniq", root, f"data.generated={lose_generated_target(root)}")
    with pytest.raises(UserError, match=r"1 of 25 images cannot be used .1 missing.: .*B9000.png"):
        drop_missing(sets, "error")
    kept, dropped = drop_missing(sets, "drop")
    assert dropped == {"generated": 1}
    assert "B9000" not in ImageTable.from_sets(kept).row_of


def test_a_generated_triplet_of_an_unknown_image(tmp_path):
    root = runs.write_fashioniq(tmp_path)
    file = root / "captions/cap.extend_clip.train.json"
    records = json.loads(file.read_text())
    runs.dump(file, [*records, records[0] | {"target": "nowhere"}])
    sets = runs.load("fashioniq", root, f"data.generated={file}")
    with pytest.raises(UserError, match=r"cap.extend_clip.train.json/8 names image 'nowhere'"):
        ImageTable.from_sets(drop_missing(sets, "drop")[0])


@pytest.fixture
def mine(tmp_path):
    for number, name in enumerate(("a.jpg", "b.png", "c.jpg", "c.png")):
        runs.write_image(tmp_path / "images" / name, (10, 20, 200), seed=number)

    def write(*records, name="train.jsonl"):
        lines = [json.dumps({"text": "x"} | record) for record in records]
        (tmp_path / name).write_text("\n".join(lines))
        return tmp_path

    return write


def test_one_file_under_two_names_is_one_row(mine):
    root = mine(
        {"reference": "a", "target": "b"},
        {"reference": "a.jpg", "target": "b.png", "group": ["a", "b", "c.png"]},
    )
    sets = folder.read(root)
    assert ImageTable.from_sets(sets).names == ("a.jpg", "b.png")
    assert sets[0].triplets[1].members == ("a.jpg", "b.png", "c.png")
    (root / "gallery.txt").write_bytes("\ufeffb\r\na.jpg\r\na\r\n".encode())
    assert folder.gallery(root)[0] == ["b.png", "a.jpg"]


def test_generated_triplets_of_a_folder(mine):
    root = mine({"reference": "a", "target": "b"})
    runs.dump(root / "more.json", [{"candidate": "b", "target": "a", "captions": ["y"]}])
    sets = runs.load("folder", root, "data.generated=more.json")
    assert len(ImageTable.from_sets(sets)) == 2
    assert not inspect_images(sets[1].paths).unusable()


def test_a_name_that_fits_two_files(mine):
    root = mine({"reference": "a", "target": "c"})
    with pytest.raises(
        UserError, match=r"train.jsonl:1: image 'c' may be c.jpg or c.png; write the suf"
    ):
        folder.read(root)
    (root / "gallery.txt").write_text("a\nc\n")
    with pytest.raises(UserError, match=r"gallery.txt:2: image 'c' may be c.jpg or c.png"):
        folder.gallery(root)


def test_one_name_for_two_files():
    one = Triplet("a", "b", ("x",), "x", "s", "0")
    sets = [
        TripletSet("first", (one,), {"a": "1/a.png", "b": "1/b.png"}),
        TripletSet("second", (one,), {"a": "2/a.png", "b": "1/b.png"}),
    ]
    with pytest.raises(UserError, match=r"image 'a' is 1/a.png and, in second, 2/a.png; one name"):
        ImageTable.from_sets(sets)


def test_palettes_are_part_of_an_image(tmp_path):
    for name, color in (("red", (255, 0, 0)), ("blue", (0, 0, 255)), ("twin", (0, 0, 255))):
        image = Image.new("P", (8, 8), 0)
        image.putpalette([*color, *[0] * 765])
        image.save(tmp_path / f"{name}.png")
    paths = {n: str(tmp_path / f"{n}.png") for n in ("red", "blue", "twin")}
    assert inspect_images(paths).duplicates == [["blue", "twin"]]


def test_what_is_no_image_file(tmp_path):
    (tmp_path / "folder.png").mkdir()
    pixels = np.zeros((4, 4, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "huge.bmp")
    content = bytearray((tmp_path / "huge.bmp").read_bytes())
    content[18:26] = (60_000).to_bytes(4, "little") * 2  # a header that claims 60,000 x 60,000
    (tmp_path / "huge.bmp").write_bytes(content)
    runs.write_image(tmp_path / "cut.jpg", (1, 2, 3), size=(64, 64))
    whole = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    paths = {n: str(tmp_path / n) for n in ("folder.png", "huge.bmp", "cut.jpg")}
    assert inspect_images(paths).undecodable == list(paths)
