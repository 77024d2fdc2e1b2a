# SPDX-License-Identifier: Apache-2.0
"""Records that cannot be used are named with their file, in every reader."""

import json

import pytest

from cir_jax.data import annotations
from cir_jax.datasets import captions, generated
from cir_jax.datasets.readers import cirr, fashioniq, folder
from cir_jax.errors import UserError
from tests import runs


def change(file, number, record):
    records = json.loads(file.read_text())
    if isinstance(record, dict):
        record = records[number] | record
    runs.dump(file, [*records[:number], record, *records[number + 1 :]])


@pytest.mark.parametrize(
    "record, message",
    [
        ({"target": None}, r"record 2: 'target' is None, expected the name of an image"),
        ({"target": ""}, r"record 2: 'target' is '', expected the name"),
        ({"target": ["a"]}, r"record 2: 'target' is \['a'\], expected the name"),
        ({"candidate": None}, r"record 2: 'candidate' is None"),
        ({"candidate": ""}, r"record 2: 'candidate' is ''"),
        ({"captions": None}, r"record 2 has captions None; FashionIQ has two"),
        ({"captions": [1, "x"]}, r"record 2: 1 is no text"),
        ({"captions": ["?", " ."]}, r"record 2 has no text"),
        ([], r"record 2 is a list, expected an object"),
    ],
)
def test_fashioniq(tmp_path, record, message):
    root = runs.write_fashioniq(tmp_path)
    change(root / "captions/cap.shirt.train.json", 2, record)
    with pytest.raises(UserError, match=r"cap.shirt.train.json " + message):
        fashioniq.read(root)


def test_split_entries(tmp_path):
    root = runs.write_fashioniq(tmp_path / "fiq")
    change(root / "image_splits/split.dress.val.json", 1, None)
    with pytest.raises(UserError, match=r"split.dress.val.json record 1 is None, expected the nam"):
        fashioniq.gallery(root, "dress")
    root = runs.write_cirr(tmp_path / "cirr")
    runs.dump(root / "cirr/image_splits/split.rc2.val.json", {"a": None})
    with pytest.raises(UserError, match=r"split.rc2.val.json: image 'a' has the path None; fetch"):
        cirr.gallery(root)
    for path, message in (("a" * 5000, "longer than a file system allows"), ("\0", "control")):
        runs.dump(root / "cirr/image_splits/split.rc2.val.json", {"a": path})
        with pytest.raises(UserError, match=message):
            cirr.gallery(root)
    runs.dump(root / "cirr/image_splits/split.rc2.val.json", {"a": "."})
    assert cirr.gallery(root)[0] == ["a"]  # a folder: like every file that is no image, found later


@pytest.mark.parametrize(
    "record, message",
    [
        ({"target_hard": None}, r"record 1: 'target_hard' is None"),
        ({"reference": 5}, r"record 1: 'reference' is 5"),
        ({"caption": None}, r"record 1: None is no text"),
        ({"caption": []}, r"record 1 has no text"),
        ({"img_set": None}, r"record 1 is a NoneType, expected an object with 'members'"),
        ({"img_set": {"members": None}}, r"record 1: 'members' is None, expected a list of image"),
        ({"img_set": {"members": "abc"}}, r"record 1: 'members' is 'abc', expected a list"),
    ],
)
def test_cirr(tmp_path, record, message):
    root = runs.write_cirr(tmp_path)
    change(root / "cirr/captions/cap.rc2.train.json", 1, record)
    with pytest.raises(UserError, match=r"cap.rc2.train.json " + message):
        cirr.read(root)


@pytest.mark.parametrize(
    "records, message",
    [
        ([], r"generated.json holds no triplet; make it anew"),
        ([3], r"record 0 is a int, expected an object with 'reference'"),
        ([{"candidate": "a", "target": None, "captions": ["x"]}], r"record 0: 'target' is None"),
        ([{"candidate": "a", "target": "b", "captions": 5}], r"record 0: 5 is no text"),
        ([{"candidate": "a", "target": "b", "captions": None}], r"record 0: None is no text"),
        ([{"candidate": "a", "target": "b", "captions": {"x": 1}}], r"record 0: {'x': 1} is no te"),
        ([{"candidate": "a", "target": "b", "captions": [" "]}], r"record 0 has no text"),
    ],
)
def test_generated(tmp_path, records, message):
    runs.dump(tmp_path / "generated.json", records)
    with pytest.raises(UserError, match=message):
        generated.read(["generated.json"], {}, tmp_path)


@pytest.mark.parametrize(
    "record, message",
    [
        ({"reference": None, "target": "b", "text": "x"}, r"jsonl:1: 'reference' is None"),
        ({"reference": "a", "target": "", "text": "x"}, r"jsonl:1: 'target' is ''"),
        ({"reference": "a", "target": "b", "texts": None}, r"jsonl:1: None is no text"),
        ({"reference": "a", "target": "b", "text": "x", "group": "ab"}, r"'group' is 'ab', expec"),
    ],
)
def test_folder(tmp_path, record, message):
    (tmp_path / "train.jsonl").write_text(json.dumps(record))
    with pytest.raises(UserError, match=message):
        folder.read(tmp_path)


@pytest.mark.parametrize(
    "record, message",
    [
        (7, r"it.json:1: expected an object; correct that record, or take it out"),
        ({"image_path": None, "caption": "x"}, r"it.json:1 names no image; it has: image_path, ca"),
        ({"image_path": "a.png", "caption": 3}, r"it.json:1: 3 is no text; write it in quotes"),
    ],
)
def test_captions(tmp_path, record, message):
    runs.dump(tmp_path / "it.json", [record])
    with pytest.raises(UserError, match=message):
        captions.read(tmp_path / "it.json")


@pytest.mark.parametrize(
    "text, message",
    [
        ('[{"a": {"b": 1}}, {"a": {"b": 2}}, {"a": {"b" 3}}]', r"column 47, record 2; fetch"),
        ('[{"a": {}}\n {"a": {}}]', r"line 2, column 2, record 1; fetch"),
        ('[{"a": {}}, {"a"', r"record 1; fetch"),
        ("", r"is no JSON: Expecting value at line 1, column 1; fetch"),
        ('{"a": 1, "b"}', r"line 1, column 13; fetch"),
    ],
)
def test_position_in_malformed_json(tmp_path, text, message):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match=message):
        annotations.read_json(tmp_path / "x.json")


def test_encodings(tmp_path):
    (tmp_path / "bom.json").write_bytes("\ufeff[1]".encode())
    assert annotations.read_json(tmp_path / "bom.json") == [1]
    (tmp_path / "bom.jsonl").write_bytes('\ufeff{"a": "x\u2028y"}\r\n'.encode())
    assert next(annotations.read_lines(tmp_path / "bom.jsonl"))[1] == {"a": "x\u2028y"}
    for name, read in (("x.json", annotations.read_json), ("x.jsonl", annotations.read_lines)):
        (tmp_path / name).write_bytes(b'{"a": "\xff"}\n')
        with pytest.raises(UserError, match=rf"{name} is not UTF-8 text"):
            list(read(tmp_path / name))
