# SPDX-License-Identifier: Apache-2.0
"""`cir-jax prepare`: a folder of images and a table of titles become a data set."""

import csv
import json
import shlex
import shutil
from pathlib import Path

import pytest

from cir_jax.data.annotations import read_lines
from cir_jax.datasets.readers import folder as reader
from cir_jax.errors import UserError
from cir_jax.generation import prepared
from cir_jax.generation.catalogue import Item
from cir_jax.main import main
from tests import runs

KINDS = ("shoe", "hat", "bag", "coat", "scarf", "belt")


def write_table(file, rows, header=("image", "title", "product")):
    with open(file, "w", newline="") as out:
        csv.writer(out).writerows([header, *rows])


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """Six products in four colours, and what a folder has besides; titles.csv."""
    monkeypatch.setenv("CIR_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    rows = []
    for product, kind in enumerate(KINDS):
        for color, rgb in runs.COLORS.items():
            name = f"{kind}s/{color}.jpg"
            runs.write_image(Path("shop") / name, rgb, len(rows))
            rows.append((name, f"a {color}  {kind}", f"P{product}"))
    Path("shop/zz").mkdir()
    shutil.copy("shop/shoes/red.jpg", "shop/zz/copy.jpg")
    Path("shop/broken.jpg").write_bytes(b"")
    Path("shop/phone.heic").write_bytes(b"x")
    Path("shop/notes.txt").write_text("x")
    Path("shop/.hidden").write_bytes(b"x")
    shutil.copy("shop/shoes/red.jpg", "shop/IMG_7")
    runs.write_image(Path("shop/untitled.png"), (1, 2, 3))
    rows += [("zz/copy.jpg", "a red hat again", "P1"), ("broken.jpg", "broken", "P2")]
    write_table("titles.csv", rows)
    return rows


def prepare(*flags, out="data"):
    return main(["prepare", "shop", "--titles", "titles.csv", "--out", out, *flags])


def lines(file):
    return [record for _, record in read_lines(file)]


def names(file):
    """Every image that a file of triplets names."""
    keys = ("reference", "target")
    found = {record[key] for record in lines(file) for key in keys if key in record}
    return found | {name for record in lines(file) for name in record.get("targets", ())}


@pytest.mark.parametrize("flags", [(), ("--group", "product"), ("--group", "product", "--copy")])
def test_layout(shop, capsys, flags):
    assert prepare(*flags) == 0
    said = capsys.readouterr().out
    train, val = names("data/train.jsonl"), names("data/val.jsonl")
    gallery = set(Path("data/gallery.txt").read_text().split("\n")[:-1])
    assert val == gallery and not train & gallery
    assert train | gallery == {name for name, *_ in shop[:24]}
    assert {r["reference"] for r in lines("data/train.jsonl")} == train
    assert len(gallery) >= 24 * 0.2
    if "--group" in flags:
        kinds = {Path(name).parts[0] for name in gallery}
        assert len(gallery) == 4 * len(kinds)
    captions = {r["image_id"]: r["caption"] for r in lines("data/captions.jsonl")}
    assert captions["hats/red.jpg"] == "a red hat" and set(captions) == train | gallery
    why = {r["file"]: r["why"] for r in lines("data/left_out.jsonl")}
    assert why["phone.heic"] == ".heic is not read; convert it to .png"
    assert why["untitled.png"] == "no title" and why["notes.txt"] == "no image"
    assert why["IMG_7"] == "JPEG in a file whose name does not end in .jpg; rename it"
    assert why["zz/copy.jpg"] == "the same picture as shoes/red.jpg"
    assert why["broken.jpg"] == "cannot be used: empty (0 bytes)"
    assert why[".hidden"] == "a hidden file"
    assert "left out, no title: 1 (untitled.png)" in said
    assert Path("data/images").is_symlink() is ("--copy" not in flags)
    if "--copy" in flags:
        copied = {p.relative_to("data/images").as_posix() for p in Path("data/images").rglob("*.*")}
        assert copied == train | gallery
    assert set(reader.gallery("data")[1]) == gallery
    assert {t.target for t in reader.captions("data")[0].triplets} == train
    texts = lines("data/val.jsonl")[0]["texts"]
    assert " instead of " in texts[0] and texts[1].startswith("Unlike ")


def test_the_split_follows_pictures_not_names(shop, capsys):
    """Other names, another order: the same pictures are held out. Another seed: others."""
    prepare()
    held = [(Path("data/images") / n).read_bytes() for n in names("data/val.jsonl")]
    Path("shop/bags").rename("shop/zebras")
    moved = [(n.replace("bags/", "zebras/"), *rest) for n, *rest in reversed(shop)]
    write_table("titles.csv", moved)
    assert prepare(out="again") == 0
    again = [(Path("again/images") / n).read_bytes() for n in names("again/val.jsonl")]
    assert sorted(held) == sorted(again)
    assert prepare("--seed", "1", out="other") == 0
    assert names("other/val.jsonl") != names("again/val.jsonl")


def test_nothing_is_overwritten(shop, capsys):
    assert prepare() == 0
    before = {p: p.read_bytes() for p in Path("data").iterdir() if p.is_file()}
    capsys.readouterr()
    assert prepare() == 0
    assert "data (as it was): " in capsys.readouterr().out
    Path("data/val.jsonl").unlink()  # stopped before it was written
    assert prepare() == 0
    assert {p: p.read_bytes() for p in before} == before
    Path("data/train.jsonl").write_text("mine\n")
    assert prepare() == 2
    said = capsys.readouterr().err
    assert "data holds train.jsonl with other content" in said and "--overwrite to replace" in said
    assert prepare("--seed", "1") == 2
    assert Path("data/train.jsonl").read_text() == "mine\n"
    assert {p: p.read_bytes() for p in before if p.name != "train.jsonl"} == {
        p: b for p, b in before.items() if p.name != "train.jsonl"
    }
    assert prepare("--overwrite") == 0
    assert {p: p.read_bytes() for p in before} == before


def test_images_of_one_title_are_all_right(shop):
    rows = [(name, title.replace("grey", "red"), product) for name, title, product in shop]
    write_table("titles.csv", rows)
    assert prepare("--group", "product") == 0
    titles = {r["image_id"]: r["caption"] for r in lines("data/captions.jsonl")}
    several = 0
    for file in ("data/train.jsonl", "data/val.jsonl"):
        side = names(file)
        for record in lines(file):
            right = set(record.get("targets", [record.get("target")]))
            title = titles[min(right)]
            assert right == {n for n in side if titles[n] == title}
            assert titles[record["reference"]] != title
            several += len(right) > 1
    assert several > 3


def changed(rows, *more, drop=0):
    write_table("titles.csv", [*rows[: len(rows) - drop], *more])


ODD = [
    ([("hats/pink.jpg", "x", "P1"), ("hats/red.jpg", "another", "P1")], (),
     ["'hats/pink.jpg' is not among the 27 images", "set --unknown=ignore",
      "'hats/red.jpg' has the caption", "--duplicates to first or last", "to decide:"]),
    ([("shoes/red.jpg", "a red  shoe", "")], ("--group", "product"),
     ["has no 'product', the column of products (--group). It is empty."]),
    ([], ("--group", "produkt"), ["has no 'produkt'", "Did you mean 'product'?"]),
    ([], ("--val", "1.5"), ["--val 1.5 is no share between 0 and 1"]),
    ([], ("--val", "0.99"), ["24 images of pictures are too few to split"]),
    ([], ("--text-field", "name"), ["no 'name'"]),
    ([], ("--titles", "none.csv"), ["none.csv is no file"]),
    ([], ("--out", "shop/data"), ["--out shop/data lies in the folder of the images"]),
]  # fmt: skip


@pytest.mark.parametrize("more, flags, messages", ODD)
def test_odd_tables(shop, capsys, more, flags, messages):
    changed(shop, *more)
    assert prepare(*flags) == 2
    said = capsys.readouterr().err
    for message in messages:
        assert message in said
    assert not Path("data").exists() and not Path("shop/data").exists()


def test_odd_folders(shop, capsys):
    for rows, message in (
        ([], "titles.csv: there is no record, at most a line of column names; add a line for each"),
        ([("a.jpg", "x", "P")], "is not among the 27 images"),
        (shop[:1], "1 image(s) with a title can be used; training and validation need two"),
        ([(n, "thing", p) for n, _, p in shop[:24]], "all 24 images have the title 'thing'"),
    ):
        write_table("titles.csv", rows)
        assert prepare() == 2
        assert message in capsys.readouterr().err
    write_table("titles.csv", [(n, t, "one") for n, t, _ in shop])
    assert prepare("--group", "product") == 2
    assert "all 24 images are of one product, 'one'" in capsys.readouterr().err
    assert main(["prepare", "nowhere", "--titles", "titles.csv", "--out", "data"]) == 2
    assert "nowhere is no folder" in capsys.readouterr().err
    Path("file").write_text("x")
    assert prepare("--threads", "0", "--val", "2", out="file/data") == 2
    said = capsys.readouterr().err
    assert "--threads 0 is below 1" in said and "--val 2.0 is no share" in said
    assert "--out file/data: file is a file and no folder" in said
    assert prepare(out="") == 2
    assert "--out is empty" in capsys.readouterr().err
    Path("empty").mkdir()
    assert main(["prepare", "empty", "--titles", "titles.csv", "--out", "data"]) == 2
    assert "empty holds no image" in capsys.readouterr().err
    assert not Path("data").exists()
    Path("data/images").mkdir(parents=True)
    write_table("titles.csv", shop)
    assert prepare() == 2
    assert "data/images is there and is not shop" in capsys.readouterr().err


def test_tables_without_a_header(shop, capsys):
    write_table("titles.csv", shop[1:], header=shop[0])
    assert prepare() == 2
    said = capsys.readouterr().err
    assert "titles.csv:1: none of the columns 'shoes/red.jpg'" in said.replace("\\", "/")
    assert "names of the columns in the first line" in said and said.count("titles.csv") == 1
    Path("titles.csv").write_text("image\nshoes/red.jpg\n")
    assert prepare() == 2
    said = capsys.readouterr().err
    assert "titles.csv is no table: its first line, 'image', is one column" in said


def test_a_split_that_cannot_be_is_listed_with_the_rest(shop, capsys):
    """Found before any picture is decoded."""
    rows = [(name, "a shoe", product) for name, _, product in shop[:24]]
    write_table("titles.csv", [*rows, ("hats/pink.jpg", "x", "P1")])
    assert prepare() == 2
    said = capsys.readouterr().err
    assert "'hats/pink.jpg' is not among the 27 images" in said
    assert "of the records that can be used, all 24 images have the title 'a shoe'" in said
    assert not list(Path("cache").rglob("hashes.jsonl"))


def test_few_pictures_are_split_or_refused():
    def items(*titles):
        return [Item(f"{i}.png", "", t, str(i), str(i)) for i, t in enumerate(titles)]

    sides = prepared.split(items("a", "b", "c", "d"), 0.2, 0, False)
    assert len(sides.train) == len(sides.val) == 2
    with pytest.raises(UserError, match="too few to split"):
        prepared.split(items("a", "a", "a", "b"), 0.2, 0, False)


def test_the_commands_that_are_printed(shop, capsys):
    """They work, in their order, on a set that is smaller than a batch of the config."""
    changed(shop, drop=18)
    assert prepare() == 0
    said = capsys.readouterr().out.splitlines()
    printed = [shlex.split(line)[1:] for line in said if line.startswith("  cir-jax")]
    assert [command[0] for command in printed] == ["positives", "train", "evaluate"]
    shrink = ["--set", "steps=1", "--set", "data.text_lengths=32", "--set", "data.threads=2"]
    for command in printed:
        assert main([*command, *(shrink if command[0] == "train" else [])]) == 0
    made = lines("data/positives/triplets.jsonl")
    assert len(made) > 4
    held = names("data/val.jsonl")
    assert not {r[k] for r in made for k in ("reference", "target")} & held
    (record, *_) = map(json.loads, open("runs/data/evaluation/rankings.jsonl"))
    assert {*record["ranked"]} == held - {record["reference"]}
    config = json.loads(Path("runs/data/results.json").read_text())["config"]
    assert (config["data"]["name"], config["eval"]["benchmark"]) == ("folder", "folder")


def test_a_name_that_a_terminal_obeys_is_listed_escaped(shop, capsys):
    """It is a stranger's file name."""
    shutil.copy("shop/shoes/red.jpg", "shop/\x1b[31mred.jpg")
    assert prepare() == 0
    said = capsys.readouterr().out
    assert "\\x1b[31mred.jpg" in said
    assert "\x1b" not in said


def test_a_table_that_is_not_utf8_says_how_to_save_it(shop, capsys):
    """The remedy is of the file, whatever the record."""
    Path("titles.csv").write_bytes("image,title\nshoes/red.jpg,né\n".encode("latin-1"))
    assert prepare() == 2
    assert "save the file as UTF-8" in capsys.readouterr().err
