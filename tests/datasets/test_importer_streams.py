# SPDX-License-Identifier: Apache-2.0
"""Files that importers read: parsing, cuts, and how far they are read."""

import gzip
import io
import json
import random

import pyarrow
import pyarrow.parquet
import pytest

from cir_jax.datasets.importing import json_stream, run, streams
from cir_jax.errors import UserError
from tests.datasets.importer_samples import LASCO, MEGAPAIRS, shard


def test_a_malformed_record_of_a_list_does_not_end_it(tmp_path, monkeypatch):
    good = json.dumps(LASCO)
    text = f'[{good}, {{"qid": 1, }}, 17, "a, ]", [{{}}], {{"a": "\\"]}}" x}}, null, {good}\n]\n'
    (tmp_path / "lasco_train.json").write_text(text)
    for size in (1, 7, 1 << 20):
        monkeypatch.setattr(json_stream, "CHUNK", size)
        found = list(streams.records(tmp_path / "lasco_train.json"))
        assert [type(r) for _, r in found] == [dict, str, str, str, str, str, str, dict]
        assert found[0][1] == found[7][1] == LASCO
        assert found[7][0] == f"{tmp_path / 'lasco_train.json'}:8"


def test_lists_are_parsed_as_the_standard_parser_does(tmp_path, monkeypatch):
    rng = random.Random(0)
    characters = '[]{},:"\\ \n\u2028é✓x'

    def value(depth):
        kind = rng.randrange(6 if depth else 4)
        if kind < 2:
            return "".join(rng.choices(characters, k=rng.randrange(9)))
        if kind < 4:
            return rng.choice([None, True, -1.5e9, 12])
        many = range(rng.randrange(4))
        return [value(depth - 1) for _ in many] if kind == 4 else obj(depth - 1)

    def obj(depth):
        return {value(0) if i else str(i): value(depth) for i in range(rng.randrange(4))}

    for indent, ascii_only in ((None, True), (1, False)):
        # Keys that are no strings become strings, so what was written is read back first.
        records = json.loads(json.dumps([obj(3) for _ in range(60)]))
        file = tmp_path / "list.json"
        file.write_text(json.dumps(records, indent=indent, ensure_ascii=ascii_only), "utf-8")
        for size in (1, 5, 64, 1 << 20):
            monkeypatch.setattr(json_stream, "CHUNK", size)
            assert [r for _, r in streams.records(file)] == records


CUT = {
    "list.json": (json.dumps([LASCO] * 5).encode(), r"list.json:\d.* cut"),
    "list.json.gz": (gzip.compress(json.dumps([LASCO] * 50).encode(), 0), r"cut or damaged after"),
    "lines.jsonl": ((json.dumps(LASCO) + "\n").encode() * 5, r"lines.jsonl:\d ends too early"),
    "table.csv": (b"qid,query-image\n" + b'1,"a\nb"\n' * 9, r"table.csv:\d+ ends too early"),
}


@pytest.mark.parametrize("name", CUT)
def test_a_cut_file_is_no_smaller_set(tmp_path, name):
    content, message = CUT[name]
    for size in (len(content) // 2, len(content) - 3):
        (tmp_path / name).write_bytes(content[:size])
        with pytest.raises(UserError, match=message):
            run.run("lasco", [tmp_path / name], tmp_path / "out.jsonl")
        assert [p.name for p in tmp_path.iterdir()] == [name]


def test_cut_shards(tmp_path):
    whole = shard(tmp_path / "a.tar", {f"{i}.txt": b"x" * 600 for i in range(9)}).read_bytes()
    for size in (3000, 5000, 3 * 1536, 9 * 1536):  # in a member, in a header, between, no end
        (tmp_path / "a.tar").write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"a.tar is cut or damaged after .*a.tar:\d"):
            list(streams.records(tmp_path / "a.tar"))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([MEGAPAIRS]), tmp_path / "a.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"a.parquet is cut or damaged"):
        list(streams.records(tmp_path / "a.parquet"))


def test_rows_of_another_width_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text('pth1,pth2,edit\na,b,c\na,b\n\n"a"b,c,d\na,c,d')
    found = [record for _, record in streams.records(tmp_path / "a.csv")]
    assert found[0] == {"pth1": "a", "pth2": "b", "edit": "c"}
    assert found[1] == "2 columns, expected 3" and found[2].startswith("no CSV")
    assert found[3]["pth2"] == "c" and len(found) == 4


def test_a_record_without_end_is_no_reason_to_read_on(tmp_path, monkeypatch):
    monkeypatch.setattr(json_stream, "LONGEST", 4000)
    monkeypatch.setattr(json_stream, "CHUNK", 1000)
    (tmp_path / "a.json").write_text('[{"a": 1}, {"b": "' + "[" * 20000)
    with pytest.raises(UserError, match=r"a.json:2 has no end within 4000 characters"):
        list(streams.records(tmp_path / "a.json"))


@pytest.mark.parametrize("packed", [False, True])
def test_files_are_read_as_far_as_records_are_asked_for(tmp_path, monkeypatch, packed):
    monkeypatch.setattr(json_stream, "CHUNK", 4096)
    content = json.dumps([LASCO] * 20_000).encode()
    (tmp_path / "a.json").write_bytes(gzip.compress(content, 0) if packed else content)
    read = 0

    class Counted(io.BufferedReader):
        def read1(self, size=-1):
            nonlocal read
            part = super().read1(size)
            read += len(part)
            return part

    binary = streams._binary
    monkeypatch.setattr(streams, "_binary", lambda path: Counted(binary(path)))
    for number, _ in enumerate(streams.records(tmp_path / "a.json"), start=1):
        if number % 5000 == 0:
            assert read <= number * len(content) / 20_000 + 40_000
    assert number == 20_000 and read >= len(content)
