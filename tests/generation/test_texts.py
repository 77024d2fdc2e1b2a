# SPDX-License-Identifier: Apache-2.0
"""Captions that are there already: every layout of file, and what may be wrong with one."""

import json

import pytest
from PIL import Image

from cir_jax.errors import UserError
from cir_jax.generation.captioners import texts
from tests.datasets.importer_samples import shard
from tests.generation import pictures
from tests.generation.pictures import captions


@pytest.fixture
def root(tmp_path):
    """Six pictures, 05.png the same as 00.png."""
    return pictures.folder(tmp_path / "in", 6)


def given(tmp_path, root, name, content, *changes, workdir="made"):
    """Captions of a file."""
    (tmp_path / name).write_text(content)
    sets = ("caption.captioner=texts", f"caption.file={tmp_path / name}", "caption.model=")
    return captions(tmp_path / workdir, root, *sets, *changes)


ROWS = {f"0{i}.png": f"caption, {i}" for i in range(5)}
ITEMS = ROWS.items()
LAYOUTS = {
    "c.json": ROWS,
    "list.json": [{"image": f"x/{n}", "image_id": n, "caption": [t, "other"]} for n, t in ITEMS],
    "it.json": [{"image_id": n[:2], "image_path": f"/d/{n}", "caption": t} for n, t in ITEMS],
    "c.jsonl": "".join(json.dumps({"image": n, "title": t}) + "\n" for n, t in ITEMS),
    "c.csv": "file_name,alt_text\n" + "".join(f'{n},"{t}"\n' for n, t in ITEMS),
    "c.tsv": "path\ttext\n" + "".join(f"{n}\t{t}\n" for n, t in ITEMS),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(tmp_path, root, name):
    content = LAYOUTS[name] if isinstance(LAYOUTS[name], str) else json.dumps(LAYOUTS[name])
    assert given(tmp_path, root, name, content) == ROWS
    record = pictures.lines(tmp_path / "made" / "captions.jsonl")[0]
    assert record["model"] == str(tmp_path / name) and record["words"] is None
    assert record["prompt"] == "" and record["captioner"] == "texts"


def test_captions_in_shards(tmp_path, root):
    for part in range(5):
        picture = (root / f"0{part}.png").read_bytes()
        members = {f"0{part}.png": picture, f"0{part}.txt": f"caption, {part}".encode()}
        shard(tmp_path / f"{part}.tar", members)
    sets = (f"caption.file={tmp_path}/*.tar", "caption.captioner=texts")
    assert captions(tmp_path / "made", root, *sets) == ROWS
    model = pictures.lines(tmp_path / "made" / "captions.jsonl")[0]["model"]
    assert model.endswith("2.tar and 2 more")


def test_a_key_of_your_own(tmp_path, root):
    content = json.dumps([{"image": n, "caption": "no", "my": {"own": t}} for n, t in ROWS.items()])
    assert given(tmp_path, root, "c.json", content, "caption.text_field=my.own") == ROWS


def test_a_caption_of_a_duplicate_will_do(tmp_path, root):
    rows = {n: t for n, t in ROWS.items() if n != "00.png"} | {"05.png": "of the other"}
    expected = {"00.png": "of the other"} | {n: t for n, t in ROWS.items() if n != "00.png"}
    assert given(tmp_path, root, "c.json", json.dumps(rows)) == expected
    assert given(tmp_path, root, "c.json", json.dumps(rows)) == expected


def test_captions_that_are_missing(tmp_path, root):
    rows = {"01.png": "  ", "02.png": "I'm sorry I", "03.png": "two\nlines", "04.png": "a\ufffd"}
    assert given(tmp_path, root, "c.json", json.dumps(rows)) == {
        "02.png": "I'm sorry I", "03.png": "two lines",  # they are what somebody wrote
    }  # fmt: skip
    listed = pictures.lines(tmp_path / "made" / "captions_refused.jsonl")
    assert {r["image"]: r["problem"] for r in listed} == {
        "00.png": "no caption in the files", "01.png": "no caption in the files",
        "04.png": "broken characters",
    }  # fmt: skip
    with pytest.raises(UserError, match=r"c.json: no caption of any of the 6 images, such as '00"):
        given(tmp_path, root, "c.json", '{"00.png": ""}')


def test_a_file_that_was_corrected_is_read_again(tmp_path, root):
    """What an earlier run noted is no reason to train on old captions."""
    given(tmp_path, root, "c.json", json.dumps(ROWS))
    before = (tmp_path / "made" / "captions.jsonl").read_bytes()
    assert given(tmp_path, root, "c.json", json.dumps(ROWS)) == ROWS
    assert (tmp_path / "made" / "captions.jsonl").read_bytes() == before
    corrected = ROWS | {"01.png": "corrected", "02.png": ""}
    expected = {n: t for n, t in corrected.items() if t}
    assert given(tmp_path, root, "c.json", json.dumps(corrected)) == expected
    assert given(tmp_path, root, "d.json", json.dumps(corrected), "seed=7") == expected
    assert given(tmp_path, root, "c.json", json.dumps(ROWS)) == ROWS


def test_unknown_images(tmp_path, root):
    content = json.dumps(ROWS | {"6.png": "of nothing"})
    message = r"c.json: 6.png: image '6.png' is not among the 6 images; .*caption.unknown=ignore"
    with pytest.raises(UserError, match=message):
        given(tmp_path, root, "c.json", content)
    assert given(tmp_path, root, "c.json", content, "caption.unknown=ignore") == ROWS
    with pytest.raises(UserError, match=r"caption.unknown='skip' is unknown; use error or ignore"):
        given(tmp_path, root, "c.json", content, "caption.unknown=skip")
    # An image that cannot be read is not unknown.
    (root / "04.png").write_bytes(b"x")
    found = given(tmp_path, root, "c.json", json.dumps(ROWS), "data.on_missing=drop")
    assert sorted(found) == ["00.png", "01.png", "02.png", "03.png"]


@pytest.mark.parametrize(("policy", "text"), [("first", "caption, 1"), ("last", "second")])
def test_second_captions(tmp_path, root, policy, text):
    rows = [*ROWS.items(), ("01", "second"), ("02.png", ROWS["02.png"])]
    content = "".join(json.dumps({"image": n, "caption": t}) + "\n" for n, t in rows)
    message = r"c.jsonl:6: image '01.png' has the caption 'caption, 1' in .*c.jsonl:2, and 'second'"
    with pytest.raises(UserError, match=message):
        given(tmp_path, root, "c.jsonl", content)
    change = f"caption.duplicates={policy}"
    assert given(tmp_path, root, "c.jsonl", content, change) == ROWS | {"01.png": text}
    with pytest.raises(UserError, match=r"caption.duplicates='all' is unknown; use error, first"):
        given(tmp_path, root, "c.jsonl", content, "caption.duplicates=all")


def test_ambiguous_and_missing_files(tmp_path, root):
    Image.fromarray(pictures.pixels(5)).save(root / "01.jpg")
    with pytest.raises(UserError, match=r"image '01' may be 01.jpg or 01.png; write the suffix"):
        given(tmp_path, root, "c.json", '{"01": "x"}')
    with pytest.raises(UserError, match=r"caption.file is empty; captioner texts needs"):
        captions(tmp_path / "made", root, "caption.captioner=texts")
    section = pictures.config(tmp_path, root).rewrite
    with pytest.raises(UserError, match="looks captions up; it cannot rewrite texts"):
        texts.Captioner.from_config(section, 0, [])


def test_lists_bring_their_captions(tmp_path):
    members = {}
    for i in range(4):
        Image.fromarray(pictures.pixels(i % 3)).save(tmp_path / "p.png")
        members |= {f"{i}.png": (tmp_path / "p.png").read_bytes(), f"{i}.txt": b"text %d" % i}
    shard(tmp_path / "0.tar", members)
    sets = (f"data.lists={tmp_path}/0.tar",)
    assert captions(tmp_path / "made", "", *sets, recipe="list") == {
        str(i): f"text {i}" for i in range(3)
    }
    counting = pictures.Counting(tmp_path)  # or a model looks at what is in the shards
    found = captions(tmp_path / "other", "", *sets, *counting.sets, recipe="list")
    assert found["2"] == "a picture of 2" and len(counting.asked()) == 3
