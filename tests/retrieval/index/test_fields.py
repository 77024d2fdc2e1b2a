# SPDX-License-Identifier: Apache-2.0
"""Tables of titles become fields: types, names, duplicates, changes without encoding anew."""

import datetime
import json

import pyarrow as pa
import pytest
from pyarrow import parquet

from cir_jax.errors import UserError
from cir_jax.retrieval.index import fields

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("values", "kind", "kept"),
    [
        (["1", "2", None], "int64", [1, 2, None]),
        (["1", "2.5"], "double", [1.0, 2.5]),
        (["-0.5", "1e3", "+7"], "double", [-0.5, 1000.0, 7.0]),
        (["007", "8"], "string", ["007", "8"]),
        (["1,5", "2"], "string", ["1,5", "2"]),
        (["1e999", "2"], "string", ["1e999", "2"]),
        ([".", "2"], "string", [".", "2"]),
        (["True", "false", "TRUE"], "bool", [True, False, True]),
        ([True, False, None], "bool", [True, False, None]),
        ([True, 1], "string", ["true", "1"]),
        ([1, "red"], "string", ["1", "red"]),
        ([1, 2.5], "double", [1.0, 2.5]),
        ([2**70, 1], "double", [float(2**70), 1.0]),
        ([10**400, 1], "string", ["1" + "0" * 400, "1"]),
        (["9223372036854775808"], "double", [float(2**63)]),
        (["a\ud800"], "string", ["a?"]),
    ],
)
def test_a_column_is_of_one_type(values, kind, kept):
    found = fields.typed(values)
    assert (str(found.type), found.to_pylist()) == (kind, kept)


def test_what_is_no_value():
    day = datetime.date(2026, 1, 2)
    values = ["  x ", " ", "", None, NAN, INF, [], {}, ["a", 1], day, False, 0]
    want = ["x", None, None, None, None, None, None, None, '["a", 1]', "2026-01-02", False, 0]
    assert list(map(fields.cleaned, values)) == want


def write(photos, name, text):
    path = photos.photos.parent / name
    path.write_text(text)
    return path


def test_columns_of_a_csv_become_fields(made, photos, capsys):
    table = write(
        photos, "titles.csv",
        "image,name,price,sale,code,empty\n"
        "s0/00.png,Red shoe,12.50,true,007,\n"
        "./S1/01.PNG,Blue hat,3,false,8,\n"
        "s2/02,,,,,\n"
        "gone.png,Gone,1,true,1,\n",
    )  # fmt: skip
    photos.update(titles=table)
    index = photos.open()
    assert index.fields == (
        {"name": "name_", "type": "text"}, {"name": "price", "type": "number"},
        {"name": "sale", "type": "boolean"}, {"name": "code", "type": "text"},
    )  # fmt: skip
    catalogue = index.catalogue
    first = {"name_": "Red shoe", "price": 12.5, "sale": True, "code": "007"}
    assert catalogue.known_of(catalogue.number_of("s0/00.png")) == first
    assert catalogue.known_of(catalogue.number_of("s1/01.png"))["price"] == 3.0
    assert catalogue.known_of(catalogue.number_of("s2/02.png")) == {}
    assert catalogue.table.column_names == ["name", "name_", "price", "sale", "code"]
    said = capsys.readouterr().out
    assert "1 records are of images that are not there" in said and "gone.png" in said
    # Another price is no reason to encode anything.
    table.write_text("image,price,stock\ns0/00.png,99,4\n")
    model = made.Model()
    report = photos.update(model)
    assert not model.opened and report.generation == 2
    assert photos.open().catalogue.known_of(0) == {"price": 99, "stock": 4}
    photos.update(model, titles=())
    assert not photos.open().fields and not model.opened


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "tsv"])
def test_tables_of_every_kind(photos, kind):
    records = [{"file": "s0/00.png", "price": 5, "tags": ["a"]}, {"file": "s1/01.png", "price": 6}]
    path = photos.photos.parent / f"table.{kind}"
    if kind == "parquet":
        parquet.write_table(pa.Table.from_pylist(records), path)
    elif kind == "tsv":
        path.write_text('file\tprice\ttags\ns0/00.png\t5\t["a"]\ns1/01.png\t6\t\n')
    else:
        lines = "\n".join(map(json.dumps, records))
        path.write_text(json.dumps(records) if kind == "json" else lines)
    photos.update(titles=[path])
    assert photos.open().catalogue.known_of(0) == {"price": 5, "tags": '["a"]'}


def test_columns_called_as_ours(photos):
    table = write(photos, "titles.csv", "image,name,name_\ns0/00.png,Red shoe,red\n")
    photos.update(titles=table)
    assert photos.open().catalogue.known_of(0) == {"name_": "Red shoe", "name__": "red"}


def test_records_that_differ(photos):
    table = write(photos, "t.csv", "image,a,b\ns0/00.png,1,\ns0/00.png,,x\ns0/00.png,2,x\n")
    with pytest.raises(UserError, match=r"t.csv:4: image 's0/00.png' has a '1' in .*t.csv:2"):
        photos.update(titles=[table])
    for choice, want in (("first", 1), ("last", 2)):
        photos.update(titles=[table], duplicates=choice)
        assert photos.open().catalogue.known_of(0) == {"a": want, "b": "x"}
    with pytest.raises(UserError, match=r"duplicates='lats' is unknown.*Did you mean 'last'"):
        photos.update(duplicates="lats")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,a\nnothing.png,1\n", "no record of .* is of an image that is there"),
        ("colour,x\nred,1\n", "none of the columns .* names the images"),
        ("image,a\n../../etc/passwd.png,1\n", "outside of"),
        ("image," + ",".join(f"c{i}" for i in range(300)) + "\ns0/00.png" + ",1" * 300, "256 col"),
    ],
)
def test_tables_that_cannot_be_used(photos, text, message):
    table = write(photos, "t.csv", text)
    with pytest.raises(UserError, match=message):
        photos.update(titles=[table])
    with pytest.raises(UserError, match=r"missing.csv is no file"):
        photos.update(titles=[photos.photos / "missing.csv"])


def test_a_table_alone_names_its_images(made, photos):
    table = photos.photos / "some.csv"
    table.write_text("image,title\ns1/01.png,one\ns0/00,zero\nlost.png,lost\ns1/../s1/01.png,one\n")
    report = photos.update(place=table)
    index = photos.open()
    assert index.catalogue.names.to_pylist() == ["s1/01.png", "s0/00.png"]
    assert index.catalogue.fields.to_pylist() == [{"title": "one"}, {"title": "zero"}]
    assert {name: one.reason for name, one in report.unreadable.items()} == {"lost.png": "missing"}
    assert index.path_of(0) == str(photos.photos / "s1/01.png")
    table.write_text("image,title\ns2/02.png,two\ns0/00,zero\n")
    model = made.Model()
    report = photos.update(model, place=table)
    assert (report.new, report.gone, sum(model.opened.values())) == (1, 1, 1)
    assert photos.open().catalogue.known_of(2) == {"title": "two"}


def test_queries_are_kept_by_name(made, photos, capsys):
    file = photos.photos.parent / "val.jsonl"
    lines = [
        {"reference": "s0/00", "text": "is blue", "target": "s1/01.png"},
        {"reference": "s0/03.png", "texts": ["a", "b"], "targets": ["s1/01.png", "lost.png"]},
        {"reference": "lost.png", "text": "c", "target": "s1/01.png"},
    ]
    file.write_text("\n".join(map(json.dumps, lines)))
    photos.update(queries=file)
    index = photos.open()
    number = index.catalogue.number_of
    assert index.queries == [
        {"reference": number("s0/00.png"), "text": "is blue", "targets": [number("s1/01.png")]},
        {"reference": number("s0/03.png"), "text": "a", "targets": [number("s1/01.png")]},
    ]
    assert "1 of 3 queries are about images that" in capsys.readouterr().out
    made.picture(photos.photos / "s1/01.png", 333)
    photos.update()
    assert photos.open().queries[0]["targets"] == [20]
    file.write_text('{"reference": "s0/00"}')
    with pytest.raises(UserError, match=r"val.jsonl:1"):
        photos.update()
    photos.update(queries="")
    assert photos.open().queries == []
