# SPDX-License-Identifier: Apache-2.0
"""What a run trains on: how many annotated triplets, which generated ones, and whose images."""

import json
import shutil

import pytest

from cir_jax.data.pixels import Crop
from cir_jax.datasets import generated
from cir_jax.errors import UserError
from tests import runs

RELEASED = "data.generated=captions/cap.extend_clip.train.json"


@pytest.fixture
def fiq(tmp_path):
    return runs.write_fashioniq(tmp_path / "fiq")


def keys(sets):
    return [(t.query_id, t.texts) for one in sets for t in one.triplets]


def lines(path, *records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return str(path)


def record(reference="B0000", target="B0001", text="red", **more):
    return {"reference": reference, "target": target, "text": text, **more}


def read(*files, known=(), root=".", **options):
    return generated.read(files, dict(known), root, **options)


def test_annotated_triplets(fiq):
    everything = keys(runs.load("fashioniq", fiq))
    assert len(everything) == 32
    chosen = {n: keys(runs.load("fashioniq", fiq, f"data.annotated={n}")) for n in (1, 7, 20, 32)}
    for n, found in chosen.items():
        assert len(found) == n
        assert found == [t for t in everything if t in found]  # in their order
    assert set(chosen[1]) < set(chosen[7]) < set(chosen[20]) < set(chosen[32]) == set(everything)
    assert chosen[7] != everything[:7]
    assert chosen[7] == keys(runs.load("fashioniq", fiq, "data.annotated=7"))
    assert chosen[7] != keys(runs.load("fashioniq", fiq, "data.annotated=7", "seed=3"))
    with pytest.raises(UserError, match=r"data.annotated=33, but there are 32 annotated triplets"):
        runs.load("fashioniq", fiq, "data.annotated=33")
    with pytest.raises(UserError, match=r"data.annotated=-2 is out of range; it must be at least"):
        runs.load("fashioniq", fiq, "data.annotated=-2")
    with pytest.raises(UserError, match=r"data.annotated=0 leaves no triplet; set data.generated"):
        runs.load("fashioniq", fiq, "data.annotated=0")


def test_a_choice_may_leave_a_source_out(tmp_path):
    runs.write_image(tmp_path / "images" / "a.png", (9, 9, 9))
    runs.write_image(tmp_path / "images" / "b.png", (9, 90, 9))
    many = [record("a", "b", f"x{n}", source="many") for n in range(30)]
    lines(tmp_path / "train.jsonl", record("a", "b", "y", source="one"), *many)
    assert [s.name for s in runs.load("folder", tmp_path)] == ["one", "many"]
    (left,) = runs.load("folder", tmp_path, "data.annotated=2")
    assert left.name == "many" and len(left.triplets) == 2


def test_generated_alone_need_no_annotations(fiq):
    shutil.rmtree(fiq / "captions", ignore_errors=False)
    made = lines(fiq / "made.jsonl", record())
    (one,) = runs.load("fashioniq", fiq, "data.annotated=0", f"data.generated={made}")
    assert len(one.triplets) == 1 and one.paths["B0000"].endswith("images/B0000.png")


def test_several_files(fiq, tmp_path):
    """One set per source, over all files, annotated ones first."""
    more = lines(
        tmp_path / "more.jsonl", record(source="megapairs"), record(), record(source="megapairs")
    )
    sets = runs.load("fashioniq", fiq, f"{RELEASED},{more}")
    assert [(s.name, len(s.triplets)) for s in sets] == [
        ("fashioniq", 32), ("generated", 9), ("megapairs", 2)
    ]  # fmt: skip
    swapped = runs.load("fashioniq", fiq, f"data.generated={more},{RELEASED.split('=')[1]}")
    assert [s.name for s in swapped] == ["fashioniq", "megapairs", "generated"]
    with pytest.raises(UserError, match=r"no annotation file .*fiq/gone.json"):
        runs.load("fashioniq", fiq, f"{RELEASED},gone.json")
    with pytest.raises(UserError, match=r"no file .*fiq/gone.jsonl"):
        runs.load("fashioniq", fiq, f"{RELEASED},gone.jsonl")
    lines(fiq / "empty.jsonl")
    with pytest.raises(UserError, match=r"empty.jsonl holds no triplet; make it anew, or take it"):
        runs.load("fashioniq", fiq, f"{RELEASED},empty.jsonl")


def test_folder_of_images(fiq, tmp_path):
    """Names that the data set lacks are looked up in one folder, those it has are not."""
    runs.write_image(tmp_path / "coco" / "deep" / "9.png", (9, 9, 200))
    made = lines(tmp_path / "made.jsonl", record("deep/9.png", "B0003"))
    changes = ("data.annotated=0", f"data.generated={made}")
    (one,) = runs.load("fashioniq", fiq, *changes, f"data.generated_images={tmp_path / 'coco'}")
    assert one.paths["deep/9.png"] == str(tmp_path / "coco" / "deep" / "9.png")
    assert one.paths["B0003"] == str(fiq / "images" / "B0003.png")
    (one,) = runs.load("fashioniq", fiq, *changes)
    assert one.paths.keys() == {"B0003"}
    with pytest.raises(UserError, match=r"generated triplet .*made.jsonl:1 names image 'deep/9.pn"):
        runs.set_up(runs.tiny(tmp_path / "run", fiq, *changes))
    cc = tmp_path / "cc.json"
    runs.dump(cc, [{"reference": "deep/9.png", "target": "deep/9.png", "captions": ["x"],
                    "reference_name": "u", "target_name": "u"}])  # fmt: skip
    (one,) = read(str(cc), root=tmp_path / "coco")
    assert one.paths == {"deep/9.png": str(tmp_path / "coco/deep/9.png")}
    (one,) = read(str(cc), root="/nowhere", images=tmp_path / "coco")
    assert one.paths == {"deep/9.png": str(tmp_path / "coco/deep/9.png")}


def test_one_name_of_two_pictures_is_refused(fiq, tmp_path):
    """Generated triplets of two folders that both have a 0.png must not train on one of them."""
    for n, folder in enumerate("ab"):
        for name in ("0.png", "B0000.png"):
            runs.write_image(tmp_path / folder / name, (60, 60, 60), n)
        lines(
            tmp_path / f"{folder}.jsonl", record("0.png", "B0005", reference_path=f"{folder}/0.png")
        )
    with pytest.raises(UserError, match=r"b.jsonl: image '0.png' is .*/b/0.png, and .*/a/0.png be"):
        read(str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"))
    with pytest.raises(UserError, match=r"'B0000' is .*/a/B0000.png, and .*/images/B0000.png bef"):
        own = record("B0000.png", "B0005", reference_path="a/B0000.png")
        made = lines(tmp_path / "known.jsonl", own)
        runs.load("fashioniq", fiq, f"data.generated={made}")


def test_a_part_of_an_image_is_another_picture(tmp_path):
    runs.write_image(tmp_path / "a.png", (60, 60, 60))
    part = Crop(str(tmp_path / "a.png"), (0, 0, 5, 5))
    made = lines(tmp_path / "made.jsonl", record("a.png", "a.png", reference_path="a.png"))
    with pytest.raises(UserError, match=r"'a.png' is .*/a.png, and .*/a.png box 0, 0, 5, 5 before"):
        read(made, known={"a.png": part})


def test_one_picture_of_two_paths_is_one(fiq, tmp_path):
    """A copy, a link, another way of writing the path, and a path that is no more."""
    runs.write_image(tmp_path / "a" / "0.png", (60, 60, 60))
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    places = ("a/0.png", "copy/0.png", "link/0.png", "a/../a/0.png", "gone/0.png")
    made = [
        lines(tmp_path / f"{n}.jsonl", record("0.png", "B1", source=str(n), reference_path=place))
        for n, place in enumerate(places)
    ]
    sets = read(*made)
    assert len(sets) == 5
    # One path in all sets: the image table takes two for two images.
    assert {one.paths["0.png"] for one in sets} == {str(tmp_path / "a/0.png")}
    shutil.copy(fiq / "images" / "B0000.png", tmp_path / "B0000.png")
    own = lines(tmp_path / "own.jsonl", record(reference_path="B0000.png"))
    human, made = runs.load("fashioniq", fiq, f"data.generated={own}")
    assert made.paths["B0000"] == human.paths["B0000"] == str(fiq / "images" / "B0000.png")


def test_llm_captions_of_json_lines(tmp_path):
    made = lines(
        tmp_path / "made.jsonl", record(meta={"llm_caption": "make it red"}), record(meta={})
    )
    (one,) = read(lines(tmp_path / "one.jsonl", json.loads(open(made).readline())))
    assert one.triplets[0].texts == ("red",)
    with pytest.raises(UserError, match=r"made.jsonl:2 has no 'llm_caption'; it has: nothing"):
        read(made, llm_captions=True)
    (one,) = read(str(tmp_path / "one.jsonl"), llm_captions=True)
    assert (one.triplets[0].texts, one.triplets[0].eval_text) == (("make it red",), "make it red")


@pytest.mark.parametrize(
    "bad, message",
    [
        ({"reference_path": 3}, r"made.jsonl:1: 'reference_path' is 3, expected a path"),
        ({"target_path": ["a"]}, r"made.jsonl:1: 'target_path' is \['a'\], expected a path"),
        ({"path": "a"}, r"made.jsonl:1 has an unknown field 'path'"),
        ({"text": " "}, r"made.jsonl:1 has no text"),
        ({"texts": ["a"]}, r"made.jsonl:1 needs either text or texts, and has both; keep"),
        ({"reference": None}, r"made.jsonl:1: 'reference' is None, expected the name of an image"),
    ],
)
def test_bad_records(bad, message, tmp_path):
    with pytest.raises(UserError, match=message):
        read(lines(tmp_path / "made.jsonl", record() | bad))


@pytest.mark.parametrize(
    "bad, message",
    [
        (3, r"made.json record 0 is a int, expected an object with 'reference'"),
        ({}, r"made.json record 0 has no 'reference'; it has: nothing"),
        ({"candidate": "a", "target": ""}, r"record 0: 'target' is '', expected the name of an im"),
        ({"candidate": "a", "target": "b", "captions": []}, r"record 0 has no text"),
        ({"candidate": "a", "target": "b", "captions": [5]}, r"record 0: 5 is no text"),
    ],
)
def test_bad_released_records(bad, message, tmp_path):
    runs.dump(tmp_path / "made.json", [bad])
    with pytest.raises(UserError, match=message):
        read(str(tmp_path / "made.json"))


def test_a_reader_without_images(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def read(*_): return []\ndef gallery(*_): return [], {}\n")
    with pytest.raises(UserError, match=r"mine.py defines no images\(root, split\), which gener"):
        runs.load("fashioniq", tmp_path, f"data.name={file}", "data.generated=x.jsonl")
