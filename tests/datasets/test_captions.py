# SPDX-License-Identifier: Apache-2.0
"""Captions from every kind of file: one answer to every column name, gap and conflict."""

import gzip
import json

import pytest

from cir_jax import progress
from cir_jax.datasets import captions
from cir_jax.errors import UserError
from tests import runs

ROWS = {"a.png": "a red dress", "b.png": "a blue shirt"}
NAMES = [*ROWS, "c.png"]
ITEMS = [*ROWS.items()]
FILES = {
    "t.csv": "Image,Caption\n" + "".join(f"{n},{t}\n" for n, t in ITEMS),
    "semicolons.csv": "Name;Alt Text\r\n" + "".join(f"{n};{t}\r\n" for n, t in ITEMS),
    "old_mac.csv": "file,TEXT\r" + "".join(f"{n},{t}\r" for n, t in ITEMS),
    "t.tsv": "FILE-NAME\tTitle\n" + "".join(f"{n}\t{t}\n" for n, t in ITEMS),
    "list.json": json.dumps([{"Image_Path": n, "captions": [t]} for n, t in ITEMS]),
    "dictionary.json": json.dumps(ROWS),
    "lines.json": "".join(json.dumps({"image": n, "Description": t}) + "\n" for n, t in ITEMS),
    "list.jsonl": json.dumps([{"path": n, "alt": t} for n, t in ITEMS]),
    "captions.jsonl": "".join(  # as `cir-jax positives` writes them
        json.dumps({"image": n, "text": t, "prompt": "", "captioner": "texts", "pixels": "0f"})
        + "\n" for n, t in ITEMS
    ),
}  # fmt: skip
ENCODINGS = {
    "utf-8": str.encode,
    "utf-8 with a mark": lambda text: text.encode("utf-8-sig"),
    "utf-16 with a mark": lambda text: text.encode("utf-16"),
    "utf-16, big end first": lambda text: b"\xfe\xff" + text.encode("utf-16-be"),
    "gzip": lambda text: gzip.compress(text.encode()),
}


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr(progress, "say", lines.append)
    return lines


def of_positives(file, **choices):
    """What positives take: name -> text."""
    found = captions.collect([str(file)], captions.Choices.of("caption.", **choices), NAMES)
    return {name: one.texts[0] for name, one in found.items()}


def of_stage_zero(file, **choices):
    """What stage zero takes: name -> text."""
    (pairs,) = captions.read(file, "", captions.Choices.of_stage_zero(**choices))
    assert all(t.reference == "" and t.eval_text == t.texts[0] for t in pairs.triplets)
    return {t.target: t.texts[0] for t in pairs.triplets}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("name", FILES)
def test_every_file_in_every_encoding(tmp_path, name, encoding):
    file = tmp_path / name
    file.write_bytes(ENCODINGS[encoding](FILES[name]))
    if encoding == "gzip":
        file = file.rename(tmp_path / f"{name}.gz")
    assert of_positives(file) == of_stage_zero(file) == ROWS


def test_names_without_suffix_and_our_own_files(tmp_path):
    for name in NAMES:
        runs.write_image(tmp_path / name, (1, 2, 3))
    (tmp_path / "t.csv").write_text("image,caption\na,one\nb,two\n")
    assert of_positives(tmp_path / "t.csv") == {"a.png": "one", "b.png": "two"}
    (pairs,) = captions.read(tmp_path / "t.csv")
    assert pairs.paths == {n: str(tmp_path / n) for n in ROWS}


def test_texts_as_they_are_written(tmp_path):
    """Stage zero takes all texts of a record, positives the first."""
    record = {"image": "a.png", "captions": [" one ", "", "two"]}
    (tmp_path / "t.jsonl").write_text(json.dumps(record))
    (pairs,) = captions.read(tmp_path / "t.jsonl")
    assert pairs.triplets[0].texts == (" one ", "two")
    assert of_positives(tmp_path / "t.jsonl") == {"a.png": "one"}


def test_a_record_of_its_own_in_json(tmp_path):
    (tmp_path / "one.json").write_text('{"image": "a.png", "caption": "x"}')
    assert of_positives(tmp_path / "one.json") == of_stage_zero(tmp_path / "one.json")


@pytest.mark.parametrize("read", [of_positives, of_stage_zero])
def test_empty_texts(tmp_path, said, read):
    file = tmp_path / "t.csv"
    file.write_text("image,caption\na.png,x\nb.png,\nc.png,  \n")
    assert read(file) == {"a.png": "x"}
    assert "2 of 3 records have no text" in said[0] and f"{file}:3 the first" in said[0]
    with pytest.raises(UserError, match=r"t.csv:3 has no text; .*empty=drop .*\(2 such records\)"):
        read(file, empty="error")


@pytest.mark.parametrize("read", [of_positives, of_stage_zero])
def test_second_texts(tmp_path, read):
    file = tmp_path / "t.csv"
    file.write_text("image,caption\na.png,x\nb.png,y\nb.png,y\na.png,z\n")
    with pytest.raises(UserError, match=r"t.csv:5: image 'a.png' has the caption 'x' in .*t.csv:2"):
        read(file)
    assert read(file, duplicates="first") == {"a.png": "x", "b.png": "y"}
    assert read(file, duplicates="last") == {"a.png": "z", "b.png": "y"}


def test_all_texts_of_an_image(tmp_path):
    file = tmp_path / "t.csv"
    file.write_text("image,caption\na.png,x\nb.png,y\na.png,z\n")
    (pairs,) = captions.read(file, "", captions.Choices.of_stage_zero(duplicates="all"))
    assert [(t.target, t.texts) for t in pairs.triplets] == [
        ("a.png", ("x",)), ("b.png", ("y",)), ("a.png", ("z",)),
    ]  # fmt: skip


EVERYTHING = (
    '{"image": "a.png", "caption": "x"}\n{"image": "a.png", "caption": "y"}\n{"caption": "z"}\n'
    '{"image": "b.png", "caption": ""}\n{"image": "q.png", "caption": "w"}\n[1]\n'
    '{"image": "b.png", "caption": 7}\n'
)


@pytest.mark.parametrize(
    ("read", "keys"),
    [
        (of_positives, ("caption.unknown=ignore", "caption.duplicates", "caption.empty=drop")),
        (of_stage_zero, ("data.on_missing=drop", "data.caption_duplicates", "data.caption_empty=")),
    ],
)
def test_all_is_listed_at_once(tmp_path, read, keys):
    (tmp_path / "t.jsonl").write_text(EVERYTHING)
    for name in ("a.png", "b.png"):
        runs.write_image(tmp_path / name, (1, 2, 3))
    with pytest.raises(UserError) as raised:
        read(tmp_path / "t.jsonl", empty="error")
    said = str(raised.value)
    assert said.startswith("to decide:\n") and said.count("\n") == 6
    for line in ("t.jsonl:3 names no image", "t.jsonl:6: expected an object", "t.jsonl:7: 7 is no",
                 "t.jsonl:5: image 'q.png'", "t.jsonl:2: image 'a.png' has", "t.jsonl:4 has no te",
                 *keys):  # fmt: skip
        assert line in said, line


def test_one_name_is_one_image(tmp_path):
    (tmp_path / "t.jsonl").write_text(
        '{"image_id": 1, "image": "a.png", "caption": "x"}\n'
        '{"image_id": 1, "image": "b.png", "caption": "x"}\n'
    )
    with pytest.raises(UserError, match=r"t.jsonl:2: image '1' is .*b.png, and .*a.png before"):
        captions.read(tmp_path / "t.jsonl")


BAD = {
    "two columns": ("t.csv", "image,caption,caption\na,b,c\n", r"two columns 'caption'; rename"),
    "two keys": ("t.jsonl", '{"image": "a.png", "Text": "x", "text": "y"}', r"'Text' twice, writ"),
    "header": ("t.csv", 'image,"cap\n', r"t.csv:1 is no line of column names"),
    "no text": ("t.csv", "image,words\na.png,x\n", r"none of 1 records has a text.*text_field"),
    "latin-1": (
        "t.csv",
        b"image,caption\na.png,caf\xe9\n",
        r"t.csv:2: '\\udce9' .*0xe9 is not UTF",
    ),
    "latin-1 header": ("t.csv", b"image,l\xe9gende\na.png,x\n", r"t.csv:1: .* save the file as UT"),
    "escape": ("t.csv", "image,caption\na.png,\x1b[31mred\n", r"t.csv:2: '\\x1b' is a control ch"),
    "NUL": ("t.jsonl", '{"image": "a.png", "caption": "x\\u0000"}', r"t.jsonl:1: '\\x00' is a con"),
    "name": ("t.jsonl", '{"image": "a\\n.png", "caption": "x"}', r"'\\n' is no part of a name"),
    "bad UTF-16": ("t.csv", b"\xff\xfea\0,\0b\0\n\0\x00\xd8", r"t.csv is not UTF-16 text after li"),
    "UTF-32": ("t.csv", "image,caption\na,b\n".encode("utf-32"), r"is UTF-32 text; save it as UTF"),
    "no mark": ("t.csv", "image,caption\n".encode("utf-16-le"), r"without a byte order mark"),
}


@pytest.mark.parametrize("read", [of_positives, of_stage_zero])
@pytest.mark.parametrize("name", BAD)
def test_bad_files(tmp_path, name, read):
    file, content, message = BAD[name]
    (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        read(tmp_path / file)


@pytest.mark.parametrize("column", ["image_id", "name", "image"])
def test_the_address_an_image_came_from_is_no_name_of_a_file(tmp_path, column):
    for number in (12, 13):
        runs.write_image(tmp_path / f"{number}.png", (1, 2, number), seed=number)
    rows = [f"{number},https://x.org/{number}.jpg,text {number}" for number in (12, 13)]
    (tmp_path / "t.csv").write_text("\n".join([f"{column},url,caption", *rows]))
    (one,) = captions.read(tmp_path / "t.csv")
    assert one.paths == {f"{n}.png": str(tmp_path / f"{n}.png") for n in (12, 13)}
    # Images that are known by their addresses are still found by them.
    known = captions.collect(
        [tmp_path / "t.csv"], captions.Choices(), ["12", "https://x.org/13.jpg"]
    )
    assert {name: c.texts for name, c in known.items()} == {
        "12": ("text 12",), "https://x.org/13.jpg": ("text 13",)
    }  # fmt: skip
    (tmp_path / "t.csv").write_text("url,caption\nhttps://x.org/12.jpg,text")
    with pytest.raises(UserError, match="is an address on the network"):
        captions.read(tmp_path / "t.csv")
