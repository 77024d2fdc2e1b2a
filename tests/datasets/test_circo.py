# SPDX-License-Identifier: Apache-2.0
"""The reader of CIRCO, and what `cir-jax doctor` says of it."""

import json

import pytest

from cir_jax.datasets import doctor
from cir_jax.datasets.readers import circo
from cir_jax.errors import UserError
from cir_jax.main import main
from tests import runs, zero_shot_sets


@pytest.fixture
def root(tmp_path):
    return zero_shot_sets.write_circo(tmp_path)


def change(root, number=1, split="val", **values):
    file = root / "annotations" / f"{split}.json"
    records = json.loads(file.read_text())
    records[number] |= values
    runs.dump(file, records)


def test_queries(root):
    change(
        root, 1, reference_img_id=100, target_img_id=103, gt_img_ids=[103, 101, 115],
        semantic_aspects=["viewpoint"], relative_caption="is blue", shared_concept="a door",
    )  # fmt: skip
    found = circo.queries(root, "val")
    assert len(found) == 6 and found[1] == circo.Query(
        "1", "100", "is blue", "a door", "103", ("103", "101", "115"), ("viewpoint",)
    )
    hidden = circo.queries(root, "test")[1]
    assert (hidden.target, hidden.truths, hidden.aspects) == ("", (), ())


def test_candidates(root):
    names, paths = circo.candidates(root)
    assert names == [str(n) for n in range(100, 116)]
    assert paths["103"] == str(root / "COCO2017_unlabeled/unlabeled2017/000000000103.jpg")


def test_a_list_of_images_that_is_none(root):
    runs.dump(circo.image_list(root), {"images": 7})
    with pytest.raises(UserError, match="'images' is a int, expected a list; fetch the file again"):
        circo.candidates(root)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"gt_img_ids": [101, 102], "target_img_id": 103}, "target 103 is not among its 2 answers"),
        ({"gt_img_ids": [103, 103], "target_img_id": 103}, "answer 103 comes more than once"),
        ({"gt_img_ids": ["103"]}, r"'gt_img_ids' is \['103'\], expected a list of image numbers"),
        ({"reference_img_id": 103, "target_img_id": 103, "gt_img_ids": [103]}, "its own answers"),
        ({"reference_img_id": "x"}, "'reference_img_id' is 'x', expected a whole number"),
        ({"id": True}, "'id' is True, expected a whole number"),
        ({"id": 0}, r"val.json: id 0 comes more than once"),
        ({"relative_caption": " "}, "record 1 has no text"),
        ({"semantic_aspects": "negation"}, "'semantic_aspects' is 'negation', expected a list"),
    ],
)
def test_wrong_records(root, values, message):
    change(root, **values)
    with pytest.raises(UserError, match=message):
        circo.queries(root, "val")


def test_a_record_without_aspects_or_without_a_field(root):
    file = root / "annotations/val.json"
    records = json.loads(file.read_text())
    del records[0]["semantic_aspects"]
    runs.dump(file, records)
    assert circo.queries(root)[0].aspects == ()
    del records[0]["shared_concept"]
    runs.dump(file, records)
    with pytest.raises(UserError, match="record 0 has no 'shared_concept'"):
        circo.queries(root)
    runs.dump(file, [])
    with pytest.raises(UserError, match="holds no query"):
        circo.queries(root)


def test_wrong_places(root, tmp_path):
    with pytest.raises(UserError, match=r"no split 'test1'; there are: val, test\. Did you mean"):
        circo.queries(root, "test1")
    with pytest.raises(UserError, match=r"no CIRCO annotations .*set eval.root"):
        circo.queries(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "names no image"),
        ([{"id": 3, "file_name": "a.jpg"}, {"id": 3, "file_name": "b.jpg"}], "image id 3 comes"),
        ([{"id": 3}], "image 0 has no 'file_name'"),
        ([{"id": 3, "file_name": ""}], "'file_name' is ''"),
    ],
)
def test_wrong_image_lists(root, images, message):
    runs.dump(circo.image_list(root), {"images": images})
    with pytest.raises(UserError, match=message):
        circo.candidates(root)


def test_doctor(root, capsys):
    (root / "COCO2017_unlabeled/unlabeled2017/000000000104.jpg").unlink()
    change(root, 2, "test", reference_img_id=999)
    assert main(["doctor", "circo", str(root)]) == 1
    said = capsys.readouterr().out
    assert "images, all candidates" in said and "123,403  <- differs" in said
    assert "val queries: 6, officially 220; recalls are not comparable" in said
    assert "missing: 1: 104" in said and "test/2 (999)" in said
    (root / "annotations/test.json").unlink()
    found = doctor.examine("circo", root, decode=False)
    assert any(note.startswith("no test split") for note in found["notes"])
    with pytest.raises(UserError, match="CIRCO has no categories"):
        doctor.examine("circo", root, ("dress",))
