# SPDX-License-Identifier: Apache-2.0
"""Importers of other projects' triplets: every layout and every refusal."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest

from cir_jax.datasets import generated
from cir_jax.datasets import shards as tar_images
from cir_jax.datasets.importing import run, streams
from cir_jax.datasets.readers import folder
from cir_jax.errors import UserError
from tests import runs
from tests.datasets.importer_samples import (
    CC,
    CIRR,
    COVR,
    FIQ,
    LASCO,
    MEGAPAIRS,
    lines,
    shard,
    table,
    take,
)


@pytest.mark.parametrize("key", ["q_text", "q_texts"])
def test_megapairs(tmp_path, key):
    record = {k: v for k, v in MEGAPAIRS.items() if k != "q_texts"} | {key: MEGAPAIRS["q_texts"]}
    written, summary = take("megapairs", lines(tmp_path / "part.jsonl", [record]))
    assert written == [
        {
            "reference": "train-0/02280/1.jpg",
            "target": "train-0/01574/2.jpg",
            "texts": ["a smaller mirror", "unlit"],
            "source": "megapairs",
            "id": "part.jsonl:1",
            "meta": {"hard_negatives": ["train-0/03116/3.jpg"]},
        }
    ]
    assert (summary.read, summary.written, summary.refused) == (1, 1, {})


def test_several_shards_are_one_set(tmp_path):
    for i in range(3):
        packed = gzip.compress((json.dumps(MEGAPAIRS | {"t_img": f"{i}.jpg"}) + "\n").encode())
        (tmp_path / f"{i}.jsonl.gz").write_bytes(packed)
    (tmp_path / "notes.txt").write_text("not a shard")
    out = tmp_path / "made" / "out.jsonl"
    for sources in ([tmp_path], [str(tmp_path / "[0-2].jsonl.gz")], [tmp_path, tmp_path]):
        summary = run.run("megapairs", sources, out, overwrite=True)
        assert (summary.files, summary.written) == (3, 3)
    targets = [json.loads(line)["target"] for line in out.read_text().splitlines()]
    assert targets == ["0.jpg", "1.jpg", "2.jpg"]
    assert sorted(p.name for p in out.parent.iterdir()) == ["out.jsonl"]


def test_spn_layouts(tmp_path):
    source = tmp_path / "cap.json"
    runs.dump(source, [FIQ])
    (fiq,), _ = take("spn", source)
    assert (fiq["reference"], fiq["target"], fiq["texts"]) == ("B1", "B2", FIQ["captions"])
    assert fiq["meta"] == {"caption1": "a", "caption2": "b", "llm_caption": "is b"}
    (fiq,), _ = take("spn", source, options={"text": "llm"})
    assert fiq["text"] == "is b" and "texts" not in fiq
    (fiq,), _ = take("spn", source, options={"text": "both"}, suffix=".png")
    assert fiq["texts"] == [*FIQ["captions"], "is b"] and fiq["reference"] == "B1.png"
    runs.dump(source, [CIRR])
    (cirr,), _ = take("spn", source)
    assert (cirr["reference"], cirr["target"]) == ("train-1-0-img0", "train-1-0-img1")
    assert cirr["text"] == "like b" and cirr["meta"] == {"caption1": "a", "caption2": "b"}
    runs.dump(source, [CC])
    (cc,), _ = take("spn", source, strip="/data/cc/", source="cc")
    assert (cc["reference"], cc["target"], cc["source"]) == ("1.jpg", "2.jpg", "cc")
    assert cc["meta"] == {"reference_name": "http://u/1", "target_name": "http://u/2"}
    with pytest.raises(UserError, match=r"'/data/cc/1.jpg' is no path below a folder.*--strip"):
        take("spn", source)
    with pytest.raises(UserError, match="text is 'all', expected captions, llm or both"):
        take("spn", source, options={"text": "all"})


def test_of_a_folder_annotations_and_other_splits_are_not_taken(tmp_path):
    root = runs.write_fashioniq(tmp_path / "fiq", triplets=4)
    summary = run.run("spn", [root / "captions"], tmp_path / "spn.jsonl")
    assert (summary.files, summary.written) == (1, 8)
    for split in ("train", "val"):
        runs.dump(tmp_path / "lasco" / f"lasco_{split}.json", [LASCO])
    assert run.run("lasco", [tmp_path / "lasco"], tmp_path / "lasco.jsonl").files == 1


def test_lasco(tmp_path):
    runs.dump(tmp_path / "lasco_train.json", [LASCO, LASCO | {"target-image": [1, "./t/1.jpg"]}])
    (first, second), _ = take("lasco", tmp_path / "lasco_train.json")
    assert first == {
        "reference": "val2014/COCO_val2014_000000028714.jpg",
        "target": "val2014/COCO_val2014_000000277005.jpg",
        "text": "The person is riding the bike",
        "source": "lasco",
        "id": "28714000",
        "meta": {"reference_id": 28714, "target_id": 277005},
    }
    assert second["target"] == "t/1.jpg"
    bad = [{"target-image": [float("nan"), "n.jpg"]}, {"query-image": "a.jpg"},
           {"query-image": None}, {"target-image": [1, ""]}]  # fmt: skip
    bad = [LASCO, *(LASCO | change for change in bad)]
    runs.dump(tmp_path / "lasco_train.json", bad)
    _, summary = take("lasco", tmp_path / "lasco_train.json", refused=tmp_path / "r.jsonl")
    assert summary.refused == {"malformed record": 2, "no reference": 1, "no target": 1}
    said = [json.loads(line)["detail"] for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert "NaN is no number of JSON" in said[0] and "'a.jpg', expected [id, path]" in said[1]


@pytest.mark.parametrize(
    "suffix, frame",
    [("", "011851/1"), (".jpg", "011851/1.jpg"), ("/middle.png", "011851/1/middle.png")],
)
def test_webvid_covr(tmp_path, suffix, frame):
    rows = [COVR, COVR | {"pth1": "011851/3.mp4", "edit": "two\nlines"}]
    (first, second), _ = take(
        "webvid_covr", table(tmp_path / "covr_train.csv", rows), suffix=suffix
    )
    assert first == {
        "reference": frame,
        "target": frame.replace("1/1", "2/2"),
        "text": "make it, a leak",
        "source": "webvid_covr",
        "id": "covr_train.csv:2",
        "meta": {"caption1": 'Water "stream", wide', "caption2": "Leak"},
    }
    assert second["reference"] == frame.replace("1/1", "1/3") and second["text"] == "two\nlines"


def test_synthtriplets_in_tar_shards(tmp_path):
    members = {}
    for i in range(2):
        members |= {f"{i}.src.jpg": b"reference %d" % i, f"{i}.tgt.jpg": b"target",
                    f"{i}.json": json.dumps({"edit": {"text": f"edit {i}"}}).encode()}  # fmt: skip
    (tmp_path / "data").mkdir()
    source = shard(tmp_path / "data" / "00000.tar", members)
    named = {"reference": "src.jpg", "target": "tgt.jpg", "text": "json.edit.text"}
    out = tmp_path / "out.jsonl"
    run.run("synthtriplets18m", [source], out, options=named, images=tmp_path)
    first, second = (json.loads(line) for line in out.read_text().splitlines())
    assert (first["reference"], first["target"]) == ("00000/0.src.jpg", "00000/0.tgt.jpg")
    assert (second["text"], second["id"]) == ("edit 1", "00000.tar:2")
    assert second["reference_path"].startswith("data/00000.tar@")
    image = tar_images.place(str(tmp_path / second["reference_path"]))
    assert image.read_bytes() == b"reference 1"
    for options in ({}, {"reference": "src.jpg", "target": "tgt.jpg"}):
        with pytest.raises(UserError, match=r"has: src.jpg, tgt.jpg, json.edit.text"):
            take("synthtriplets18m", source, options=options)
    packed = tmp_path / "00001.tar.gz"
    packed.write_bytes(gzip.compress(source.read_bytes()))
    (first, _), _ = take("synthtriplets18m", packed, options=named)
    assert first["reference"] == "00001/0.src.jpg" and "reference_path" not in first


def test_parquet_and_what_it_has_in_bytes(tmp_path):
    rows = [{"img": {"bytes": b"x", "path": f"{i}.jpg"}, "raw": b"y", "to": "t.jpg", "edit": ["e"]}
            for i in range(3)]  # fmt: skip
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "0.parquet")
    named = {"reference": "img.path", "target": "to", "text": "edit"}
    written, _ = take("synthtriplets18m", tmp_path / "0.parquet", options=named)
    assert [r["reference"] for r in written] == ["0.jpg", "1.jpg", "2.jpg"]
    (_, first), *_ = streams.records(tmp_path / "0.parquet")
    assert first == {"img": {"path": "0.jpg"}, "to": "t.jpg", "edit": ["e"]}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([MEGAPAIRS]), tmp_path / "m.parquet")
    assert take("megapairs", tmp_path / "m.parquet")[1].written == 1


def test_round_trip_through_the_readers(tmp_path):
    for name in ("1.jpg", "2.jpg", "3.jpg"):
        runs.write_image(tmp_path / "images" / name, (1, 2, 3))
    records = [
        {"q_img": "1.jpg", "q_text": "one", "t_img": "2.jpg", "hns": None},
        {"q_img": "2.jpg", "q_text": ["two", "zwei ✓"], "t_img": "3.jpg", "hns": ["2.jpg"]},
    ]
    source = lines(tmp_path / "m.jsonl", records)
    run.run("megapairs", [source], tmp_path / "train.jsonl", images=tmp_path / "images")
    (triplets,) = folder.read(tmp_path)
    assert triplets.name == "megapairs" and triplets.paths["1.jpg"].endswith("images/1.jpg")
    assert triplets.triplets[1].texts == ("two", "zwei ✓")
    assert triplets.triplets[1].query_id == "m.jsonl:2"
    (made,) = generated.read([tmp_path / "train.jsonl"], triplets.paths, tmp_path)
    assert made.triplets == triplets.triplets


def test_every_refusal_is_counted_with_its_first(tmp_path):
    good = {"q_img": "1.jpg", "q_text": ["x"], "t_img": "2.jpg", "hns": []}
    bad = [
        ("malformed record", "[1, 2]", "expected an object"),
        ("malformed record", '{"q_img": 1', "no JSON"),
        ("malformed record", json.dumps(good | {"q_img": 5}), "'q_img' is 5"),
        ("malformed record", json.dumps(good | {"q_text": ["x", 3]}), "holds 3, which is no text"),
        ("malformed record", json.dumps(good | {"hns": "2.jpg"}), "'hns' is '2.jpg'"),
        ("malformed record", json.dumps(good | {"q_img": "../1.jpg"}), "no path below a folder"),
        ("malformed record", json.dumps(good | {"q_text": "\ud83d"}), "is no character"),
        ("malformed record", json.dumps(good | {"q_text": "\xff"}, ensure_ascii=False), "is no ch"),
        ("no reference", json.dumps({"t_img": "2.jpg", "q_text": "x"}), "no q_img; it has: t_img"),
        ("no target", json.dumps(good | {"t_img": None}), "'t_img' is None"),
        ("no text", json.dumps(good | {"q_text": [" ", None]}), "'q_text' is"),
        ("no text", json.dumps({"q_img": "1.jpg", "t_img": "2.jpg"}), "no q_text or q_texts"),
        ("reference equals target", json.dumps(good | {"t_img": "./1.jpg"}), "'1.jpg'"),
        ("image missing", json.dumps(good | {"t_img": "9.jpg"}), "'9.jpg'"),
        ("duplicate", json.dumps(good | {"hns": ["3.jpg"]}), "'1.jpg' to '2.jpg'"),
    ]  # fmt: skip
    for name in ("1.jpg", "2.jpg"):
        runs.write_image(tmp_path / "images" / name, (1, 2, 3))
    source = tmp_path / "m.jsonl"
    text = "\n\n".join([json.dumps(good)] + [line for _, line, _ in bad]) + "\n"
    source.write_bytes(text.encode("latin-1"))
    written, summary = take(
        "megapairs", source, images=tmp_path / "images", refused=tmp_path / "refused.jsonl"
    )
    assert len(written) == 1 == summary.written and summary.read == len(bad) + 1
    for reason, count in summary.refused.items():
        assert count == sum(r == reason for r, _, _ in bad)
    refused = [json.loads(line) for line in (tmp_path / "refused.jsonl").read_text().splitlines()]
    for i, ((reason, _, detail), line) in enumerate(zip(bad, refused, strict=True)):
        assert line["reason"] == reason and detail in line["detail"], line
        assert line["where"] == f"{source}:{2 * i + 3}" and "record" in line
    said = summary.lines()
    assert said[0] == "read 16 records of 1 files, wrote 1 triplets, refused 15"
    assert said[1].startswith(f"  malformed record: 8, first {source}:3: expected an object")


def test_a_table_with_bytes_that_are_no_utf8(tmp_path):
    """The record is refused when it is read, and the rest is taken."""
    source = table(tmp_path / "covr_train.csv", [COVR, COVR | {"pth1": "1/9"}])
    source.write_bytes(source.read_bytes().replace(b"Leak", b"L\xffak", 1))
    written, summary = take("webvid_covr", source)
    assert len(written) == 1 and summary.refused == {"malformed record": 1}
    first = summary.first["malformed record"]
    assert r"covr_train.csv:2: '\udcff' is no character: byte 0xff is not UTF-8" in first


def test_images_without_suffix_and_names_in_meta(tmp_path):
    for name in ("B1.png", "B2.webp"):
        runs.write_image(tmp_path / "images" / name, (1, 2, 3))
    runs.dump(tmp_path / "cap.json", [FIQ, FIQ | {"target": "B3"}])
    _, summary = take("spn", tmp_path / "cap.json", images=tmp_path / "images")
    assert summary.refused == {"image missing": 1} and summary.written == 1
    record = {k: v.replace("train", "/d/train") for k, v in MEGAPAIRS.items() if "img" in k}
    record |= {"q_text": "x", "hns": ["/d/train/9.jpg"]}
    (written,), _ = take("megapairs", lines(tmp_path / "m.jsonl", [record]), strip="/d/")
    assert written["meta"]["hard_negatives"] == ["train/9.jpg"]
