# SPDX-License-Identifier: Apache-2.0
"""What a store of another program is given, and when; the golden vectors; the command."""

import json
import os

import numpy as np
import pytest

import cir_jax
from cir_jax import main
from cir_jax.errors import UserError
from cir_jax.retrieval import golden, store
from cir_jax.retrieval.index import records
from cir_jax.retrieval.index.opened import Index
from tests import runs
from tests.convert import published

STORE = '''
"""Keeps what it is given, and which generation was in use then."""
from pathlib import Path

calls = []

def place(text):
    return f"absolute-{text}"

def opened(index):
    return ("opened", index.store_place)

def writer(folder, place, rows_per_image, embedding):
    calls.append(("writer", place, rows_per_image, embedding))
    return Writer(Path(folder))

class Writer:
    def __init__(self, folder):
        self.folder = folder

    def _call(self, *what):
        current = self.folder / "current"
        calls.append((*what, current.read_text().strip() if current.exists() else ""))

    def add(self, ids, rows, table):
        assert len(ids) == len(rows) == len(table)
        self._call("add", list(ids), rows, table.to_pylist())

    def remove(self, ids):
        self._call("remove", list(ids))

    def commit(self):
        self._call("commit")

    def close(self):
        calls.append(("close",))
'''


@pytest.fixture
def elsewhere(tmp_path):
    path = tmp_path / "my_store.py"
    path.write_text(STORE)
    return str(path)


def test_a_store_elsewhere_has_the_rows_before_a_generation_is_named(made, photos, elsewhere):
    table = photos.photos.parent / "t.csv"
    table.write_text("image,price\ns0/00.png,3\ns1/01.png,4\n")
    for path in photos.photos.rglob("*.png"):
        os.utime(path, ns=(10**18, 10**18))
    calls = store.load(elsewhere).calls
    photos.update(titles=[table], store=f"{elsewhere}:there", dtype="float16")
    index = photos.open()
    assert index.store == ("opened", "absolute-there")
    head, add, filled, removed, *rest = calls
    assert head == ("writer", "absolute-there", 1, 6) and filled == ("commit", "")
    assert removed == ("remove", [], "1") and rest == [("commit", "1"), ("close",)]
    assert add[1] == list(range(20)) and add[-1] == ""
    np.testing.assert_array_equal(add[2], index.rows(range(20)))  # as they are kept
    assert add[3][:2] == [
        {"name": "s0/00.png", "price": 3}, {"name": "s0/03.png", "price": None},
    ]  # fmt: skip
    calls.clear()
    table.write_text("image,price\ns0/00.png,3\ns1/01.png,5\n")
    made.picture(photos.photos / "s2/02.png", 600)
    os.utime(photos.photos / "s2/02.png", ns=(10**18 + 1, 10**18 + 1))
    (photos.photos / "s0/03.png").unlink()
    gone = [index.catalogue.number_of(name) for name in ("s0/03.png", "s2/02.png")]
    photos.update()
    [add] = [call for call in calls if call[0] == "add"]
    assert add[1] == [index.catalogue.number_of("s1/01.png"), 20]
    assert ("remove", gone, "2") in calls
    calls.clear()
    photos.update()
    assert [call[0] for call in calls] == ["writer", "commit", "close"]
    photos.update(store="embedded")
    assert len(photos.open().store) == 19


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("milvs:x", r"milvs.* there are: .*embedded"),
        ("embedded:x", "rows lie in the index; leave 'x' out"),
        ("STORE", "does not say where; give .*my_store.py:PLACE"),
    ],
)
def test_stores_that_cannot_be(photos, elsewhere, asked, message):
    with pytest.raises(UserError, match=message):
        photos.update(store=asked.replace("STORE", elsewhere))
    assert not records.exists(photos.folder)


def test_a_model_that_gives_other_vectors_is_refused(made, photos):
    """Such as by another decoder: neither parameters nor settings tell."""
    photos.update()
    assert golden.kept_with(photos.folder) is not None
    same = made.Model().identity()
    other = made.Model(pad="square")
    other.identity = lambda: same
    photos.add("a.png")
    with pytest.raises(UserError, match=r"vectors that are kept with the index in .*pixels"):
        photos.update(other)
    with pytest.raises(UserError, match="does not give the vectors"):
        _ = Index(photos.folder, lambda record: other).model
    assert Index(photos.folder, lambda record: made.Model()).model
    golden.beside(photos.folder).unlink()  # as before there were any
    assert Index(photos.folder, lambda record: other).model is other
    photos.update()
    assert golden.kept_with(photos.folder) is not None


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return str(published.write("spn", tmp_path_factory.mktemp("weights"), published.state()))


def test_the_command(weights, tmp_path, capsys):
    photos, index = tmp_path / "photos", str(tmp_path / "index")
    for number in range(5):
        runs.write_image(photos / f"{number}.png", runs.COLORS["red"], number)
    (photos / "page.jpg").write_text("<html>")
    (photos / "phone.heic").touch()
    command = ["index", str(photos), "--model", weights, "--out", index, "--batch", "8"]
    assert main.main(command) == 0
    said = capsys.readouterr().out
    assert f"{index}: 5 images (5 new); " in said and "images/s" in said
    assert f"cannot be read: 1 (1 no image), all in {index}/unreadable.jsonl" in said
    assert "page.jpg (no image: an HTML page)" in said
    assert f"files in {photos} that are not read: 1 .heic; convert them to .png" in said
    opened = cir_jax.open_index(index)
    rows = opened.model.encode_images([opened.path_of(id) for id in range(5)])
    np.testing.assert_allclose(opened.rows(range(5)), rows, atol=1e-5)
    assert main.main(["index", "--out", index]) == 0
    assert "5 images (nothing has changed)" in capsys.readouterr().out
    (tmp_path / "t.csv").write_text("image,price\n0.png,3\n")
    assert main.main(["index", "--out", index, "--titles", str(tmp_path / "t.csv")]) == 0
    assert "5 images (no image has changed)" in capsys.readouterr().out
    for flags, message in (
        (["--model", weights, "--pad", "none"], "of another model: how pictures become inputs"),
        (["--export", str(tmp_path / "e"), "--model", weights], "leave folder and model out"),
        (["--export", "e", "--titles", "x", "--dtype", "int8"], "leave --titles, --dtype out"),
        (["--root", "x"], "belong to --benchmark"),
        (["--batch", "0"], "batch=0 is below 1"),
        ([str(photos), "--benchmark", "cirr"], "brings its own images"),
    ):
        assert main.main(["index", "--out", index, *flags]) == 2
        assert message in capsys.readouterr().err
    assert main.main(["index", "--out", str(tmp_path / "no")]) == 2
    assert "is no index yet; name its model" in capsys.readouterr().err


def test_images_and_queries_of_a_benchmark(weights, tmp_path, capsys):
    runs.write_cirr(tmp_path / "cirr", images=9, triplets=4)
    out = str(tmp_path / "index")
    command = ["index", "--benchmark", "cirr", "--root", str(tmp_path / "cirr"), "--out", out]
    assert main.main([*command, "--model", weights, "--batch", "8"]) == 0
    index = cir_jax.open_index(out)
    annotations = json.loads((tmp_path / "cirr/cirr/captions/cap.rc2.val.json").read_text())
    name = index.catalogue.name
    assert [
        (name(q["reference"]), q["text"], [*map(name, q["targets"])]) for q in index.queries
    ] == [(f"{x['reference']}.png", x["caption"], [f"{x['target_hard']}.png"]) for x in annotations]
    assert len(index) == 9 and index.model.loading == "released"  # as published runs read it
    assert main.main(["index", "--out", out]) == 0
    assert len(cir_jax.open_index(out).queries) == 4
    assert main.main([*command, "--queries", "x.jsonl"]) == 2
    assert "a benchmark brings its own; leave it out" in capsys.readouterr().err
    assert main.main(["index", str(tmp_path / "cirr" / "dev"), "--out", out]) == 0
    assert cir_jax.open_index(out).queries == []
