# SPDX-License-Identifier: Apache-2.0
"""Step one: which images are the same, how often they are opened, and how many are in memory."""

import itertools
import json
import re
import threading
import weakref

import numpy as np
import pytest
from PIL import Image

from cir_jax import config
from cir_jax.data import pixels as images
from cir_jax.data.image_table import ImageTable
from cir_jax.data.screening import DECODE, scan
from cir_jax.data.triplets import Triplet, TripletSet
from cir_jax.datasets.importing.shards import tar
from cir_jax.datasets.records import RecordImage
from cir_jax.datasets.shards import place
from cir_jax.errors import UserError
from cir_jax.generation import dedupe, image_hashes
from cir_jax.generation.images import Pool
from tests.datasets.importer_samples import shard
from tests.generation import pictures
from tests.generation.pictures import deduped as run


@pytest.fixture
def opened(monkeypatch):
    """The sources that are opened from now on."""
    sources = []

    def open_image(source, loading):
        sources.append(str(source))
        return images.open_image(source, loading)

    monkeypatch.setattr(image_hashes, "open_image", open_image)
    return sources


def odd_set(root):
    """name -> file of pictures of all kinds, many of them the same."""
    root.mkdir()
    color, grey = Image.fromarray(pictures.pixels(0)), Image.fromarray(pictures.pixels(1)[..., 0])
    few = Image.fromarray(pictures.pixels(2) // 128 * 255)  # eight colours
    alpha = color.convert("RGBA")
    alpha.putalpha(grey)
    made = {
        "color.png": color, "color.webp": color, "alpha.png": alpha, "color.jpg": color,
        "grey.png": grey, "grey-rgb.png": grey.convert("RGB"), "grey-alpha.png": grey.convert("LA"),
        "grey.jpg": grey, "few.png": few, "palette.png": few.quantize(8),
        "bits.png": grey.point(lambda v: 255 * (v > 99)).convert("1"),
        "bits-grey.png": grey.point(lambda v: 255 * (v > 99)), "deep.png": grey.convert("I;16"),
        "wide.png": Image.new("RGB", (6, 4), "red"), "high.png": Image.new("RGB", (4, 6), "red"),
        "wide-again.png": Image.new("P", (6, 4), 1), "almost.png": color.copy(),
    }  # fmt: skip
    made["wide-again.png"].putpalette([0, 0, 0, 255, 0, 0])
    made["almost.png"].putpixel((11, 8), (1, 2, 3))
    for name, image in made.items():
        image.save(root / name, **({"lossless": True} if name.endswith("webp") else {}))
    # A JPEG shows other pixels than what it was made of; a PNG of them shows the same.
    for name in ("color", "grey"):
        Image.open(root / f"{name}.jpg").save(root / f"{name}-of-jpg.png")
    return {f.name: str(f) for f in sorted(root.iterdir())}


def naive(paths, loading):
    """Groups by comparing each picture with every other."""
    opened = {n: images.open_image(p, loading) for n, p in paths.items()}
    arrays = {n: np.asarray(image.convert("RGB")) for n, image in opened.items()}
    groups = []
    for name, array in arrays.items():
        same = (g for g in groups if np.array_equal(arrays[g[0]], array))
        group = next(same, None)
        if group is None:
            groups.append([name])
        else:
            group.append(name)
    return groups


@pytest.mark.parametrize("name", images.LOADINGS)
def test_groups_are_those_of_comparing_all_pixels(tmp_path, name):
    paths = odd_set(tmp_path / "odd")
    pool, groups = run(paths, tmp_path / "made", f"data.loading={name}")
    expected = naive(paths, images.Loading(name))
    assert [list(group) for group in groups.members] == expected
    assert 1 < max(map(len, expected)) and len(expected) > 5
    # Sixteen bits are cut at 255, and transparency is dropped, only as published runs did.
    released = name == "released"
    assert (groups.first("grey.png") == groups.first("deep.png")) == released
    assert (groups.first("color.png") == groups.first("alpha.png")) == released
    assert pool.paths == paths and groups.first("grey-rgb.png") == groups.first("grey.png")
    assert groups.first("wide.png") != groups.first("high.png")


def test_a_large_image_in_pieces():
    large = Image.new("RGB", (2400, 2400), (9, 8, 7))  # over 16 MiB, which Pillow cuts up
    same, other = large.convert("RGBA"), large.copy()
    other.putpixel((2399, 2399), (9, 8, 6))
    assert (
        image_hashes.pixel_hash(large)
        == image_hashes.pixel_hash(same)
        != image_hashes.pixel_hash(other)
    )


def test_files_of_the_released_project(tmp_path):
    """Golden: ids in first-seen order, groups by their first member, all names in the last part."""
    order = [("b", 0), ("a", 1), ("c", 0), ("d", 2), ("e", 1), ("f", 0)]
    for name, seed in order:
        Image.fromarray(pictures.pixels(seed)).save(tmp_path / f"{name}.png")
    paths = {name: str(tmp_path / f"{name}.png") for name, _ in order}
    _, groups = run(paths, tmp_path / "made")
    assert json.loads((tmp_path / "made/same_image_list.json").read_text()) == [
        [0, 2, 5], [1, 4], [3]
    ]  # fmt: skip
    assert json.loads((tmp_path / "made/optimized_images.json").read_text()) == [
        ["b", "a", "d"],
        [paths["b"], paths["a"], paths["d"]],
        {"b": 0, "c": 0, "f": 0, "a": 1, "e": 1, "d": 2},
    ]
    triplets = tuple(Triplet(a, b, ("t",), "t", "s", a) for a, b in itertools.pairwise("abcdef"))
    made = tmp_path / "made/optimized_images.json"
    table = ImageTable.from_sets([TripletSet("s", triplets, paths)], str(made))
    assert table.names == ("a", "b", "d")
    assert table.rows("abcdef").tolist() == [0, 1, 1, 2, 0, 1]
    assert dedupe.read_groups(made, paths) == dedupe.Groups(groups.members, groups.of)


def test_a_table_instead_of_comparing(tmp_path, opened):
    paths = {name: f"{name}.png" for name in "abc"}  # no such files
    table = tmp_path / "optimized_images.json"
    table.write_text(json.dumps([["c", "a"], ["?", "?"], {"c": 0, "b": 1, "a": 1, "other": 1}]))
    pool, groups = run(paths, tmp_path / "made", f"dedupe.optimized={table}")
    assert groups.members == (("c",), ("a", "b")) and pool.paths == paths and not opened
    # What lies in the work folder is of this run, whatever lay there.
    assert json.loads((tmp_path / "made/same_image_list.json").read_text()) == [[0, 1], [2]]
    assert json.loads((tmp_path / "made/optimized_images.json").read_text())[0] == ["c", "a"]


def test_the_names_of_a_table_stand_for_their_groups(tmp_path):
    """Whatever our order is: captions, pairs and draws of the released files go by their names."""
    table = tmp_path / "optimized_images.json"
    table.write_text(json.dumps([["c", "b"], ["?", "?"], {"c": 0, "b": 1, "a": 1, "d": 1}]))
    paths = {name: f"{name}.png" for name in "abcd"}
    groups = dedupe.read_groups(table, paths)
    assert groups.members == (("c",), ("b", "a", "d")) and groups.first("d") == "b"
    del paths["b"]  # not in this set: then the first that is
    assert dedupe.read_groups(table, paths).members == (("c",), ("a", "d"))


def test_a_list_of_numbers_instead_of_comparing(tmp_path, opened):
    """Three groups as well: a table has three entries too, but no list as its third."""
    paths = {name: f"{name}.png" for name in "abcd"}
    file = tmp_path / "same_image_list.json"
    file.write_text("[[0, 2], [1], [3]]")
    _, groups = run(paths, tmp_path / "made", f"dedupe.optimized={file}")
    assert groups.members == (("a", "c"), ("b",), ("d",)) and not opened
    assert json.loads((tmp_path / "made/same_image_list.json").read_text()) == [[0, 2], [1], [3]]
    for content in (
        "[[0, 2], [1]]",
        "[[0, 2], [1], [3, 3]]",
        '[["a"], [1], [2], [3]]',
        "[[0], [9]]",
    ):
        file.write_text(content)
        with pytest.raises(UserError, match=r"groups \d numbers, and there are 4 images"):
            dedupe.read_groups(file, paths)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([[], [], {}], "is no optimized_images.json: expected .*not empty"),
        ([1, 2], "is no optimized_images.json"),
        ([[], [], {"a": 0, "b": "1"}], "id of image 'b' is '1', no number"),
        ([[], [], {"a": 0}], "lacks 1 of 2 images, 'b' the first; set dedupe.optimized to nothing"),
    ],
)
def test_bad_tables(tmp_path, content, message):
    (tmp_path / "t.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        dedupe.read_groups(tmp_path / "t.json", {"a": "a.png", "b": "b.png"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("dedupe.near=64", "dedupe.near=64 is out of range; .* at most 63"),
        ("data.on_missing=skip", "use error or"),
    ],
)
def test_bad_settings(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        run({}, tmp_path, change)


@pytest.mark.parametrize("count", [40, 160])
def test_as_many_images_in_memory_as_threads(tmp_path, monkeypatch, count):
    file = str(tmp_path / "a.png")
    Image.fromarray(pictures.pixels(0, 64, 64)).save(file)
    lock, alive, most, total = threading.Lock(), 0, 0, 0

    def gone():
        nonlocal alive
        with lock:
            alive -= 1

    def open_image(source, loading):
        nonlocal alive, most, total
        image = images.open_image(source, loading)
        weakref.finalize(image, gone)
        with lock:
            alive, total = alive + 1, total + 1
            most = max(most, alive)
        return image

    monkeypatch.setattr(image_hashes, "open_image", open_image)
    paths = {str(i): file for i in range(count)}
    found = image_hashes.hash_images(paths, tmp_path / "hashes.jsonl", perceptual=True, threads=3)
    assert (
        total == count and len(set(found.pixels.values())) == 1 and len(found.perceptual) == count
    )
    assert 1 <= most <= 3 and alive == 0


def test_what_was_looked_at_is_not_opened_again(tmp_path, opened):
    root, journal = pictures.folder(tmp_path / "in", 40), tmp_path / "hashes.jsonl"
    paths = {f.name: str(f) for f in sorted(root.iterdir())}
    first = image_hashes.hash_images(paths, journal)
    assert sorted(opened) == sorted(paths.values())
    content = journal.read_bytes()
    assert [r["image"] for r in pictures.lines(journal)] == list(paths)
    # A kill in the middle of a line.
    cut = b"".join(content.splitlines(keepends=True)[:25])
    journal.write_bytes(cut + b'{"image": "25.p')
    opened.clear()
    assert image_hashes.hash_images(paths, journal) == first and journal.read_bytes() == content
    assert sorted(opened) == sorted(paths.values())[25:]
    opened.clear()
    assert image_hashes.hash_images(paths, journal) == first and opened == []
    # Perceptual hashes were not made: all are opened once more.
    assert (
        len(image_hashes.hash_images(paths, journal, perceptual=True).perceptual)
        == len(opened)
        == 40
    )
    opened.clear()
    assert image_hashes.hash_images(paths, journal).pixels == first.pixels and opened == []


def test_a_replaced_file_is_looked_at_again(tmp_path, opened):
    paths = {f.name: str(f) for f in sorted(pictures.folder(tmp_path / "in").iterdir())}
    _, groups = run(paths, tmp_path / "made")
    assert groups.first("11.png") == "00.png"
    opened.clear()
    Image.fromarray(pictures.pixels(5, 3, 7)).save(paths["11.png"])
    _, groups = run(paths, tmp_path / "made")
    assert opened == [paths["11.png"]] and groups.first("11.png") == "11.png"


def packed(path, seeds):
    """name -> image in a shard of pictures."""
    files = {}
    for i, seed in enumerate(seeds):
        Image.fromarray(pictures.pixels(seed)).save(path.with_suffix(".png"))
        files[f"{i}.png"] = path.with_suffix(".png").read_bytes()
    shard(path, files)
    names = [sample["png"] for _, sample in tar(path.open("rb"), path)]
    return {str(n): place(f"{path}@{n.span}") for n in names}


def test_a_replaced_shard_is_looked_at_again(tmp_path):
    paths = packed(tmp_path / "a.tar", [1, 2, 1])
    assert [len(g) for g in run(paths, tmp_path / "made")[1].members] == [2, 1]
    again = packed(tmp_path / "a.tar", [1, 2, 3])
    assert again.keys() == paths.keys()
    assert [len(g) for g in run(again, tmp_path / "made")[1].members] == [1, 1, 1]
    records = [image_hashes._file_stamp(RecordImage(str(tmp_path), number)) for number in (0, 1)]
    assert (
        records[0] != records[1] and len(records[0]) == 3 and image_hashes._file_stamp(b"x") == []
    )


def test_images_that_cannot_be_used(tmp_path, opened, capsys):
    """By the reasons, the list and the key of training."""
    root = pictures.folder(tmp_path / "in", 7)
    (root / "02.png").write_bytes((root / "02.png").read_bytes()[:60])
    (root / "03.png").write_bytes(b"")
    (root / "06.png").write_bytes(b"<!DOCTYPE html><html>403</html>")
    paths = {f.name: str(f) for f in sorted(root.iterdir())} | {"x": str(root / "gone.png")}
    (tmp_path / "made").mkdir()
    (tmp_path / "made/unreadable.jsonl").write_text("{}\n")  # as earlier versions left it
    counts = r"4 of 8 images cannot be used \(1 cut off, 1 empty \(0 bytes\), 1 missing, 1 no image"
    message = counts + r"\), all listed in .*unusable_images.jsonl: .*02.png \(cut.*missing=drop"
    with pytest.raises(UserError, match=message):
        run(paths, tmp_path / "made")
    listed = pictures.lines(tmp_path / "made/unusable_images.jsonl")
    assert [(r["image"], r["reason"]) for r in listed] == [
        ("02.png", "cut off"), ("03.png", "empty (0 bytes)"), ("06.png", "no image"),
        ("x", "missing"),
    ]  # fmt: skip
    assert listed[2] == {"image": "06.png", "file": paths["06.png"], "reason": "no image",
                         "why": "an HTML page"}  # fmt: skip
    bad = {one["image"]: one["reason"] for one in listed}
    assert {n: p.reason for n, p in scan(paths, DECODE).items()} == bad  # as a training says it
    assert not (tmp_path / "made/optimized_images.json").exists()
    opened.clear()
    pool, groups = run(paths, tmp_path / "made", "data.on_missing=drop")
    assert re.search(counts + ".*they are left out", capsys.readouterr().out)
    assert sorted(groups.of) == sorted(pool.paths) == ["00.png", "01.png", "04.png", "05.png"]
    assert {n: p.reason for n, p in pool.unusable.items()} == bad
    assert pool.left_out == tuple(bad) and not (tmp_path / "made/unreadable.jsonl").exists()
    assert len(opened) == 4  # mended files are found, and good ones not opened again
    del paths["x"]
    for name in ("02.png", "03.png", "06.png"):
        Image.fromarray(pictures.pixels(9)).save(root / name)
    assert len(run(paths, tmp_path / "made")[1].of) == 7
    assert not (tmp_path / "made/unusable_images.jsonl").exists()
    bad = {str(i): str(root / "gone.png") for i in range(3)} | {"00.png": paths["00.png"]}
    with pytest.raises(UserError, match=r"3 of 4 images cannot be used.*pairs need two that can"):
        run(bad, tmp_path / "made", "data.on_missing=drop")


def test_images_whose_groups_come_from_a_file_are_looked_at_before_they_are_opened(tmp_path):
    """The one that stands for its group is broken: the next of it does."""
    root = pictures.folder(tmp_path / "in", 4)
    broken = bytearray((root / "00.png").read_bytes())
    broken[len(broken) // 2] ^= 255  # its ends are those of a whole file
    (root / "00.png").write_bytes(broken)
    paths = {f.name: str(f) for f in sorted(root.iterdir())}
    groups = dedupe.Groups.make([["00.png", "02.png"], ["01.png"], ["03.png"]])
    (made := tmp_path / "made").mkdir()
    for change in ("data.on_missing=error", "data.on_missing=drop"):
        settings = config.load("positives:folder", [f"data.root={root}", change])
        if change.endswith("error"):
            with pytest.raises(UserError, match=r"1 of 4 images cannot be used \(1 undecodable"):
                dedupe.usable(settings, Pool(paths), groups, made)
            continue
        pool, kept = dedupe.usable(settings, Pool(paths), groups, made)
    assert kept.members == (("02.png",), ("01.png",), ("03.png",))
    assert list(pool.paths) == ["01.png", "02.png", "03.png"] and pool.left_out == ("00.png",)
    assert json.loads((made / "same_image_list.json").read_text()) == [[0], [1], [2]]


def test_an_image_without_rgb(tmp_path, monkeypatch):
    Image.fromarray(pictures.pixels(0)).save(tmp_path / "a.png")
    monkeypatch.setattr(image_hashes, "open_image", lambda *_: Image.new("La", (2, 2)))
    found = image_hashes.hash_images({"a": str(tmp_path / "a.png")}, tmp_path / "h.jsonl")
    assert found.problems["a"].reason == "undecodable"
    assert found.problems["a"].why.startswith("has no RGB pixels (conversion from La")


@pytest.mark.parametrize("line", ["{}", '{"image": "00.png", "file": %s}', '{"image": []}'])
def test_a_damaged_record(tmp_path, line):
    paths = {f.name: str(f) for f in pictures.folder(tmp_path / "in", 3).iterdir()}
    image_hashes.hash_images(paths, tmp_path / "h.jsonl")
    stamp = json.dumps(image_hashes._file_stamp(paths["00.png"]))
    content = (tmp_path / "h.jsonl").read_text()
    (tmp_path / "h.jsonl").write_text((line % stamp if "%" in line else line) + "\n" + content)
    with pytest.raises(UserError, match=r"h.jsonl:1 is no record of an image; remove that line"):
        image_hashes.hash_images(paths, tmp_path / "h.jsonl")
