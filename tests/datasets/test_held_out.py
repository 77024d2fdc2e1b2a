# SPDX-License-Identifier: Apache-2.0
"""No picture that is held out is trained on: not by another name, another file, another key."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from cir_jax import config
from cir_jax.data.annotations import read_lines
from cir_jax.data.pixels import NATURAL, open_image
from cir_jax.datasets import loading
from cir_jax.datasets.readers import folder
from cir_jax.errors import UserError
from cir_jax.generation import images
from cir_jax.main import main
from tests import runs

KINDS = ("shoe", "hat", "bag", "coat", "scarf")
COPIES = ("copies/titled.png", "copies/untitled.png", "copies/of_train.png")


def lines(file):
    return [record for _, record in read_lines(file)]


def shown(path):
    return open_image(path, NATURAL).convert("RGB").tobytes()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder, names of train, names that are held out) of what `cir-jax prepare` makes of it.

    shop/copies has further files of two held-out pictures and of one that is trained on, and
    another name of a file of each; free.png has no title and no double. elsewhere/ is a copy of
    the whole folder.
    """
    base = tmp_path_factory.mktemp("held_out")
    rows = []
    for kind in KINDS:
        for color, rgb in runs.COLORS.items():
            runs.write_image(base / "shop" / f"{kind}_{color}.png", rgb, len(rows))
            rows.append((f"{kind}_{color}.png", f"a {color} {kind}"))

    def prepare(out):
        with open(base / "titles.csv", "w", newline="") as file:
            csv.writer(file).writerows([("image", "title"), *rows])
        arguments = [base / "shop", "--titles", base / "titles.csv", "--out", base / out]
        assert main(["prepare", *map(str, arguments)]) == 0
        held = (base / out / "gallery.txt").read_text().split()
        return sorted(name for name, _ in rows[:20] if name not in held), sorted(held)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CIR_JAX_CACHE", str(base / "cache"))
        train, held = prepare("first")
        (base / "shop" / "copies").mkdir()
        for name, copy in zip((*held[:2], train[0]), COPIES, strict=True):
            shutil.copy(base / "shop" / name, base / "shop" / copy)
        for name in (held[2], train[1]):
            (base / "shop" / "copies" / f"same_{name}").hardlink_to(base / "shop" / name)
        runs.write_image(base / "shop" / "free.png", (1, 2, 3), 99)
        rows.append((COPIES[0], "a copy"))
        assert prepare("data") == (train, held)
    shutil.copytree(base / "shop", base / "elsewhere")
    return base, train, held


def test_copies_are_listed(made):
    base, *_ = made
    assert set((base / "data" / "copies.txt").read_text().split()) == set(COPIES)
    why = {record["file"]: record["why"] for record in lines(base / "data" / "left_out.jsonl")}
    assert why["free.png"] == "no title"
    assert all(why[name].startswith("the same picture as ") for name in COPIES)


@pytest.mark.parametrize("more", ["split", "images", "elsewhere"])
def test_unlabelled_images(made, more):
    base, train, held = made
    place = base / "elsewhere" if more == "elsewhere" else more
    changes = ("batch=8", "eval.benchmark=none", f"data.unlabelled={place}")
    loaded = runs.tiny(base / "run", base / "data", *changes, data="folder", stage=2)
    table = runs.set_up(loaded)[1].triplets.images
    assert set(train) <= set(table.names) and table.unlabelled
    assert "free.png" in {Path(name).name for name in table.names}
    seen = {shown(path) for path in table.paths}
    assert seen.isdisjoint(shown(base / "shop" / name) for name in held)


def keyed(base, *changes):
    return runs.tiny(base / "run", base / "data", *changes, data="folder")


def test_captions_of_another_file(made, capsys):
    base, train, held = made
    whole = keyed(base, f"data.captions={base / 'titles.csv'}")
    (pairs,) = loading.load(whole, captions=True)
    assert {t.target for t in pairs.triplets} == set(train)
    said = " ".join("".join(capsys.readouterr()).split())
    assert f"data.captions: {len(held) + 1} of 21 records of 'captions' show images that" in said
    with open(base / "held.csv", "w", newline="") as file:
        csv.writer(file).writerows([("image", "title"), *((name, "x") for name in held)])
    with pytest.raises(UserError, match=r"each of the \d+ records of 'captions' shows an image th"):
        loading.load(keyed(base, f"data.captions={base / 'held.csv'}"), captions=True)


def test_captions_of_the_data_set_itself(tmp_path, capsys):
    """Images are named by their paths there, and not as val.jsonl names them; the keys that the
    message about two captions names are those that decide it."""
    for name in "abcd":
        runs.write_image(tmp_path / "images" / f"{name}.png", (1, 200, 3), seed=ord(name))
    (tmp_path / "val.jsonl").write_text('{"reference": "a", "target": "b", "text": "x"}')
    rows = [{"image": f"images/{name}.png", "text": name} for name in "abccd"]
    rows[2]["text"] = "another"
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    tiny = lambda *changes: runs.tiny(tmp_path / "run", tmp_path, *changes, data="folder")
    with pytest.raises(UserError, match=r"set data.caption_duplicates to first, last or all"):
        loading.load(tiny(), captions=True)
    (pairs,) = loading.load(tiny("data.caption_duplicates=last"), captions=True)
    assert [t.texts for t in pairs.triplets] == [("c",), ("d",)]
    said = " ".join("".join(capsys.readouterr()).split())
    assert "captions.jsonl: 2 of 4 records of 'captions' show images that are held out" in said
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, [*rows[:2], *rows[3:]])))
    (own,) = folder.captions(tmp_path)
    assert [t.target for t in own.triplets] == ["images/c.png", "images/d.png"]


def test_generated_triplets(made):
    """Also by several right answers, and by a path to a file of another name."""
    base, train, held = made
    a, b, c = train[:3]
    records = [
        {"reference": a, "target": b, "text": "kept"},
        {"reference": held[0], "target": b, "text": "reference"},
        {"reference": a, "targets": [b, held[1]], "text": "one of two answers"},
        {"reference": a, "target": COPIES[1], "text": "copy"},
        {
            "reference": c,
            "target": "new",
            "text": "by its path",
            "target_path": f"shop/copies/same_{held[2]}",
        },
    ]
    (base / "made.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    sets = loading.load(keyed(base, f"data.generated={base / 'made.jsonl'}"), captions=False)
    assert [t.texts for t in sets[-1].triplets] == [("kept",)]


@pytest.mark.parametrize("root, chosen", [("data", "all"), ("data", "split"), ("bare", "all")])
def test_positives(made, root, chosen):
    """Of the whole data set, and of one that has nothing but what it evaluates with."""
    base, train, held = made
    if root == "bare":
        shutil.copytree(base / "data", base / "bare", symlinks=True, dirs_exist_ok=True)
        (base / "bare" / "train.jsonl").unlink()
    changes = (f"data.root={base / root}", f"data.images={chosen}")
    pool = images.read(config.load("positives:folder", changes))
    assert set(train) <= set(pool.paths) and "free.png" in pool.paths
    seen = {shown(path) for path in pool.paths.values()}
    assert seen.isdisjoint(shown(base / "shop" / name) for name in held)
