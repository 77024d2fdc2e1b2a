# SPDX-License-Identifier: Apache-2.0
"""Which JSON is read, and how what is refused is named, by every reader of annotation files."""

import gzip
import json

import pytest

from cir_jax.data import annotations, json_files
from cir_jax.datasets.importing import streams
from cir_jax.errors import UserError
from tests.datasets.importer_samples import shard

REFUSED = {
    "a key twice": ('{"a": 1, "b": 2, "a": 3}', r"an object has the key 'a' twice"),
    "a key twice below": ('{"a": [{"b": 1, "b": 1}]}', r"an object has the key 'b' twice"),
    "NaN": ('{"a": NaN}', r"NaN is no number of JSON"),
    "Infinity": ('{"a": [Infinity]}', r"Infinity is no number of JSON"),
    "-Infinity": ('{"a": -Infinity}', r"-Infinity is no number of JSON"),
    "too large": ('{"a": 1e999}', r"1e999 is beyond the largest number, 1.8e308"),
    "digits": ('{"a": ' + "9" * 5000 + "}", r"limit \(4300 digits\)"),
    "lists": ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", r"nested too deeply"),
    "objects": ('{"a":' * 100_000 + "1" + "}" * 100_000, r"nested too deeply"),
    "half a character": ('{"a": "x\\ud83d y"}', r"'\\ud83d' is no character"),
    "half a key": ('{"\\uDE00": 1}', r"'\\ude00' is no character"),
    "in the wrong order": ('{"a": "\\ude00\\ud83d"}', r"'\\ude00' is no character"),
}
KINDS = pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED)


@KINDS
def test_refused(text, message):
    with pytest.raises(ValueError, match=message) as raised:
        json_files.loads(text)
    assert not isinstance(raised.value, json.JSONDecodeError)


@KINDS
def test_lists_name_the_file_and_the_record(tmp_path, text, message):
    file = tmp_path / "a.json"
    file.write_text(f'[{{"a": [1]}},\n {{"b": {{}}}}, {text}, {{"a": NaN}}]')
    with pytest.raises(UserError, match=rf"a.json, record 2: .*{message}.*; correct that or fetch"):
        annotations.read_json(file)
    file.write_text(text)
    with pytest.raises(UserError, match=rf"a.json: .*{message}.*; correct that or fetch"):
        annotations.read_json(file, dict)


@KINDS
def test_lines_name_the_file_and_the_line(tmp_path, text, message):
    file = tmp_path / "a.jsonl"
    file.write_text(f'{{"a": 1}}\n\n{text}\n{{"a": 2}}\n')
    records = annotations.read_lines(file)
    assert next(records) == (f"{file}:1", {"a": 1})
    with pytest.raises(UserError, match=rf"a.jsonl:3: .*{message}.*; correct that line"):
        next(records)


@KINDS
@pytest.mark.parametrize("packed", [False, True])
def test_importers_name_the_record_and_read_on(tmp_path, text, message, packed):
    good = {"a": 1}
    for name, content, places in (
        ("a.json", f'[{{"a": 1}}, {text}, {{"a": 1}}]', (1, 2, 3)),
        ("a.jsonl", f'{{"a": 1}}\n{text}\n{{"a": 1}}\n', (1, 2, 3)),
        ("b.jsonl", f'{{"a": 1}}\n{{"a": 1}}\n{text}', (1, 3, 2)),  # no line end: not cut even so
    ):
        file = tmp_path / name
        file.write_bytes(gzip.compress(content.encode()) if packed else content.encode())
        found = dict(streams.records(file))
        first, bad, last = (found[f"{file}:{n}"] for n in places)
        assert first == last == good and len(found) == 3
        with pytest.raises(UserError, match=message):
            raise UserError(bad)


def test_cut_behind_something_that_is_refused(tmp_path):
    """What is refused before the end that is missing does not hide the cut."""
    for name in ("a.jsonl", "a.json"):
        start = '{"a": 1}\n' if name == "a.jsonl" else '[{"a": 1}, '
        (tmp_path / name).write_text(start + '{"a": [{"b": 1, "b": 1}], "c')
        with pytest.raises(UserError, match=rf"{name}:2 ends too early: the file is cut"):
            list(streams.records(tmp_path / name))


def test_shards_of_tar(tmp_path):
    bad = b'{"caption": "a", "caption": "b"}'
    file = shard(tmp_path / "a.tar", {"1.jpg": b"x", "1.json": bad, "2.json": b'{"a": 1.0}'})
    assert [r["json"] for _, r in streams.records(file)] == [None, {"a": 1.0}]


@pytest.mark.parametrize(
    "text",
    ["12345678901234567890123", "-0", "0.1", "1e22", "-1.5E-9", "5e-324", "1.7976931348623157e308"],
)  # fmt: skip
def test_numbers_stay_numbers(tmp_path, text):
    """Integers are exact at any size; other numbers are the nearest float, and of no other type."""
    want = float(text) if set(text) & set(".eE") else int(text)
    (tmp_path / "a.json").write_text(f'[{{"n": {text}}}]')
    (tmp_path / "a.jsonl").write_text(f'{{"n": {text}}}\n')
    (whole,) = annotations.read_json(tmp_path / "a.json")
    ((_, line),) = annotations.read_lines(tmp_path / "a.jsonl")
    ((_, record),) = streams.records(tmp_path / "a.json")
    for found in (whole["n"], line["n"], record["n"]):
        assert found == want and type(found) is type(want)
        assert json.loads(json.dumps(found)) == want


def test_what_is_read():
    """Pairs of surrogates are characters, an escaped backslash is no escape, spaces are allowed."""
    assert json_files.loads(' ["\\ud83d\\ude00", "\\\\ud83d", "\\ud7ff\\ue000é"]\r\n\t') == [
        "\U0001f600", "\\ud83d", "\ud7ff\ue000é",
    ]  # fmt: skip
    assert json_files.loads('"\\ud83d\udcff"', lone_surrogates=True) == "\ud83d\udcff"
    assert json_files.decode('[1, {"a": 2}]x', 4) == ({"a": 2}, 12)
    for malformed, at in (("", 0), ("[1] 2", 4), ('{"a" 1}', 5), ("\xa01", 0)):
        with pytest.raises(json.JSONDecodeError) as raised:
            json_files.loads(malformed)
        assert raised.value.pos == at
