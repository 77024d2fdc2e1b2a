# SPDX-License-Identifier: Apache-2.0
"""Which images there are: folders, data sets, and lists of every kind."""

import gzip
import io
import json

import pytest
from PIL import Image

from cir_jax.datasets import image_lists
from cir_jax.datasets.named_files import NamedFiles
from cir_jax.errors import UserError
from cir_jax.generation import images
from tests import runs
from tests.datasets.importer_samples import shard
from tests.generation import pictures

RECORDS = [{"image_id": "1", "image": "a/1.jpg", "caption": "a, b"},
           {"image_id": "2", "image": "a/2.jpg", "caption": "é\tx"}]  # fmt: skip


def picture(seed=0):
    buffer = io.BytesIO()
    Image.fromarray(pictures.pixels(seed)).save(buffer, "PNG")
    return buffer.getvalue()


def found(*files, root="", key=""):
    """[(name, path, texts)] of lists."""
    expanded = image_lists.expand([str(f) for f in files])
    return [(e.name, str(e.path), e.texts(key)) for e in image_lists.entries(expanded, root)]


def table(tab):
    rows = [list(RECORDS[0]), *([v.replace("\t", " ") for v in r.values()] for r in RECORDS)]
    quote = (lambda v: v) if tab == "\t" else (lambda v: f'"{v}"')
    return "".join(tab.join(map(quote, row)) + "\r\n" for row in rows)


FILES = {
    "l.jsonl": "".join(json.dumps(r) + "\n" for r in RECORDS),
    "l.json": "\ufeff" + json.dumps(RECORDS, indent=1),
    "l.csv": table(","),
    "l.TSV": table("\t"),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("packed", [False, True])
def test_records(tmp_path, name, packed):
    content = FILES[name].encode()
    file = tmp_path / (name + ".gz" * packed)
    file.write_bytes(gzip.compress(content) if packed else content)
    expected = [("1", f"{tmp_path}/a/1.jpg", ("a, b",)), ("2", f"{tmp_path}/a/2.jpg", ("é\tx",))]
    for record, right in zip(found(file), expected, strict=True):
        assert record[:2] == right[:2] and record[2][0].split() == right[2][0].split()
    assert found(file, root="/data")[1][1] == "/data/a/2.jpg"


@pytest.mark.parametrize("packed", [False, True])
def test_a_dictionary(tmp_path, packed):
    file = tmp_path / "c.json"
    runs.dump(file, {"a.jpg": "a text", "b": ["", " x "], "c": None, "d": ""})
    if packed:
        content, file = gzip.compress(file.read_bytes()), tmp_path / "c.json.gz"
        file.write_bytes(content)
        (tmp_path / "cut.json.gz").write_bytes(content[:-9])
        with pytest.raises(UserError, match=r"cut.json.gz is cut or damaged .*; fetch it again"):
            found(tmp_path / "cut.json.gz")
    texts = {name: texts for name, _, texts in found(file)}
    assert texts == {"a.jpg": ("a text",), "b": ("x",), "c": (), "d": ()}


def test_keys(tmp_path):
    """Released captions, crawled sets, and keys that are named; a name may be a number."""
    records = [
        {"image_id": 7, "image_path": "p/7.jpg", "caption": "seven"},
        {"url": "http://u/1", "image": "1.jpg", "caption": {"en": "one", "de": "eins"}},
        {"url": "http://u/2", "image": "2.jpg", "caption.en": "two"},
        {"image_id": "", "name": "n.jpg", "title": "three"},
        {"image": "f.jpg", "text": {"no": "text"}, "mine": {"own": ["four", "five"]}},
    ]
    file = tmp_path / "l.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in records))
    entries = list(image_lists.entries([str(file)]))
    assert [e.name for e in entries] == ["7", "http://u/1", "http://u/2", "n.jpg", "f.jpg"]
    assert [e.path.removeprefix(f"{tmp_path}/") for e in entries] == [
        "p/7.jpg", "1.jpg", "2.jpg", "n.jpg", "f.jpg"
    ]  # fmt: skip
    assert entries[0].texts() == ("seven",) and entries[1].texts("caption.en") == ("one",)
    assert entries[2].texts("caption.en") == ("two",) and entries[3].texts() == ("three",)
    assert entries[4].texts("mine.own") == ("four", "five")
    with pytest.raises(UserError, match=r"l.jsonl:2: .*is no text"):
        entries[1].texts()
    with pytest.raises(UserError, match=r"l.jsonl:1 has no 'mine.own'; it has: image_id, image_p"):
        entries[0].texts("mine.own")


def test_shards(tmp_path):
    members = {
        "x/1.png": picture(1), "x/1.txt": b" one \n", "x/1.json": b'{"caption": "uno", "n": 1}',
        "2.txt": b"no picture", "./3.JPG": picture(3), "4.png": picture(4), "4.cls": b"7",
        "4.json": b'{"caption": ["", "four"]}',
    }  # fmt: skip
    file = shard(tmp_path / "0.tar", members)
    entries = list(image_lists.entries([str(file)]))
    assert [(e.name, e.texts()) for e in entries] == [
        ("x/1", ("uno",)),
        ("3", ()),
        ("4", ("four",)),
    ]
    assert entries[0].texts("text") == ("one",)
    for entry, seed in zip(entries, (1, 3, 4), strict=True):
        assert entry.path.read_bytes() == picture(seed)
        assert str(entry.path).startswith(f"{file}@")


BAD = {
    "no name": ("l.jsonl", '{"caption": "x"}\n', "l.jsonl:1 names no image; it has: caption, and"),
    "no JSON": ("l.jsonl", '{"image": "a"}\n{"image": \n', r"l.jsonl:2: no JSON .*take it out"),
    "cut": ("l.json", '[{"image": "a"}, {"ima', r"l.json:2 ends too early: the file is cut"),
    "columns": ("l.csv", "image,caption\na,b,c\n", r"l.csv:2: 3 columns, expected 2; correct"),
    "header": ("l.tsv", "a red dress\thttp://u\nx\ty\n", r"l.tsv:1: none of the columns 'a red"),
    "another kind": (
        "l.csv",
        "image|caption\na|b\n",
        r"no table: its first line, 'image\|caption'",
    ),
    "none": ("l.json", "image|caption\na|b\n", r"l.json is no JSON"),
    "empty": ("l.jsonl", "", r"l.jsonl is empty"),
    "number": ("l.json", '{"a.jpg": 7}', r"l.json: a.jpg: 7 is no text"),
    "no dictionary": ("l.json", '{"a.jpg": ', r"l.json is no JSON"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_lists(tmp_path, name):
    file, content, message = BAD[name]
    (tmp_path / file).write_text(content)
    with pytest.raises(UserError, match=message):
        found(tmp_path / file)


def test_bad_shards(tmp_path):
    whole = shard(tmp_path / "a.tar", {f"{i}.png": picture(i) for i in range(9)}).read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[: 3 * 1024 + 200])  # in the header of a member
    with pytest.raises(UserError, match=r"a.tar is cut or damaged after"):
        found(tmp_path / "a.tar")
    (tmp_path / "a.tar").write_bytes(gzip.compress(whole))
    with pytest.raises(UserError, match="is in a compressed shard, where no image is found"):
        found(tmp_path / "a.tar")
    shard(tmp_path / "a.tar", {"1.a.png": picture(), "1.b.png": picture()})
    with pytest.raises(UserError, match=r"a.tar:1 holds 2 images .*up to the first dot"):
        found(tmp_path / "a.tar")
    for content in (b"[1]", b"{"):
        shard(tmp_path / "a.tar", {"1.png": picture(), "1.json": content})
        with pytest.raises(UserError, match=r"the .json of a/1.png is no JSON object"):
            found(tmp_path / "a.tar")


def test_which_files(tmp_path):
    for name in ("b.jsonl", "a.csv", "notes.txt", "c.tar"):
        (tmp_path / name).write_text("")
    every = [str(tmp_path / n) for n in ("a.csv", "b.jsonl", "c.tar")]
    assert image_lists.expand([str(tmp_path)]) == every
    assert image_lists.expand([str(tmp_path / "c.tar"), str(tmp_path / "*.[jct]*[lrv]")]) == [
        every[2], *every[:2]
    ]  # fmt: skip
    (tmp_path / "c_stats.json").write_text("{}")  # as img2dataset writes
    (tmp_path / "folder.json").mkdir()  # is none
    assert image_lists.expand([str(tmp_path)]) == every
    (tmp_path / "[1].json").write_text("")
    assert image_lists.expand([str(tmp_path / "[1].json")]) == [str(tmp_path / "[1].json")]
    for name in ("gone.csv", "gone/*.csv", "fold*.json"):
        with pytest.raises(UserError, match=r"is no file, and no folder with .json, .jsonl"):
            image_lists.expand([str(tmp_path / name)])
    with pytest.raises(UserError, match=r"notes.txt is none of .*; convert it to .jsonl"):
        image_lists.expand([str(tmp_path / "notes.txt")])


def pool(root, *changes, recipe="folder"):
    return images.read(pictures.config("made", root, *changes, recipe=recipe))


def test_a_folder(tmp_path):
    root = pictures.folder(tmp_path / "in", 3)
    for name in ("b/x.JPG", "images/y.png", "a.png/z.webp"):
        runs.write_image((root / name).with_suffix(".png"), (9, 9, 9))
        (root / name).with_suffix(".png").rename(root / name)
    (root / "notes.txt").write_text("")
    found = pool(root)
    assert list(found.paths) == [
        "00.png", "01.png", "02.png", "a.png/z.webp", "b/x.JPG", "images/y.png"
    ]  # fmt: skip
    assert found.home == str(root) and found.paths["b/x.JPG"] == str(root / "b/x.JPG")
    # The neutral layout: known by a file of it, or by images nowhere else.
    (root / "images" / "w.png").write_bytes(picture())
    (root / "val.jsonl").write_text("")
    neutral = {n: str(root / "images" / n) for n in ("w.png", "y.png")}
    assert pool(root).paths == neutral and pool(root).home == str(root / "images")
    (tmp_path / "other").mkdir()
    (root / "images").rename(tmp_path / "other" / "images")
    assert list(pool(tmp_path / "other").paths) == ["w.png", "y.png"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("data.root=",), "data.root is empty"),
        (("data.root=/no/such/folder",), "data.root=/no/such/folder is no folder"),
        (("data.images=al",), r"data.images='al' is unknown.*Did you mean 'all'"),
        (("data.images=triplets",), "data.name=folder has no annotated triplet; set all"),
        (("data.threads=0",), "data.threads=0 is out of range"),
        (("pair.references_only=True",), "has no annotated triplet, which pair.references_only"),
        (("data.name=list",), "data.lists is empty; set it to .json"),
        (("data.name=fashionq",), "Did you mean 'fashioniq'"),
    ],
)
def test_bad_settings(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        pool(pictures.folder(tmp_path / "in", 3), *changes)


def test_too_few_or_odd_images(tmp_path):
    root = pictures.folder(tmp_path / "in", 2)
    (root / "01.png").unlink()
    with pytest.raises(UserError, match=r"1 image\(s\) in .*in; pairs need two or more"):
        pool(root)
    (root / b"\xff.png".decode(errors="surrogateescape")).write_bytes(picture())
    with pytest.raises(UserError, match=r"the name of image '\\udcff.png' is no UTF-8; rename"):
        pool(root)


def test_lists_as_images(tmp_path):
    shard(tmp_path / "0.tar", {"1.png": picture(1), "1.txt": b"one", "2.png": picture(2)})
    file = tmp_path / "l.jsonl"
    # What a record says of its text does not matter here.
    file.write_text('{"image_id": "3", "image": "3.png", "text": {"a": 1}}\n')
    sources = f"data.lists={tmp_path}"
    found = pool("", sources, recipe="list")
    assert list(found.paths) == ["1", "2", "3"] and found.paths["3"] == str(tmp_path / "3.png")
    assert found.texts == (str(tmp_path / "0.tar"), str(file)) and found.home
    file.write_text('{"url": "http://u", "caption": "x"}\n')
    with pytest.raises(UserError, match=r"l.jsonl:1 names no image file; .* It has: url, caption"):
        pool("", sources, recipe="list")
    file.write_text('{"image_id": "1", "image": "1.png"}\n')
    with pytest.raises(UserError, match=r"l.jsonl:1: image '1' is .*1.png, and .*0.tar@.*before"):
        pool("", sources, recipe="list")


@pytest.fixture
def fiq(tmp_path):
    """12 dresses, of which 6 are shirts too, and 4 images of no triplet."""
    root = runs.write_fashioniq(tmp_path / "fiq", images=12, triplets=4)
    names = [f"B{i:04d}" for i in range(12)]
    runs.dump(root / "image_splits/split.shirt.train.json", [*names[6:], "C0", "C1"])
    runs.dump(root / "captions/cap.dress.train.json", [
        {"candidate": names[3], "target": names[1], "captions": ["a", "b"]},
        {"candidate": names[3], "target": names[8], "captions": ["a", "b"]},
    ])  # fmt: skip
    runs.dump(root / "captions/cap.shirt.train.json", [
        {"candidate": names[8], "target": names[6], "captions": ["a", "b"]},
    ])  # fmt: skip
    return root, names


def test_a_data_set(fiq):
    root, names = fiq
    triplets = pool(root, recipe="zs-fashioniq")
    assert list(triplets.paths) == [names[i] for i in (3, 1, 8, 6)]  # as they are first seen
    assert triplets.references() == {names[3], names[8]} and triplets.home == ""
    assert (names[3], names[8]) in triplets.known()
    # The last category in the order dress, shirt, toptee.
    assert [triplets.categories[n] for n in triplets.paths] == ["dress", "dress", "shirt", "shirt"]
    split = ("data.images=split", "data.name=fashioniq")
    assert list(pool(root, *split).paths) == [*names, "C0", "C1"]
    one = pool(root, *split, "data.categories=shirt")
    assert list(one.paths) == [*names[6:], "C0", "C1"] and set(one.categories.values()) == {"shirt"}
    assert len(one.triplets) == 1 and triplets.texts == ()
    strange = {"candidate": "Z9", "target": names[6], "captions": ["a", "b"]}  # of another split
    runs.dump(root / "captions/cap.shirt.train.json", [strange])
    for exclude in (True, False):  # which does not change what there is
        found = pool(root, *split, f"pair.exclude_known={exclude}")
        assert len(found.paths) == 14 and bool(found.triplets) == exclude
    for file in (root / "captions").glob("cap.*.train.json"):
        file.unlink()
    with pytest.raises(UserError, match=r"no FashionIQ annotations .*data.images=split, pair.ref"):
        pool(root, *split)
    none = ("pair.exclude_known=False",)
    assert len(pool(root, *split, *none).paths) == 14


def test_cirr_has_no_categories(tmp_path):
    root = runs.write_cirr(tmp_path / "cirr", images=8, triplets=3)
    found = pool(root, "data.images=split", "data.name=cirr")
    assert len(found.paths) == 8 and found.categories == {} and len(found.triplets) == 3
    with pytest.raises(UserError, match=r"'cirr' has no categories; leave data.categories out"):
        pool(
            root, "data.images=split", "data.name=cirr", "data.categories=dress",
            "pair.exclude_known=False",
        )  # fmt: skip


def test_names_are_files(tmp_path):
    runs.write_image(tmp_path / "a" / "b.png", (1, 2, 3))
    runs.write_image(tmp_path / "a.d.png", (1, 2, 3))
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "link.jpg").symlink_to(tmp_path / "a" / "b.png")
    found = NamedFiles.below(tmp_path)
    assert list(found.files) == ["a/b.png", "a.d.png", "link.jpg"]
    assert found.name("a/b", "x") == "a/b.png" and found.name("a/b.jpg", "x") == "a/b.jpg"
    assert NamedFiles.below(tmp_path / "gone").files == {}
