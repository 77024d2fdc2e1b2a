# SPDX-License-Identifier: Apache-2.0
"""One file is one image, however it is named: in tables, galleries, banks and exclusions."""

import json
import os
import shutil
import unicodedata

import pytest

from cir_jax.data.image_table import ImageTable
from cir_jax.data.triplets import Triplet, TripletSet
from cir_jax.datasets import doctor, generated
from cir_jax.datasets.named_files import NamedFiles
from cir_jax.datasets.readers import cirr, fashioniq, folder
from cir_jax.errors import UserError
from cir_jax.evals import benchmark
from cir_jax.evals.benchmarks import folder as own
from tests import runs

ACCENT = "caf\u00e9"
NAMES = ("a.jpg", "sub/b.jpg", "sub/deep/c.png", f"{ACCENT}.jpg", "Big.JPG", "d.e.webp", "100%.png",
         "sp ace.jpg")  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    made = tmp_path_factory.mktemp("own")
    for number, name in enumerate(NAMES):
        runs.write_image(made / "images" / name, (9 * number, 90, 200), number)
    os.symlink("sub", made / "images" / "linked")
    os.symlink("../other", made / "images" / "far")
    runs.write_image(made / "other" / "f.jpg", (200, 9, 9), 70)
    return made


def spellings(root):
    nfd = unicodedata.normalize("NFD", ACCENT)
    return {
        "a.jpg": ["a", "./a.jpg", "./a", "././a.jpg", "sub/../a.jpg", "sub/deep/../../a.jpg",
                  "A.jpg", "a.JPG", "A.JPG", "A", ".//a.jpg",
                  f"{root}/images/a.jpg",
                  f"{root}/images/./a.jpg", f"{root}/images/sub/../a", ".\\a.jpg",
                  "../images/a.jpg", "linked/../a.jpg", "sub\\..\\a.jpg"],
        "sub/b.jpg": ["sub//b.jpg", "sub/b", "./sub/b.jpg", "sub\\b.jpg", "sub\\b", "SUB/b.jpg",
                      "Sub\\B", "sub/deep/../b.jpg", "linked/b.jpg", "linked/b",
                      "LINKED/../sub/b.jpg",
                      f"{root}/images/linked/b.jpg", "sub/./b.jpg", "sub///b.jpg"],
        "sub/deep/c.png": ["linked/deep/c", "sub/deep/C.PNG", "sub/deep//c.png"],
        f"{ACCENT}.jpg": [f"{nfd}.jpg", nfd, nfd.upper(), f"./{nfd}.JPG"],
        "Big.JPG": ["Big", "big.jpg", "BIG.jpg", "./Big.JPG"],
        "d.e.webp": ["d.e", "D.E", "./d.e.webp"],
        "100%.png": ["100%", "./100%.PNG"],
        "sp ace.jpg": ["sp ace", "SP ACE.jpg"],
        "far/f.jpg": ["far/f", "FAR/F.jpg", f"{root}/other/f.jpg", "../other/f.jpg", "far//f"],
    }  # fmt: skip


def test_every_spelling_is_the_file(root):
    known = NamedFiles.below(root / "images", root)
    tried = 0
    for name, written in spellings(root).items():
        for one in written:
            assert known.name(one, "here") == name, one
            tried += 1
    assert tried > 50
    assert sorted(known.files) == sorted([*NAMES, "far/f.jpg"])


def test_spellings_are_one_row_and_one_candidate(root, tmp_path):
    shutil.copytree(root / "images", tmp_path / "images", symlinks=True)
    shutil.copytree(root / "other", tmp_path / "other")
    names = spellings(tmp_path)
    lines = [
        {"reference": one, "target": "sub/b.jpg", "text": "x"}
        for name, written in names.items()
        if name != "sub/b.jpg"
        for one in (name, *written)
    ] + [{"reference": "a", "target": one, "text": "x"} for one in names["sub/b.jpg"]]
    for split in ("train", "val"):
        text = "\n".join(map(json.dumps, lines))
        (tmp_path / f"{split}.jsonl").write_text(text, encoding="utf-8")
    table = ImageTable.from_sets(folder.read(tmp_path))
    assert len(table) == len(names) and set(table.names) == set(names)
    task = own.Benchmark(tmp_path).task
    assert len(task.names) == len(names) and (task.reference >= 0).all()
    everything = [one for name, written in names.items() for one in (name, *written)]
    (tmp_path / "gallery.txt").write_text("\n".join(everything), encoding="utf-8")
    task = own.Benchmark(tmp_path).task
    assert len(task.names) == len(names)
    assert (task.reference != task.target).all()
    found = doctor.examine("folder", tmp_path)
    assert found["problems"] == [] and not any(found["images"].values())
    assert {c["found"] for c in found["counts"] if c["what"] == "gallery images"} == {len(names)}
    # What is evaluated with stays out of the bank in every spelling.
    assert set(folder.held_out(tmp_path)) == set(names)


def test_links_and_hard_links_are_the_file_and_the_first_name_is_shown(tmp_path):
    for i in range(4):
        runs.write_image(tmp_path / "images" / f"{i}.jpg", (60 * i, 9, 9), i)
    os.link(tmp_path / "images" / "0.jpg", tmp_path / "images" / "hard.jpg")
    os.symlink("0.jpg", tmp_path / "images" / "soft.jpg")
    os.symlink("1.jpg", tmp_path / "images" / "other.png")
    lines = [("soft", "1.jpg"), ("hard.jpg", "2"), ("0.jpg", "other"), ("2", "3")]
    for split in ("train", "val"):
        rows = [json.dumps({"reference": r, "target": t, "text": "x"}) for r, t in lines]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(rows))
    table = ImageTable.from_sets(folder.read(tmp_path))
    assert table.names == ("soft.jpg", "1.jpg", "2.jpg", "3.jpg")
    assert table.row_of["hard.jpg"] == table.row_of["0.jpg"] == 0 and table.row_of["other.png"] == 1
    task = own.Benchmark(tmp_path).task
    assert task.names == table.names and task.reference.tolist() == [0, 0, 0, 2]
    assert task.target.tolist() == [1, 2, 1, 3]
    (tmp_path / "gallery.txt").write_text("0.jpg\n1.jpg\n2.jpg\nhard.jpg\n3.jpg\n")
    task = own.Benchmark(tmp_path).task
    assert task.names == ("0.jpg", "1.jpg", "2.jpg", "3.jpg")
    assert task.reference.tolist() == [0, 0, 0, 2] and task.target.tolist() == [1, 2, 1, 3]
    assert doctor.examine("folder", tmp_path)["problems"] == []


def test_a_reference_that_is_its_target_by_another_name(tmp_path):
    runs.write_image(tmp_path / "images" / "0.jpg", (9, 9, 9), 1)
    runs.write_image(tmp_path / "images" / "1.jpg", (9, 200, 9), 2)
    os.link(tmp_path / "images" / "0.jpg", tmp_path / "images" / "hard.jpg")
    line = {"reference": "0.jpg", "target": "hard.jpg", "text": "x"}
    (tmp_path / "val.jsonl").write_text(
        json.dumps(line) + "\n" + json.dumps(line | {"target": "1"})
    )
    with pytest.raises(
        UserError, match=r"are both one file, 'hard.jpg' and '0.jpg', and the refer"
    ):
        own.Benchmark(tmp_path)


def test_published_sets_count_names(tmp_path):
    """People link equal pictures of them; the published numbers rank every name."""
    root = runs.write_fashioniq(tmp_path, images=6, triplets=4, categories=("dress",))
    plain = ImageTable.from_sets(fashioniq.read(root))
    first, second = plain.names[:2]
    (root / "images" / f"{second}.png").unlink()
    os.link(root / "images" / f"{first}.png", root / "images" / f"{second}.png")
    linked = fashioniq.read(root)
    assert ImageTable.from_sets(linked).fingerprint() == plain.fingerprint()
    names = fashioniq.gallery(root, "dress")
    task = benchmark.task("x", linked[0].triplets, linked[0].paths, names, by_name=True,
                          removed=False)  # fmt: skip
    assert list(task.names) == names[0]
    assert len(benchmark.task("x", linked[0].triplets, linked[0].paths, names,
                              removed=False).names) == len(names[0]) - 1  # fmt: skip


def test_generated_triplets_name_images_of_the_set_in_any_way(root, tmp_path):
    own_images = NamedFiles.below(root / "images", root).files
    records = [
        {"reference": "./a.jpg", "target": "SUB/b", "text": "x", "source": "made"},
        {"reference": "mine", "target": "sub\\b.jpg", "text": "x", "source": "made",
         "reference_path": str(root / "images" / "linked" / ".." / "a.jpg")},
    ]  # fmt: skip
    (tmp_path / "it.jsonl").write_text("\n".join(map(json.dumps, records)))
    (read,) = generated.read([tmp_path / "it.jsonl"], own_images, root)
    base = TripletSet("own", (Triplet("a.jpg", "sub/b.jpg", ("x",), "x", "own", "0"),), own_images)
    table = ImageTable.from_sets([base, read])
    assert table.names == ("a.jpg", "sub/b.jpg") and table.row_of["mine"] == 0


@pytest.mark.parametrize(
    ("files", "written", "message"),
    [
        (("x.jpg", "x.png"), "x", r"here: image 'x' may be x.jpg or x.png; write the suffix"),
        (("A.jpg", "a.JPG"), "a.jpg", r"image 'a.jpg' may be A.jpg or a.JPG; write it exactly"),
        (("a/X.png", "A/x.png"), "a/x.png", r"may be A/x.png or a/X.png; write it exactly"),
        (
            ("caf\u00c9.png", "CAF\u00e9.png"),
            "cafe\u0301",
            r"may be CAF.* or caf.*; write it exactl",
        ),
        (("50% off.jpg",), "50%25%20off.jpg", r"is percent-encoded; write '50% off.jpg', as the f"),
    ],
)
def test_names_that_fit_two_files(files, written, message, tmp_path):
    for number, name in enumerate(files):
        runs.write_image(tmp_path / name, (9, 60 * number, 9), number)
    with pytest.raises(UserError, match=message):
        NamedFiles.below(tmp_path).name(written, "here")


def test_an_exact_name_is_not_asked_about(tmp_path):
    for number, name in enumerate(("A.jpg", "a.jpg", "a.png", "back\\slash.png", "x.jpg.png")):
        runs.write_image(tmp_path / name, (9, 60 * number, 9), number)
    known = NamedFiles.below(tmp_path)
    for name in known.files:
        assert known.name(name, "here") == name
    assert known.name("x.jpg", "here") == "x.jpg.png"


def test_equal_pictures_beside_each_other_pass_with_a_line(tmp_path, capsys):
    runs.write_image(tmp_path / "x.png", (9, 90, 9), 3)
    from PIL import Image

    Image.open(tmp_path / "x.png").save(tmp_path / "x.webp", lossless=True)
    known = NamedFiles.below(tmp_path)
    assert known.name("x", "here") == known.name("./x", "here") == "x.png"
    assert capsys.readouterr().out.count("are pixel-identical") == 1


def fashion(root, files, names=("A", "B"), category="dress"):
    for number, file in enumerate(files):
        runs.write_image(root / "images" / file, (9, 50 * number, 9), number)
    for split in ("train", "val"):
        record = {"candidate": names[0], "target": names[1], "captions": ["is red", "is long"]}
        runs.dump(root / f"captions/cap.{category}.{split}.json", [record])
        runs.dump(root / f"image_splits/split.{category}.{split}.json", list(names))
    return root


@pytest.mark.parametrize(
    ("files", "chosen"),
    [
        (("accessories/B.jpg", "dress/B.jpg", "dress/A.jpg"), "dress/B.jpg"),
        (("B.png", "dress/B.jpg", "dress/A.jpg"), "dress/B.jpg"),
        (("B.png", "shirt/B.jpg", "A.png"), "B.png"),
        (("shirt/B.jpg", "A.png"), "shirt/B.jpg"),
    ],
)
def test_fashioniq_reads_the_category_folder_first(files, chosen, tmp_path):
    root = fashion(tmp_path, files)
    (read,) = fashioniq.read(root)
    for paths in (
        read.paths,
        fashioniq.gallery(root, "dress")[1],
        fashioniq.images(root),
        fashioniq.every_file(root),
    ):
        assert paths["B"] == str(root / "images" / chosen)
    notes = " ".join(doctor.examine("fashioniq", root)["notes"])
    assert ("B for one" in notes) == (len([f for f in files if "B" in f]) > 1)


@pytest.mark.parametrize(
    "files",
    [("shirt/B.jpg", "toptee/B.jpg", "A.png"), ("dress/B.jpg", "dress/B.png", "A.png"),
     ("B.jpg", "B.png", "A.png"), ("B.jpeg", "B.webp", "A.png")],
)  # fmt: skip
def test_fashioniq_refuses_a_name_of_two_pictures(files, tmp_path):
    root = fashion(tmp_path, files)
    both = r"triplet dress/0: image 'B' may be .*B.* or .*B.*, which are two pictures; keep one"
    with pytest.raises(UserError, match=both):
        fashioniq.read(root)
    with pytest.raises(UserError, match=r"split.dress.val.json: image 'B' may be .* or "):
        fashioniq.gallery(root, "dress")
    with pytest.raises(UserError, match=r"image 'B' may be"):
        doctor.examine("fashioniq", root)


def test_fashioniq_names_in_other_spellings(tmp_path):
    root = fashion(tmp_path, ("dress/A.jpg", "dress/B.png"), ("./A.jpg", "dress/B"))
    (read,) = fashioniq.read(root)
    assert [os.path.basename(p) for p in read.paths.values()] == ["A.jpg", "B.png"]
    record = {"candidate": "a", "target": "B", "captions": ["is red", "is long"]}
    runs.dump(root / "captions/cap.dress.train.json", [record, record | {"candidate": "A"}])
    assert len(ImageTable.from_sets(fashioniq.read(root))) == 2


def test_cirr_paths_in_other_spellings(tmp_path):
    root = runs.write_cirr(tmp_path)
    plain = ImageTable.from_sets(cirr.read(root))
    file = root / "cirr/image_splits/split.rc2.train.json"
    listed = json.loads(file.read_text())
    runs.dump(file, {n: p.replace("./train/", "train/../train//") for n, p in listed.items()})
    assert ImageTable.from_sets(cirr.read(root)).fingerprint() == plain.fingerprint()
