# SPDX-License-Identifier: Apache-2.0
"""Bad text files, made by hand: each reader says which file, which record, and what to do.

BAD is written where one record of a good file stood; FILES are whole files. Every combination of
one of them with one of READERS is an input of its own.
"""

import gzip
import json
import re

import pytest

from cir_jax.data import annotations, text_files
from cir_jax.datasets import generated
from cir_jax.datasets.importing import json_stream, streams
from cir_jax.datasets.readers import cirr, fashioniq, folder
from cir_jax.errors import UserError
from tests import runs

GOOD = '{"reference": "a", "target": "b", "text": "in red"}'
# A record in place of a good one -> what is said of it.
BAD = {
    "half a pair": (GOOD.replace("red", "\\ud83d"), r"is no character: half of a surrogate pair"),
    "half a pair in a name": (GOOD.replace('"a"', '"\\udc00"'), r"is no character"),
    "NUL": (GOOD.replace("red", "re\\u0000d"), r"'\\x00' is a control character"),
    "escape": (GOOD.replace("red", "\\u001b[31mred"), r"'\\x1b' is a control character"),
    "backspace": (GOOD.replace("red", "\\b\\b"), r"'\\x08' is a control character"),
    "delete": (GOOD.replace("red", "\x7f"), r"'\\x7f' is a control character"),
    "raw escape": (GOOD.replace("red", "\x1b[2J"), r"is no JSON.*Invalid control character"),
    "raw tab": (GOOD.replace("red", "a\tb"), r"is no JSON.*Invalid control character"),
    "control in a key": ('{"\\u0007": 1}', r"'\\x07' is a control character"),
    "lists": (f'{{"a": {"[" * 10_000}{"]" * 10_000}}}', r"nested too deeply to be read"),
    "objects": ('{"a":' * 10_000 + "1" + "}" * 10_000, r"nested too deeply to be read"),
    "digits": ('{"a": ' + "7" * 5000 + "}", r"4300 digits"),
    "NaN": ('{"a": NaN}', r"NaN is no number of JSON"),
    "Infinity": ('{"a": -Infinity}', r"-Infinity is no number of JSON"),
    "too large": ('{"a": 1e400}', r"beyond the largest number"),
    "a key twice": ('{"target": "a", "target": "b"}', r"has the key 'target' twice"),
    "no comma": ('{"a": 1 "b": 2}', r"is no JSON"),
    "single quotes": ("{'a': 1}", r"is no JSON"),
    "Python": ('{"a": None}', r"is no JSON"),
    "a comment": ('{"a": 1} // red', r"is no JSON"),
    "a number": ("7", r"a? ?int|is a int"),
    "a text": ('"x"', r"is a str"),
    "nothing": ("null", r"is a NoneType"),
    "a list": ("[1]", r"is a list|is a int"),
}  # fmt: skip


def write_lines(root, record):
    """The second of three lines of train.jsonl is `record`."""
    (root / "train.jsonl").write_text(f"{GOOD}\n{record}\n{GOOD}\n", "utf-8")
    return lambda: folder.read(root), "train.jsonl:2"


def write_generated(root, record):
    (root / "g.jsonl").write_text(f"{GOOD}\n\n{record}\n", "utf-8")
    return lambda: generated.read(["g.jsonl"], {}, root, images=root), "g.jsonl:3"


def write_list(root, record):
    good = '{"candidate": "a", "target": "b", "captions": ["x", "y"]}'
    file = root / "captions/cap.dress.train.json"
    file.parent.mkdir()
    file.write_text(f"[{good}, {record}]", "utf-8")
    runs.dump(root / "image_splits/split.dress.train.json", ["a", "b"])
    return lambda: fashioniq.read_category(root, "dress", "train"), "cap.dress.train.json"


def write_cirr(root, record):
    good = {"pairid": 1, "reference": "a", "target_hard": "b", "caption": "x",
            "img_set": {"members": ["a", "b", "c"]}}  # fmt: skip
    file = root / "cirr/captions/cap.rc2.train.json"
    file.parent.mkdir(parents=True)
    file.write_text(f"[{json.dumps(good)},\n {record}]", "utf-8")
    runs.dump(root / "cirr/image_splits/split.rc2.train.json", {"a": "./a.png", "b": "./b.png"})
    return lambda: cirr.read(root), "cap.rc2.train.json"


READERS = {"folder": write_lines, "generated": write_generated, "fashioniq": write_list,
           "cirr": write_cirr}  # fmt: skip


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", BAD)
def test_a_bad_record(tmp_path, kind, reader):
    record, message = BAD[kind]
    read, place = READERS[reader](tmp_path, record)
    with pytest.raises(UserError, match=message) as raised:
        read()
    said = str(raised.value)
    assert place in said and (place[-5:] != ".json" or re.search("record [12]", said))


# Bytes of a whole file -> what is said of it.
FILES = {
    "latin-1": (b"a\nb\ncaf\xe9.jpg\n", r"is not UTF-8 text after line 2; save it as UTF-8"),
    "windows-1252": (b"a\n\x93b\x94\n", r"is not UTF-8 text after line 1; save it as UTF-8"),
    "cut within a letter": (b"a\nb\n\xc3", r"is not UTF-8 text after line 2; save it as UTF-8"),
    "half a pair as bytes": (b"a\n\xed\xa0\xbd\n", r"is not UTF-8 text after line 1; save it"),
    "too long a form": (b"\xc0\xafetc\n", r"is not UTF-8 text after line 0; save it as UTF-8"),
    "behind a line of CR": (b"a\rb\r\xff\r", r"is not UTF-8 text after line 2; save it as UTF-8"),
    "behind CR LF": (b"a\r\nb\r\n\xff\r\n", r"is not UTF-8 text after line 2; save it as UTF-8"),
    "far behind": (b"a\r\n" * 40_000 + b"\xff", r"is not UTF-8 text after line 40000; save it"),
    "UTF-16 without mark": ("a\nb".encode("utf-16-le"), r"like UTF-16 without a byte order mark"),
    "UTF-16, big end": ("a\nb".encode("utf-16-be"), r"like UTF-16 without a byte order mark"),
    "UTF-16, odd": ("a\nb".encode("utf-16") + b"x", r"is not UTF-16 text after line 1; save it as"),
    "UTF-16, half a pair": (b"\xff\xfea\0\n\0\x00\xd8b\0", r"is not UTF-16 text after line 1"),
    "UTF-32": ("a".encode("utf-32"), r"is UTF-32 text; save it as UTF-8"),
    "UTF-32, big end": (b"\0\0\xfe\xff\0\0\0a", r"is UTF-32 text; save it as UTF-8"),
    "gzip": (gzip.compress(b"a\n"), r"is compressed by gzip, .*unpack it"),
}  # fmt: skip


@pytest.mark.parametrize("name", ["gallery.txt", "train.jsonl", "list.json"])
@pytest.mark.parametrize("kind", FILES)
def test_a_bad_file(tmp_path, kind, name):
    content, message = FILES[kind]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name} .*{message}|{message}"):
        if name == "gallery.txt":
            folder.gallery(tmp_path)
        elif name == "train.jsonl":
            for _, line in text_files.lines(tmp_path / name):
                assert line
        else:
            annotations.read_json(tmp_path / name)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a\x1b[2J.png", r"gallery.txt:2: .*'\\x1b' is a control character; rename the file"),
        ("a\0.png", r"gallery.txt:2: .*'\\x00' is a control character"),
        ("a\t.png", r"gallery.txt:2: .*'\\t' is no part of a name"),
        ("a\x7f.png", r"gallery.txt:2: .*'\\x7f' is a control character"),
    ],
)
def test_a_bad_name_in_a_gallery(tmp_path, line, message):
    (tmp_path / "gallery.txt").write_text(f"a\n{line}\n")
    with pytest.raises(UserError, match=message):
        folder.gallery(tmp_path)


def test_good_files_in_every_encoding(tmp_path):
    text = "é.png\nb.png\n\nc.png\n"
    for encoded in (
        text.encode(), text.encode("utf-8-sig"), text.encode("utf-16"), text.encode().rstrip(),
        b"\xfe\xff" + text.encode("utf-16-be"), text.replace("\n", "\r").encode(),
        text.replace("\n", "\r\n").encode("utf-16"),
    ):  # fmt: skip
        (tmp_path / "gallery.txt").write_bytes(encoded)
        assert folder.gallery(tmp_path)[0] == ["é.png", "b.png", "c.png"]


def test_a_list_given_as_lines_and_lines_given_as_a_list(tmp_path):
    records = [{"a": 1}, {"a": "é"}]
    (tmp_path / "l.jsonl").write_text(json.dumps(records, indent=1))
    assert [r for _, r in annotations.read_lines(tmp_path / "l.jsonl")] == records
    (tmp_path / "l.json").write_text("\n".join(map(json.dumps, records)))
    assert annotations.read_json(tmp_path / "l.json") == records
    (tmp_path / "l.jsonl").write_text('[{"a": 1}, {"a" 2}]')
    with pytest.raises(UserError, match=r"l.jsonl is no JSON: .*record 1"):
        list(annotations.read_lines(tmp_path / "l.jsonl"))
    (tmp_path / "l.json").write_text('{"a": 1}\n{"a" 2}')
    with pytest.raises(UserError, match=r"l.json:2 is no JSON"):
        annotations.read_json(tmp_path / "l.json")


def test_lines_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "LONGEST", 100)
    (tmp_path / "l.jsonl").write_text('{"a": 1}\n{"a": "' + "x" * 500)
    with pytest.raises(UserError, match=r"l.jsonl:2 has no end within 100 characters"):
        list(annotations.read_lines(tmp_path / "l.jsonl"))
    for name, start in (("l.jsonl", '{"a": 1}\n{"b": "'), ("l.csv", "a,b\nc,")):
        (tmp_path / name).write_text(start + "x" * 500)
        with pytest.raises(UserError, match=rf"{name}:2 has no end within 100 characters"):
            list(streams.records(tmp_path / name))
    monkeypatch.setattr(text_files, "LARGEST", 99)
    with pytest.raises(UserError, match=r"l.jsonl has over .*, and is read whole"):
        text_files.read(tmp_path / "l.jsonl")
    assert json_stream.LONGEST > 100


def test_what_is_no_fault():
    """Tabs and line ends are spaces between words; letters of Windows occur in published texts."""
    for text in ("", "a\tb\r\n", "it\x92s", "\U0001f468\u200d\U0001f469", "\u202eabc", "\ufffd"):
        assert text_files.fault(text) == ""


@pytest.mark.parametrize("text", ["a\x00", "\x1b[31m", "\ud800", "\udcff", "\x7f", "\x0b", "\x08"])
def test_texts_of_any_reader(text):
    with pytest.raises(UserError, match=r"x:1: .* is (no|a control) character.*; correct the text"):
        annotations.not_empty(text, "x:1")
    with pytest.raises(UserError, match=r"x:1: image .*; rename the file"):
        annotations.image_name({"a": text}, "a", "x:1")
    with pytest.raises(UserError, match=r"x:1: image .*; rename the file"):
        annotations.image_names({"a": ["b", text]}, "a", "x:1")


@pytest.mark.parametrize("name", ["gallery.txt", "val.jsonl"])
def test_what_is_no_file_is_not_taken_for_absent(tmp_path, name):
    """A link to nothing and a folder would otherwise shrink the gallery in silence."""
    line = '{"reference": "a.jpg", "target": "b.jpg", "text": "c"}\n'
    for file in ("train.jsonl", "val.jsonl"):
        (tmp_path / file).write_text(line)
    (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / name).symlink_to("nowhere")
    with pytest.raises(UserError, match=f"{name} is a link to nothing; put the file there"):
        folder.examine(tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=f"{name} is no file; put the file there"):
        folder.examine(tmp_path)
    with pytest.raises(UserError, match="nope is no folder"):
        folder.examine(tmp_path / "nope")


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no file .*gone/val.jsonl: .*gone is no folder; correct"):
        list(annotations.read_lines(tmp_path / "gone" / "val.jsonl"))
    with pytest.raises(UserError, match=r"no file .*val.jsonl; write one JSON object per line"):
        list(annotations.read_lines(tmp_path / "val.jsonl"))
