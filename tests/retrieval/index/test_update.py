# SPDX-License-Identifier: Apache-2.0
"""An index is made and brought up to date: what is encoded, what is kept, what is refused."""

import json
import os
import shutil

import numpy as np
import pytest

from cir_jax.errors import UserError
from cir_jax.retrieval.index import building, compaction, records, segments, writing
from cir_jax.retrieval.index import update as updating
from cir_jax.retrieval.index.building import Building


def age(folder):
    """Makes files old enough to be certain by their times."""
    for number, path in enumerate(sorted(folder.rglob("*"))):
        if path.is_file():
            os.utime(path, ns=(10**18 + number, 10**18 + number))


@pytest.mark.parametrize("k", [1, 3])
def test_rows_are_those_of_the_contract(made, photos, expected, k):
    model = made.Model(k)
    report = photos.update(model)
    index = photos.open()
    assert (report.images, report.new, report.encoded, len(index)) == (20, 20, 20, 20)
    names = index.catalogue.names.to_pylist()
    assert names == sorted(names) and names[0] == "s0/00.png"
    rows = index.rows(index.catalogue.ids)
    files = [index.path_of(id) for id in index.catalogue.ids]
    np.testing.assert_allclose(rows, expected(model, files), atol=1e-6)
    assert rows.shape == (20, k, 6) and rows.dtype == np.float32
    assert set(model.opened.values()) == {1}


def test_only_what_changed_is_encoded(made, photos, by_name):
    age(photos.photos)
    photos.update()
    before = photos.open()
    ids = dict(zip(before.catalogue.names.to_pylist(), before.catalogue.ids, strict=True))
    old = by_name(before)
    os.utime(photos.photos / "s0/00.png", ns=(2 * 10**18, 2 * 10**18))
    (photos.photos / "s1/01.png").rename(photos.photos / "s1/moved.png")
    (photos.photos / "s2/02.png").unlink()
    made.picture(photos.photos / "s0/03.png", 500)
    photos.add("new/a.png")
    model = made.Model()
    report = photos.update(model)
    assert (report.new, report.changed, report.moved, report.touched, report.gone) == (
        1, 1, 1, 1, 1,
    )  # fmt: skip
    assert sorted(model.opened.values()) == [1, 1] and report.images == 20
    now = before.newer()
    assert now.generation == 2 and before.newer() is not None
    rows = by_name(now)
    for name in old.keys() & rows.keys() - {"s0/03.png"}:
        np.testing.assert_array_equal(old[name], rows[name])
    np.testing.assert_array_equal(rows["s1/moved.png"], old["s1/01.png"])
    assert (rows["s0/03.png"] != old["s0/03.png"]).any()
    number_of = now.catalogue.number_of
    assert number_of("s1/moved.png") == ids["s1/01.png"] and number_of("s0/00.png") == 0
    assert {number_of("s0/03.png"), number_of("new/a.png")} == {20, 21}
    assert number_of("s2/02.png") is None and number_of("s1/01.png") is None
    # Whoever opened the index before goes on with what it had.
    assert by_name(before).keys() == old.keys() and before.path_of(3)
    again = photos.update(model)
    assert sum(model.opened.values()) == 2 and again.generation == 2 and now.newer() is None
    assert by_name(before)["s2/02.png"].tobytes() == old["s2/02.png"].tobytes()


def test_a_file_of_just_now_is_compared_again(made, photos):
    """A clock may be too coarse to tell two writes apart."""
    photos.update()
    picked = photos.photos / "s0/00.png"
    stamp = picked.stat().st_mtime_ns
    size = picked.stat().st_size
    content = picked.read_bytes()
    picked.write_bytes(content[:-20] + bytes(20))
    os.utime(picked, ns=(stamp, stamp))
    assert picked.stat().st_size == size
    report = photos.update()
    assert report.touched == 0  # the others were compared, too, and are as they were
    assert report.changed + report.gone == 1 and len(report.unreadable) <= 1


def test_what_cannot_be_read_is_listed_and_tried_again(made, photos):
    (photos.photos / "page.jpg").write_bytes(b"<html>not found")
    (photos.photos / "nothing.png").write_bytes(b"")
    (photos.photos / "cut.png").write_bytes((photos.photos / "s0/00.png").read_bytes()[:200])
    strange = os.fsdecode(b"bad\xff.png")
    made.picture(photos.photos / strange, 900)
    report = photos.update()
    listed = [json.loads(x) for x in (photos.folder / "unreadable.jsonl").read_text().splitlines()]
    assert {line["image"]: line["reason"] for line in listed} == {
        "page.jpg": "no image", "nothing.png": "empty (0 bytes)", "cut.png": "cut off",
        "bad\\udcff.png": "not readable",
    }  # fmt: skip
    assert len(report.unreadable) == 4 and report.images == 20
    model = made.Model()
    photos.update(model)
    assert sum(model.opened.values()) == 2  # the two that have bytes, and take no batch
    made.picture(photos.photos / "page.jpg", 901)
    (photos.photos / "nothing.png").unlink()
    report = photos.update()
    assert report.images == 21 and set(report.unreadable) == {"cut.png", strange}
    assert photos.open().catalogue.number_of("page.jpg") == 20


def test_names_of_one_file_links_and_hidden_files(made, photos, tmp_path, capsys):
    os.link(photos.photos / "s0/00.png", photos.photos / "z.png")
    made.picture(tmp_path / "elsewhere/x.png", 700)
    os.symlink(tmp_path / "elsewhere", photos.photos / "s0/out")
    os.symlink("s1", photos.photos / "inside")
    made.picture(photos.photos / ".hidden/h.png", 701)
    made.picture(photos.photos / "._a.png", 702)
    report = photos.update()
    assert report.images == 20 and {n for n, _ in report.left_out} == {"z.png", "s0/out"}
    report = photos.update(allow_outside=True)
    assert report.images == 21 and photos.open().catalogue.number_of("s0/out/x.png") is not None
    index = photos.open()
    assert index.path_of(index.catalogue.number_of("s0/out/x.png"))


def test_a_folder_that_is_no_index_is_left_alone(made, photos):
    made.picture(photos.folder / "segments/mine/a.png", 1)
    (photos.folder / "catalogue-1.parquet").write_text("mine")
    with pytest.raises(UserError, match=r"is no index and is not empty .catalogue-1.parquet, seg"):
        photos.update()
    assert (photos.folder / "catalogue-1.parquet").read_text() == "mine"
    assert sorted(p.name for p in photos.folder.iterdir()) == ["catalogue-1.parquet", "segments"]


def test_an_index_below_the_images_is_none_of_them(made, photos):
    photos.folder = photos.photos / "index"
    assert photos.update().images == 20
    made.picture(photos.folder / "thumbnails/t.png", 600)
    assert photos.update().images == 20


def test_a_file_that_leads_out_is_never_given(made, photos, tmp_path):
    photos.update()
    index = photos.open()
    inside = photos.photos / "s0/00.png"
    shutil.copy(inside, tmp_path / "secret.png")
    inside.unlink()
    os.symlink(tmp_path / "secret.png", inside)
    with pytest.raises(UserError, match=r"outside of"):
        index.path_of(0)
    for id in (-1, 99, 10**30):
        with pytest.raises(UserError, match=r"the index has no image"):
            index.path_of(id)


class Stopped(Exception):
    pass


def interrupted(photos, model, monkeypatch, after):
    """An update that ends after so many batches as a process does that is killed."""
    held = Building.add
    count = [0]

    def add(self, *args):
        if count[0] == after:
            raise Stopped
        count[0] += 1
        held(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Building, "add", add)
        with pytest.raises(Stopped):
            photos.update(model)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_stopped_update_goes_on(made, photos, tmp_path, monkeypatch, dtype):
    for name in ("s0/10.jpg", "s1/broken.png"):
        (photos.photos / name).write_bytes(b"\x89PNG\r\n\x1a\n")
    monkeypatch.setattr(building, "COMMIT", 0.0)
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 7 * (10 if dtype == "int8" else 24))
    whole = made.Collection(tmp_path / "whole")
    shutil.rmtree(whole.photos)
    shutil.copytree(photos.photos, whole.photos)
    whole.update(dtype=dtype)
    model = made.Model()
    for after in (1, 1):
        with monkeypatch.context() as patch:
            patch.setattr(photos, "update", lambda m, real=photos.update: real(m, dtype=dtype))
            interrupted(photos, model, patch, after)
        with pytest.raises(UserError, match=r"was begun and is not finished"):
            photos.open()
    photos.update(model, dtype=dtype)
    assert made.content(photos.open()) == made.content(whole.open())
    assert [s.rows.shape[0] for s in photos.open().segments] == [7, 7, 6]
    assert photos.open().loss == whole.open().loss
    # Of a batch that was under way when the process ended nothing is kept.
    decoded = {name: n for name, n in model.opened.items() if "broken" not in name}
    assert max(decoded.values()) <= 3 and not (photos.folder / "building").exists()


def test_what_was_begun_and_has_changed_since_is_no_part(made, photos, monkeypatch, by_name):
    monkeypatch.setattr(building, "COMMIT", 0.0)
    interrupted(photos, made.Model(), monkeypatch, 2)
    made.picture(photos.photos / "s0/00.png", 400)
    (photos.photos / "s0/03.png").unlink()
    report = photos.update()
    index = photos.open()
    assert report.images == 19 and "s0/03.png" not in by_name(index)
    model = made.Model()
    rows = model.retriever().encode_gallery([str(photos.photos / "s0/00.png")])
    np.testing.assert_allclose(by_name(index)["s0/00.png"], rows[0], atol=1e-6)


def test_a_damaged_beginning_is_made_anew(made, photos, monkeypatch, capsys):
    monkeypatch.setattr(building, "COMMIT", 0.0)
    interrupted(photos, made.Model(), monkeypatch, 2)
    [part] = photos.folder.glob("segments/*/rows.npy.part")
    with part.open("r+b") as file:
        file.seek(-8, 2)
        file.write(b"\1" * 8)
    photos.update()
    assert "encoded anew" in capsys.readouterr().out
    assert len(photos.open()) == 20


def test_another_model_is_refused(made, photos):
    photos.update()
    with pytest.raises(UserError, match=r"another model: the parameters of the image side .*--out"):
        photos.update(made.Model(seed=1))
    with pytest.raises(UserError, match=r"the rows of an image"):
        photos.update(made.Model(k=3))
    with pytest.raises(UserError, match=r"how pictures become inputs .pad=none"):
        photos.update(made.Model(pad="square"))
    with pytest.raises(UserError, match=r"the parameters of the image side"):
        photos.open(model=made.Model(seed=1))
    assert photos.open(model=(same := made.Model())).model is same
    with pytest.raises(UserError, match=r"does not say where the weights"):
        from cir_jax.retrieval import opening

        _ = opening.open_index(photos.folder).model


def test_another_query_side_keeps_the_rows(made, photos):
    photos.update()
    before = photos.open()
    other = made.Model(query_seed=5)
    with pytest.raises(UserError, match=r"the parameters of the query side .*keeps all rows"):
        photos.open(model=other)
    report = photos.update(other)
    assert not other.opened and report.generation == 2 and before.newer() is not None
    assert made.content(photos.open(model=other)) == made.content(before)


def test_another_folder_is_refused_and_a_moved_one_is_not(made, photos, tmp_path):
    photos.update()
    other = made.Collection(tmp_path / "other", 3)
    for path in sorted(other.photos.rglob("*.png")):
        path.rename(path.with_name(f"other-{path.name}"))
        made.picture(path.with_name(f"other-{path.name}"), 300 + hash(path.name) % 50)
    with pytest.raises(UserError, match=r"holds none of the 20 images"):
        photos.update(place=other.photos)
    photos.photos.rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"is no folder and no file"):
        photos.update()
    model = made.Model()
    report = photos.update(model, place=tmp_path / "moved")
    assert not model.opened and report.images == 20
    assert photos.open().path_of(0).startswith(str(tmp_path / "moved"))
    for path in (tmp_path / "moved").rglob("*.png"):
        path.unlink()
    with pytest.raises(UserError, match=r"holds no image"):
        photos.update(place=tmp_path / "moved")
    assert len(photos.open()) == 20


def test_one_writer_at_a_time(made, photos):
    photos.update()
    with writing.alone(photos.folder):
        with pytest.raises(UserError, match=rf"another process \({os.getpid()} on .*since"):
            photos.update()
        assert len(photos.open()) == 20  # readers need no lock
    photos.update()


def test_a_full_disk_loses_nothing(made, photos, monkeypatch):
    age(photos.photos)
    photos.update()
    before = made.content(photos.open())
    photos.add("new/a.png", "new/b.png")
    held = records.files.put

    def full(path, content):
        if str(path).endswith("2.json"):
            raise records.files.full(path, OSError(28, "No space left on device"), 100)
        held(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(records.files, "put", full)
        with pytest.raises(UserError, match=r"No space left on device.*same command again"):
            photos.update()
    assert made.content(photos.open()) == before
    model = made.Model()
    photos.update(model)
    assert not model.opened and len(photos.open()) == 22


def test_rows_that_do_not_fit_are_refused_before_they_are_encoded(made, photos, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(updating.shutil, "disk_usage", lambda _: usage._replace(free=100))
    model = made.Model()
    with pytest.raises(UserError, match=r"20 images do not fit .*--dtype float16"):
        photos.update(model)
    assert not model.opened


def test_a_model_of_no_numbers_is_refused(made, photos):
    model = made.Model()
    model.index_params["visual"][:] = np.nan
    with pytest.raises(UserError, match=r"no finite numbers"):
        photos.update(model)


def test_dead_rows_and_many_small_segments_are_joined(made, photos, monkeypatch, by_name):
    age(photos.photos)
    photos.update()
    model = made.Model()
    want = by_name(photos.open())
    for number in range(compaction.SMALL):
        photos.add(f"later/{number}.png")
        photos.update(model)
    index = photos.open()
    assert len(index.segments) == 1 and len(index) == 28
    assert all(by_name(index)[name].tobytes() == row.tobytes() for name, row in want.items())
    for number in range(12):
        (photos.photos / f"s{number % 3}/{number:02}.png").unlink()
    photos.update(model)
    [segment] = photos.open().segments
    assert len(segment.rows) == 16 == len(photos.open())
    kept = by_name(photos.open())
    assert all(kept[name].tobytes() == want[name].tobytes() for name in kept.keys() & want.keys())
    photos.update(model)  # which removes what nobody needs any more
    assert [p.name for p in (photos.folder / "segments").iterdir()] == [str(segment.number)]
    assert len([*(photos.folder / "generations").iterdir()]) == 1
    assert sum(model.opened.values()) == 8


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_smaller_rows_and_what_they_cost(made, photos, by_name, capsys, dtype):
    photos.update(made.Model(3), dtype=dtype)
    index = photos.open()
    assert index.segments[0].rows.dtype == dtype
    exact = made.Collection(photos.photos.parent / "exact")
    exact.update(made.Model(3))
    want = by_name(exact.open())
    largest = max(np.abs(row - want[name]).max() for name, row in by_name(index).items())
    assert 0 < largest < (6e-3 if dtype == "int8" else 5e-4)
    loss = index.loss
    assert loss["images"] == 20 and loss["first"] == 10 and 0.8 < loss["first_kept"] <= 1
    assert 0 < loss["mean"] < loss["largest"] < 0.02
    assert f"{dtype} rows: on a sample of 20 images" in capsys.readouterr().out
    with pytest.raises(UserError, match=rf"are {dtype}, not float32; make another"):
        photos.update(made.Model(3), dtype="float32")
    photos.add("new.png")
    photos.update(made.Model(3))
    assert photos.open().loss["images"] == 21
