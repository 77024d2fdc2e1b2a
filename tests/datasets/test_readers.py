# SPDX-License-Identifier: Apache-2.0
"""Readers of the official layouts, the image table, and what they say of bad files."""

import json

import pytest

from cir_jax.data.image_table import ImageTable
from cir_jax.data.inspection import inspect_images
from cir_jax.data.screening import drop_missing
from cir_jax.data.triplets import Triplet, TripletSet
from cir_jax.datasets import captions, generated
from cir_jax.datasets.readers import cirr, fashioniq, folder
from cir_jax.errors import UserError
from tests import runs


@pytest.fixture
def fiq(tmp_path):
    return runs.write_fashioniq(tmp_path / "fiq")


@pytest.fixture
def pairs(tmp_path):
    return runs.write_cirr(tmp_path / "cirr")


def test_joining_golden():
    assert fashioniq.join(["Is darker. ", "  has, no? "]) == (
        "Is darker and has, no",
        "has, no and Is darker",
        "Is darker",
        "has, no",
    )
    assert fashioniq.join(["...", "is red"]) == ("is red",)


def test_fashioniq(fiq):
    human, made = runs.load("fashioniq", fiq, "data.generated=captions/cap.extend_clip.train.json")
    assert (human.name, made.name) == ("fashioniq", "generated")
    assert len(human.triplets) == 32 and len(made.triplets) == 8
    first = human.triplets[0]
    assert first.query_id == "dress/0" and len(first.texts) == 4
    assert first.eval_text == first.texts[0] and first.texts[3] == "has, no"
    assert made.triplets[0].texts == (f"a {made.triplets[0].target}",)
    assert human.paths[first.reference].endswith(f"images/{first.reference}.png")
    assert [t.target for t in fashioniq.read(fiq, "test")[0].triplets] == [""] * 32
    names, paths = fashioniq.gallery(fiq, "dress")
    assert len(names) == 24 == len(paths)
    assert set(fashioniq.gallery(fiq, "dress", kind="val")[0]) <= set(names)


def test_fashioniq_in_folders_and_jpeg(tmp_path):
    root = runs.write_fashioniq(tmp_path, suffix=".JPG")
    (root / "images" / "dress").mkdir()
    for i in range(12):
        name = f"B{i:04d}.JPG"
        (root / "images" / name).rename(root / "images" / "dress" / name)
    paths = fashioniq.read(root)[0].paths
    assert not inspect_images(paths).unusable()
    assert any("/dress/" in p for p in paths.values())


def test_llm_captions(fiq):
    file = fiq / "captions/cap.extend_clip_llm.train.json"
    records = json.loads((fiq / "captions/cap.extend_clip.train.json").read_text())
    runs.dump(file, [r | {"llm_caption": f"rewritten {i}"} for i, r in enumerate(records)])
    (made,) = generated.read([file], fashioniq.locate(fiq), fiq, llm_captions=True)
    assert made.triplets[3].texts == ("rewritten 3",)
    with pytest.raises(UserError, match=r"train.json record 0 has no 'llm_caption'; it has: cand"):
        generated.read(["captions/cap.extend_clip.train.json"], {}, fiq, llm_captions=True)


def test_generated_layouts(tmp_path):
    cirr_file, paths_file = tmp_path / "cirr.json", tmp_path / "cc.json"
    runs.dump(cirr_file, [{"reference": "a", "target_hard": "b", "caption": ["x", "y"],
                           "pairid": 0, "img_set": {"members": ["xxx"]}}])  # fmt: skip
    runs.dump(paths_file, [{"reference": "p/a.jpg", "target": "p/b.jpg", "captions": ["x"],
                            "reference_name": "u1", "target_name": "u2"}])  # fmt: skip
    assert generated.read([cirr_file], {}, tmp_path)[0].triplets[0].texts == ("x", "y")
    (other,) = generated.read([paths_file], {}, tmp_path)
    assert other.paths["p/b.jpg"] == str(tmp_path / "p/b.jpg")


def test_cirr(pairs):
    (human,) = cirr.read(pairs, "val")
    first = human.triplets[0]
    assert first.query_id == "100" and len(first.members) == 6 and first.target in first.members
    assert human.paths[first.reference] == str(pairs / f"./dev/{first.reference}.png")
    assert cirr.read(pairs, "test1")[0].triplets[0].target == ""
    assert cirr.gallery(pairs, "val")[0][0] == "dev-0-img0"
    (pairs / "cirr" / "captions").rename(pairs / "captions")
    (pairs / "cirr" / "image_splits").rename(pairs / "image_splits")
    assert len(cirr.read(pairs, "val")[0].triplets) == 12


def test_folder(tmp_path):
    for name in ("a.jpg", "sub/b.png", "c.png"):
        runs.write_image(tmp_path / "images" / name, (10, 200, 10))
    lines = [
        {"reference": "a.jpg", "target": "sub/b", "texts": ["in red", "red"], "source": "mine"},
        {"reference": "c", "target": "a", "text": "as a car", "id": "q7", "meta": {"by": "me"}},
    ]
    (tmp_path / "train.jsonl").write_text("\n\n".join(map(json.dumps, lines)))
    (tmp_path / "val.jsonl").write_text(json.dumps(lines[1]))
    mine, other = folder.read(tmp_path)
    assert mine.name == "mine" and mine.triplets[0].texts == ("in red", "red")
    assert other.triplets[0].query_id == "q7" and other.paths["c.png"].endswith("images/c.png")
    assert folder.gallery(tmp_path)[0] == ["c.png", "a.jpg"]
    (tmp_path / "gallery.txt").write_text("a\n\nsub/b\n")
    assert folder.gallery(tmp_path)[0] == ["a.jpg", "sub/b.png"]


@pytest.mark.parametrize(
    "line, message",
    [
        ("{", r"train.jsonl:1 is no JSON .*correct that line"),
        ("[]", r"train.jsonl:1 is a list, expected a JSON object; write the record as .* or"),
        ('{"reference": "a", "target": "b"}', "needs either text or texts, and has neither; write"),
        ('{"reference": "a", "text": "x"}', "has no 'target'; it has: reference, text"),
        ('{"referense": "a", "text": "x"}', r"unknown field 'referense'. Did you mean 'referenc"),
        ('{"reference": "a", "target": "b", "text": " "}', "has no text; remove the record"),
        ('{"reference": "a", "target": "b", "text": 3}', "3 is no text"),
        ("", "holds no triplet"),
    ],
)
def test_folder_errors(tmp_path, line, message):
    (tmp_path / "train.jsonl").write_text(line)
    with pytest.raises(UserError, match=message):
        folder.read(tmp_path)


def test_captions(tmp_path):
    file = runs.write_captions(tmp_path)
    (pairs,) = captions.read(file)
    assert len(pairs.triplets) == 16 and pairs.triplets[0].reference == ""
    assert pairs.paths["images/c3.png"] == str(tmp_path / "images/c3.png")
    runs.dump(tmp_path / "it.json", [{"image_id": "7", "image_path": "x.png", "caption": "a cat"}])
    (pairs,) = captions.read(tmp_path / "it.json", "/data")
    assert pairs.paths == {"7": "/data/x.png"} and pairs.triplets[0].texts == ("a cat",)
    runs.dump(tmp_path / "none.json", [])
    with pytest.raises(UserError, match="holds no caption"):
        captions.read(tmp_path / "none.json")


def test_annotation_errors(fiq, pairs, tmp_path):
    file = fiq / "captions/cap.dress.train.json"
    good = json.loads(file.read_text())
    file.write_text('[{"candidate": "a", "target": "b"}, {"candidate" "c"}]')
    with pytest.raises(UserError, match=r"cap.dress.train.json is no JSON: .*, record 1; fetch"):
        fashioniq.read(fiq)
    runs.dump(file, [{"candidate": "a", "target": "b", "captions": ["one"]}])
    with pytest.raises(UserError, match=r"cap.dress.train.json record 0 has captions \['one'\]"):
        fashioniq.read(fiq)
    runs.dump(file, {"a": 1})
    with pytest.raises(UserError, match=r"holds a dict at its top level, expected a list"):
        fashioniq.read(fiq)
    runs.dump(file, good)
    with pytest.raises(UserError, match=r"no category 'dres' in .*: dress, shirt. Did you mean"):
        fashioniq.read(fiq, categories=("dres",))
    with pytest.raises(UserError, match=r"no FashionIQ annotations for split 'train' in .*nothing"):
        fashioniq.read(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"eval.gallery='all' is unknown; use full or val"):
        fashioniq.gallery(fiq, "dress", kind="all")
    for category in ("dress", "shirt"):
        runs.dump(fiq / f"captions/cap.{category}.val.json", [])
    with pytest.raises(UserError, match=r"FashionIQ split 'val' in .* is empty"):
        fashioniq.read(fiq, "val")
    with pytest.raises(UserError, match="no CIRR annotations in"):
        cirr.read(tmp_path / "nothing")
    with pytest.raises(UserError, match="CIRR has no categories"):
        cirr.read(pairs, categories=("a",))
    with pytest.raises(UserError, match=r"no annotation file .*cap.rc2.valid|split.rc2.valid"):
        cirr.read(pairs, "valid")


def triplet(reference, target, query_id="0"):
    return Triplet(reference, target, ("x",), "x", "s", query_id)


def test_image_table_numbers_in_first_seen_order():
    paths = {n: f"{n}.png" for n in "abcd"}
    sets = [TripletSet("s", (triplet("c", "a"), triplet("a", "b"), triplet("", "d")), paths)]
    table = ImageTable.from_sets(sets)
    assert table.names == ("c", "a", "b", "d") and table.rows(["b", "", "c"]).tolist() == [2, -1, 0]
    assert table.fingerprint() == ImageTable.from_sets(sets).fingerprint()
    reordered = [TripletSet("s", (triplet("a", "b"), triplet("c", "d")), paths)]
    assert table.fingerprint() != ImageTable.from_sets(reordered).fingerprint()
    with pytest.raises(UserError, match=r"image 'x' is not in the image table of 4 images"):
        table.rows(["x"])


def test_image_table_with_optimized_images(tmp_path):
    file = tmp_path / "optimized_images.json"
    groups = {"a": 0, "b": 1, "c": 1, "never": 2, "d": 3}
    runs.dump(file, [["a", "b", "never", "d"], ["pa", "pb", "pn", "pd"], groups])
    paths = {n: f"{n}.png" for n in "abcd"}
    sets = [TripletSet("s", (triplet("a", "b"), triplet("c", "d")), paths)]
    table = ImageTable.from_sets(sets, str(file))
    assert len(table) == 3  # "never" is reached by no triplet and would be a constant negative
    assert table.rows("abcd").tolist() == [0, 1, 1, 2]
    more = [TripletSet("s", (triplet("a", "e", "9"),), paths | {"e": "e.png"})]
    with pytest.raises(UserError, match=r"s triplet 9 names image 'e', which is not in .*optimize"):
        ImageTable.from_sets(more, str(file))
    runs.dump(file, [[], [], {}])
    with pytest.raises(UserError, match=r"is empty; the released command line"):
        ImageTable.from_sets(sets, str(file))


def test_triplet_of_an_unknown_image():
    sets = [TripletSet("s", (triplet("a", "b", "dress/3"),), {"a": "a.png"})]
    with pytest.raises(UserError, match=r"s triplet dress/3 names image 'b', which is not in the"):
        ImageTable.from_sets(sets)


def test_inspection_and_dropping(tmp_path):
    for i, name in enumerate(("a", "twin", "b", "cut", "zero")):
        runs.write_image(
            tmp_path / f"{name}.png", (9, 9, 200), seed=0 if name in ("a", "twin") else i
        )
    cut = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(cut[: len(cut) // 2])
    (tmp_path / "zero.png").write_bytes(b"")
    paths = {n: str(tmp_path / f"{n}.png") for n in ("a", "twin", "b", "cut", "zero", "lost")}
    found = inspect_images(paths)
    assert (found.missing, found.empty, found.undecodable) == (["lost"], ["zero"], ["cut"])
    assert found.duplicates == [["a", "twin"]]
    sets = [TripletSet("s", (triplet("a", "b"), triplet("a", "lost")), paths)]
    with pytest.raises(
        UserError, match=r"3 of 6 images cannot be used .*cut.png .*zero.png .*lost.png"
    ):
        drop_missing(sets, "error")
    kept, dropped = drop_missing(sets, "drop")
    assert dropped == {"s": 1} and [t.target for t in kept[0].triplets] == ["b"]
    with pytest.raises(
        UserError, match=r"no triplet is left after dropping 3 images that cannot be used"
    ):
        drop_missing([TripletSet("s", (triplet("a", "lost"),), paths)], "drop")
    with pytest.raises(UserError, match=r"on_missing='skip' is unknown"):
        drop_missing(sets, "skip")
