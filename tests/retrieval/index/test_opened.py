# SPDX-License-Identifier: Apache-2.0
"""An index is opened: what is checked, what damage says, copies, exports, other programs."""

import json
import os
import stat

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from cir_jax.errors import UserError
from cir_jax.retrieval.index import making, records, writing
from cir_jax.retrieval.index.catalogue import SCHEMA, Catalogue
from cir_jax.retrieval.index.opened import Index
from cir_jax.retrieval.search.asking import Terms


def flip(path, at):
    with path.open("r+b") as file:
        file.seek(at, 2 if at < 0 else 0)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("part", ["rows.npy", "rows.sums", "header", "gone", "scales.npy"])
def test_damaged_rows_are_named_and_made_again(made, photos, capsys, part, dtype):
    if part == "scales.npy" and dtype != "int8":
        return
    photos.update(dtype=dtype)
    before = made.content(photos.open())
    folder = photos.folder / "segments" / "1"
    if part == "gone":
        (folder / "rows.npy").unlink()
    elif part == "header":
        flip(folder / "rows.npy", 20)
    else:
        flip(folder / part, -3)
    with pytest.raises(UserError, match=r"damaged: rows of 20 of 20 .*s0/00.png.*encodes these"):
        photos.open()
    if part == "rows.npy":
        assert len(photos.open(check=False)) == 20
    model = made.Model()
    report = photos.update(model)
    assert "encoded anew" in capsys.readouterr().out and report.changed == 20
    after = made.content(photos.open())
    assert after[1] == before[1] and [x["name"] for x in after[0]] == [x["name"] for x in before[0]]


def test_only_rows_of_a_damaged_block_are_made_again(made, photos, monkeypatch):
    monkeypatch.setattr("cir_jax.bank.sums._BLOCK", 24 * 4)
    photos.update()
    flip(photos.folder / "segments/1/rows.npy", -24 * 4 * 2 - 3)  # the last block but two
    with pytest.raises(UserError, match=r"rows of 4 of 20 images"):
        photos.open()
    model = made.Model()
    photos.update(model)
    assert sum(model.opened.values()) == 4 and len(photos.open()) == 20


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("catalogue-1.parquet", "catalogue-1.parquet is not what was written"),
        ("generations/1.json", "1.json is not what was written"),
        ("index.json", "index.json is not what was written"),
    ],
)
def test_damaged_records(photos, name, message):
    photos.update()
    flip(photos.folder / name, -30)
    with pytest.raises(UserError, match=rf"is damaged: {message}; delete the folder and make it"):
        photos.open()
    (photos.folder / name).unlink()
    with pytest.raises(UserError, match=r"missing|holds no index.json"):
        photos.open()


def test_what_is_no_index(photos, tmp_path):
    with pytest.raises(UserError, match=r"is no folder, so it is no index; make one with `cir-jax"):
        Index(tmp_path / "nowhere")
    photos.update()
    (photos.folder / "current").write_text("nine")
    with pytest.raises(UserError, match=r"current names no generation"):
        photos.open()
    record = json.loads((photos.folder / "index.json").read_text())
    record.pop("own")
    (photos.folder / "index.json").write_bytes(records.checksums.sealed({**record, "version": 99}))
    with pytest.raises(UserError, match=r"of version 99 of its format"):
        photos.open()


def test_an_index_may_be_read_only(made, photos):
    photos.update()
    for path in [photos.folder, *photos.folder.rglob("*")]:
        path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    before = {p: p.stat().st_mtime_ns for p in photos.folder.rglob("*")}
    assert len(photos.open()) == 20
    assert {p: p.stat().st_mtime_ns for p in photos.folder.rglob("*")} == before


def test_a_folder_that_cannot_be_written(photos, tmp_path):
    (tmp_path / "file").write_text("")
    photos.folder = tmp_path / "file" / "index"
    with pytest.raises(UserError, match=r"cannot be written .*may be read-only"):
        photos.update()


def test_a_reader_that_meets_an_update_takes_the_newer_generation(made, photos, monkeypatch):
    photos.update()
    held = records.generation
    met = []

    def meeting(folder, number):
        if not met:
            met.append(number)
            photos.add("a.png")
            photos.update()
            photos.add("b.png")
            photos.update()  # which removes the generation that is being opened
        return held(folder, number)

    monkeypatch.setattr(records, "generation", meeting)
    assert photos.open().generation == 3 and met == [1]


def test_a_newer_generation_shares_what_was_checked(made, photos, monkeypatch):
    photos.update()
    before = photos.open(model=made.Model())
    photos.add("a.png")
    photos.update()
    flip(photos.folder / "segments/1/rows.npy", -3)
    after = before.newer()
    assert after.segments[0] is before.segments[0] and after.model is before.model
    with pytest.raises(UserError, match=r"damaged"):
        photos.open()


def test_copies(made, photos, tmp_path):
    photos.update(titles=(), dtype="int8")
    index = photos.open()
    copy = Index(index.save(tmp_path / "copy"))
    assert made.content(copy) == made.content(index) and copy.loss == index.loss
    with pytest.raises(UserError, match=r"exists and is not empty"):
        index.save(tmp_path / "copy")
    photos.add("a.png")
    photos.update()
    for path in photos.photos.rglob("*.png"):
        if path.name != "a.png":
            made.picture(path, 50 + int(path.stem))
    photos.update()
    photos.update()
    with pytest.raises(UserError, match=r"was updated since it was opened"):
        index.save(tmp_path / "late")


def test_an_index_in_memory(made, photos):
    model = made.Model()
    index = making.index(model, photos.photos, batch=8, threads=2)
    folder = index.folder
    assert index.model is model and len(index) == 20 and folder.is_dir()
    photos.add("a.png")
    newer = index.update(batch=8, threads=2)
    assert len(newer) == 21 and newer.model is model and newer.update() is newer
    del index
    assert folder.is_dir() and len(newer.catalogue.with_content(b"0" * 16)) == 0
    assert newer.rows([20]).shape == (1, 1, 6)
    del newer
    assert not folder.exists()


@pytest.mark.parametrize("k", [1, 3])
def test_export(made, photos, tmp_path, k):
    table = tmp_path / "t.csv"
    table.write_text("image,price,id,id_\ns0/00.png,3,SKU7,x\n")
    photos.update(made.Model(k), titles=[table], dtype="float16")
    index = photos.open()
    files = index.export(tmp_path / "out")
    rows, images = np.load(files[0]), parquet.read_table(files[1])
    assert rows.shape == ((20, 6) if k == 1 else (20, 3, 6)) and rows.dtype == np.float32
    np.testing.assert_array_equal(rows.reshape(20, k, 6), index.rows(index.catalogue.ids))
    assert images.column_names == ["id", "name", "price", "id_", "id__"]
    assert images["id"].to_pylist() == index.catalogue.ids.tolist()
    assert images["price"].to_pylist()[:2] == [3, None]
    assert images["id_"][0].as_py() == "SKU7" and images["id__"][0].as_py() == "x"


def test_the_store_ranks_the_rows_of_the_index(made, photos):
    photos.update()
    index = photos.open()
    rows = index.rows(index.catalogue.ids)[:, 0]
    terms = Terms(rows[4:5], np.zeros(1, np.int32), np.ones(1, np.float32))
    ids, scores = index.store.top([terms], 20)
    order = np.lexsort((index.catalogue.ids, -(rows @ rows[4])))
    assert ids[0, 0] == 4 and len(index.store) == 20
    np.testing.assert_allclose(scores[0], (rows @ rows[4])[order], atol=1e-6)


def lines(contents):
    count = len(contents)
    columns = {
        "id": range(count), "name": [f"{i}.png" for i in range(count)], "segment": [1] * count,
        "row": range(count), "size": [1] * count, "time": [1] * count, "content": contents,
    }  # fmt: skip
    return pa.table({n: pa.array(list(c), SCHEMA.field(n).type) for n, c in columns.items()})


def test_images_of_one_content():
    """Also of checksums that end in zeros, or differ in the second half alone."""
    contents = [bytes(16), b"\0" * 15 + b"\1", b"\xff" * 16, bytes(16), b"\xff" * 15 + b"\0"]
    found = Catalogue(lines(contents))
    for content in contents:
        want = [i for i, other in enumerate(contents) if other == content]
        assert found.with_content(content) == want
    assert found.with_content(b"a" * 16) == [] == Catalogue.empty().with_content(b"a" * 16)
    assert found.contents([4, 0]) == [contents[4], contents[0]]
    assert found.numbers_of(["3.png", "x", "\udcff"]) == [3, None, None]


def test_a_writer_that_was_killed_holds_no_lock(photos):
    photos.update()
    (photos.folder / writing.WRITER).write_text('{"process": 1, "host": "h", "since": 0}')
    assert os.path.exists(photos.folder / writing.LOCK)
    photos.update()
