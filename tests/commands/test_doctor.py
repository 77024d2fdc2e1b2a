# SPDX-License-Identifier: Apache-2.0
"""`cir-jax doctor` on good and on damaged data sets."""

import json
import os
import subprocess
import sys
from pathlib import Path

import PIL
import pytest
from PIL import Image

from cir_jax import plugins
from cir_jax.data import inspection, kept_looks, picture_files, pixels, screening
from cir_jax.datasets import doctor, reader
from cir_jax.datasets.readers import emoji, fashioniq
from cir_jax.main import main
from tests import runs


def test_good_folder(tmp_path, capsys):
    for name in ("a.png", "b.png"):
        runs.write_image(tmp_path / "images" / name, (1, 200, 3), seed=len(name) + ord(name[0]))
    line = json.dumps({"reference": "a", "target": "b", "text": "x"})
    (tmp_path / "train.jsonl").write_text(line)
    assert main(["doctor", "folder", str(tmp_path)]) == 0
    assert "nothing wrong" in capsys.readouterr().out


def test_cirr_with_other_counts(tmp_path, capsys):
    root = runs.write_cirr(tmp_path)
    assert main(["doctor", "cirr", str(root)]) == 0  # it is smaller, and whole
    said = capsys.readouterr().out
    assert "val queries" in said and "4,181  <- differs" in said
    assert "nothing wrong; it is a part of the official data set" in said
    assert "val queries: 12, officially 4,181; recalls are not comparable" in said


def test_damaged_fashioniq(tmp_path, capsys):
    root = runs.write_fashioniq(tmp_path / "data", categories=("round", "square"))
    (root / "images/B0000.png").unlink()
    (root / "images/B0001.png").write_bytes(b"")
    (root / "images/B0002.png").write_bytes(b"no image")
    copy = (root / "images/B0003.png").read_bytes()
    (root / "images/B0004.png").write_bytes(copy)
    file = root / "captions/cap.round.val.json"
    records = json.loads(file.read_text())
    runs.dump(file, [records[0] | {"target": "B9999"}, *records[1:]])
    out = tmp_path / "found.json"
    assert main(["doctor", "fashioniq", str(root), "--json", str(out)]) == 1
    found = json.loads(out.read_text())["images"]
    assert found["missing"] == ["B0000"] and found["empty (0 bytes)"] == ["B0001"]
    assert found["no image"] == ["B0002"] and found["undecodable"] == []
    assert found["pixel-identical groups"] == ["B0003 = B0004"]
    assert found["named by a triplet but not by its split"] == ["round/0 (B9999)"]
    assert "missing: 1: B0000" in capsys.readouterr().out
    assert main(["doctor", "fashioniq", str(root), "--no-decode"]) == 1
    assert "undecodable" not in capsys.readouterr().out


def test_a_split_without_one_of_its_files(tmp_path, capsys):
    root = runs.write_cirr(tmp_path)
    lost = root / "cirr/image_splits/split.rc2.val.json"
    lost.unlink()
    found = doctor.examine("cirr", root, decode=False)
    assert f"no annotation file {lost}; fetch it" in found["problems"]
    assert "val queries" not in {row["what"] for row in found["counts"]}
    for file in root.glob("cirr/*/*test1*"):
        file.unlink()
    found = doctor.examine("cirr", root, decode=False)
    assert any(note.startswith("no test1 split") for note in found["notes"])
    assert any("train split are in no triplet; data.unlabelled=split" in n for n in found["notes"])
    assert not any("test1" in problem for problem in found["problems"])
    for file in root.glob("cirr/image_splits/*"):
        file.unlink()
    assert main(["doctor", "cirr", str(root)]) == 2
    assert "no split of CIRR is complete in" in capsys.readouterr().err


def test_every_missing_file_of_fashioniq_is_listed(tmp_path):
    root = runs.write_fashioniq(tmp_path)  # dress and shirt: toptee is missing altogether
    (root / "image_splits/split.dress.val.json").unlink()
    found = doctor.examine("fashioniq", root, decode=False)
    for name in ("split.dress.val", "cap.toptee.train", "split.toptee.train", "cap.toptee.val"):
        assert any(f"{name}.json; fetch it" in problem for problem in found["problems"]), name
    mine = doctor.examine("fashioniq", root, ("shirt",), decode=False)
    assert not any("annotation file" in problem for problem in mine["problems"])
    assert main(["doctor", "fashioniq", str(root), "--categories", "skirt"]) == 2


def test_a_triplet_is_looked_for_in_its_own_split(tmp_path):
    root = runs.write_fashioniq(tmp_path, categories=("round", "square"))
    runs.dump(root / "image_splits/split.round.val.json", ["B0001"])  # "square" lists all the same
    found = doctor.examine("fashioniq", root, decode=False)
    outside = found["images"]["named by a triplet but not by its split"]
    assert outside and all(name.startswith("round/") for name in outside)
    assert any("names in triplets are not in their split" in p for p in found["problems"])


def test_folder_gallery_without_a_target(tmp_path):
    for name in "abc":
        runs.write_image(tmp_path / "images" / f"{name}.png", (1, 200, 3), seed=ord(name))
    (tmp_path / "val.jsonl").write_text('{"reference": "a", "target": "b", "text": "x"}')
    (tmp_path / "gallery.txt").write_text("c\n")
    found = doctor.examine("folder", tmp_path)
    assert found["images"]["named by a triplet but not by its split"] == [
        f"{tmp_path}/val.jsonl:1 (b.png)"
    ]


def test_captions_of_a_folder_are_looked_over(tmp_path):
    """As stage zero reads them: what would stop it is told, and their images are opened."""
    for name in "ab":
        runs.write_image(tmp_path / "images" / f"{name}.png", (1, 200, 3), seed=ord(name))
    (tmp_path / "train.jsonl").write_text('{"reference": "a", "target": "b", "text": "x"}')
    (tmp_path / "images" / "c.png").write_text("no image")
    file = tmp_path / "captions.jsonl"
    rows = [{"image": f"images/{name}.png", "text": f"{name} " * 99} for name in "ac"]
    file.write_text("\n".join(map(json.dumps, rows)))
    found = doctor.examine("folder", tmp_path)
    assert found["counts"][-1] == {"what": "captioned images", "found": 2, "official": None}
    assert found["images"]["no image"] == ["images/c.png"]
    assert len(found["images"]["texts over the context"]) == 2
    file.write_text('{"image": "/etc/passwd.png", "text": "x"}')
    (problem,) = doctor.examine("folder", tmp_path)["problems"]
    assert "captions.jsonl:1: image '/etc/passwd.png'" in problem and "allow_outside" in problem


def test_a_blank_text_of_cirr_is_told(tmp_path):
    root = runs.write_cirr(tmp_path)
    file = root / "cirr/captions/cap.rc2.test1.json"
    records = json.loads(file.read_text())
    runs.dump(file, [records[0] | {"caption": " "}, *records[1:]])
    notes = doctor.examine("cirr", root, decode=False)["notes"]
    assert any("1 test1 query without a text, used as it is: pair 100" in n for n in notes)


def test_flags_are_checked_before_the_images(tmp_path, capsys):
    root = str(runs.write_fashioniq(tmp_path))
    assert main(["doctor", "fashioniq", root, "--json", str(tmp_path / "no" / "x.json")]) == 2
    assert "its folder does not exist; make it first" in capsys.readouterr().err
    assert main(["doctor", "fashioniq", root, "--threads", "0"]) == 2
    assert "--threads 0 is below 1" in capsys.readouterr().err


def test_official_numbers_add_up():
    official = fashioniq.OFFICIAL
    entries = sum(images for splits in official.values() for _, images in splits.values())
    assert entries == fashioniq.OFFICIAL_ENTRIES
    assert sum(splits["train"][0] for splits in official.values()) == 18_000


def test_openmoji(tmp_path, capsys):
    root = emoji.prepare(tmp_path / "emoji", size=16, limit=120)
    assert main(["doctor", "emoji", str(root)]) == 0
    printed = capsys.readouterr().out
    assert "people train triplets" in printed and "nothing wrong" in printed
    lost = sorted((root / "fashioniq/images").iterdir())[0]
    lost.unlink()
    assert main(["doctor", "emoji", str(root)]) == 1
    assert f"missing: 1: {lost.stem}" in capsys.readouterr().out
    assert main(["doctor", "emoji", str(root), "--categories", "birds"]) == 2
    assert "no category 'birds'" in capsys.readouterr().err


def test_a_reader_that_cannot_be_examined(tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text("def read(root, split='train', categories=()): return []\n")
    assert main(["doctor", str(file), str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert f"{file} cannot be examined: it defines no examine(root, categories)" in said
    assert main(["doctor", str(tmp_path / "other.py"), str(tmp_path)]) == 2
    assert "give the path of an existing .py file" in capsys.readouterr().err


def test_help_lists_readers_without_importing_them():
    code = (
        "import sys\n"
        "from cir_jax.main import main\n"
        "try: main(['doctor', '--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in sys.modules if m.startswith('cir_jax.datasets.readers.')])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("\n[]\n")
    shown = " ".join(done.stdout.split())
    assert "circo, cirr, emoji, fashioniq, folder, genecis, or a .py file of yours" in shown


def test_nothing_there(tmp_path, capsys):
    for name in plugins.available(reader.PACKAGE):
        assert main(["doctor", name, str(tmp_path)]) == 2
        assert str(tmp_path) in capsys.readouterr().err


def test_unknown_command_names_the_nearest(capsys):
    assert main(["docter"]) == 2
    assert "Did you mean 'doctor'?" in capsys.readouterr().err
    assert main(["doctor", "fashion", "x"]) == 2
    said = capsys.readouterr().err
    assert "no 'fashion' in readers; there are: circo, cirr, emoji" in said
    assert "Did you mean 'fashioniq'?" in said


def test_what_a_run_would_meet(tmp_path, capsys):
    for name in "abc":
        runs.write_image(tmp_path / "images" / f"{name}.png", (1, 200, 3), seed=ord(name))
    Image.new("I;16", (9, 9), 4000).save(tmp_path / "images/deep.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (9, 5), "red").save(tmp_path / "images/turned.jpg", exif=turned)
    Image.new("CMYK", (9, 5)).save(tmp_path / "images/inks.jpg")
    (tmp_path / "images/page.jpg").write_bytes(b"<html>gone</html>")
    names = ("b", "deep", "turned", "inks", "page")
    triplets = [{"reference": "a", "target": n, "text": "x"} for n in names]
    triplets += [{"reference": "c", "target": "c", "text": "a long text " * 40}]
    (tmp_path / "val.jsonl").write_text("\n".join(map(json.dumps, triplets)))
    out = tmp_path / "found.jsonl"
    assert main(["doctor", "folder", str(tmp_path), "--out", str(out)]) == 1
    found = {}
    for line in map(json.loads, out.read_text().splitlines()):
        found.setdefault(line["finding"], []).append(line)
    [page] = found["no image"]
    assert page["name"] == "page.jpg" and page["reason"] == "no image" and page["stops"]
    assert [one["name"] for one in found[inspection.DEEP]] == ["deep.png"]
    assert [one["name"] for one in found[inspection.TURNED]] == ["turned.jpg"]
    assert [one["name"] for one in found[inspection.INKS]] == ["inks.jpg"]
    assert found["reference = target"][0]["name"].endswith("val.jsonl:6")
    assert "122 tokens, the limit is 77" in found["texts over the context"][0]["name"]
    said = capsys.readouterr().out
    assert "1 of 7 images cannot be used (1 no image)" in said and "3 problem(s)" in said
    assert main(["doctor", "folder", str(tmp_path), "--context", "200", "--no-decode"]) == 1
    assert "over the context" not in capsys.readouterr().out


def test_names_outside_and_the_loading_are_as_the_run_has_them(tmp_path, capsys):
    root = tmp_path / "data"
    runs.write_image(root / "images" / "a.png", (1, 200, 3), seed=1)
    runs.write_image(tmp_path / "apart" / "b.png", (1, 2, 203), seed=2)
    line = {"reference": "a", "target": str(tmp_path / "apart" / "b.png"), "text": "x"}
    (root / "train.jsonl").write_text(json.dumps(line))
    assert main(["doctor", "folder", str(root)]) != 0
    said = capsys.readouterr()
    assert "outside of" in said.out + said.err
    assert main(["doctor", "folder", str(root), "--allow-outside"]) == 0
    Image.new("RGB", (9, 5)).save(root / "images" / "c.ppm")
    (root / "images" / "c.ppm").rename(root / "images" / "c.png")  # "natural" does not open it
    (root / "train.jsonl").write_text(json.dumps(line | {"reference": "c"}))
    assert main(["doctor", "folder", str(root), "--allow-outside"]) == 1
    assert main(["doctor", "folder", str(root), "--allow-outside", "--loading", "released"]) == 0


@pytest.fixture
def looked_at(tmp_path, monkeypatch):
    """A folder of five images whose looks are kept, and the files that were decoded since."""
    monkeypatch.setenv("CIR_JAX_CACHE", str(tmp_path / "cache"))
    for module in (inspection, kept_looks, screening):
        monkeypatch.setattr(module, "LEAST", 1)
    root, opened = tmp_path / "data", []
    for name in ("a.png", "b.png", "c.png"):
        runs.write_image(root / "images" / name, (1, 200, 3), seed=name == "c.png")
    Image.new("CMYK", (9, 5)).save(root / "images/inks.jpg")
    (root / "images/page.jpg").write_bytes(b"<html>gone</html>")
    for file in (root / "images").iterdir():
        os.utime(file, (1_000, 1_000))
    names = ("b", "c", "inks", "page")
    lines = [{"reference": "a", "target": n, "text": "x"} for n in names]
    (root / "val.jsonl").write_text("\n".join(map(json.dumps, lines)))
    decoded = picture_files.decoded

    def decode(source, *formats):
        opened.append(Path(source).name)
        return decoded(source, *formats)

    monkeypatch.setattr(picture_files, "decoded", decode)
    return root, opened


ALL = ["a.png", "b.png", "c.png", "inks.jpg", "page.jpg"]


def test_images_are_opened_once_for_doctor_and_runs(looked_at, tmp_path, capsys):
    root, opened = looked_at

    def examined(*flags):
        opened.clear()
        out = tmp_path / "found.json"
        assert main(["doctor", "folder", str(root), "--json", str(out), *flags]) == 1
        return json.loads(out.read_text())

    first = examined()
    assert sorted(opened) == ALL and not first["notes"]
    assert first["images"]["pixel-identical groups"] == ["a.png = b.png"]
    second = examined()
    assert not opened
    told = "5 of 5 images were looked at before and have not changed since; --look-again opens them"
    assert second.pop("notes") == [f"{told} all"] and f"note: {told}" in capsys.readouterr().out
    assert second == {key: value for key, value in first.items() if key != "notes"}
    images = {name: str(root / "images" / name) for name in ALL}
    found = screening.scan(images, screening.DECODE, root=str(root), loading=pixels.NATURAL)
    assert {name: one.reason for name, one in found.items()} == {"page.jpg": "no image"}
    assert not opened
    assert not examined("--look-again")["notes"] and sorted(opened) == ALL
    os.utime(root / "images/a.png", (2_000, 2_000))
    Image.new("RGB", (9, 9)).save(root / "images/c.png")
    assert examined()["notes"] == [told.replace("5 of", "3 of") + " all"]
    assert opened == ["c.png"]


def test_what_a_run_has_looked_at_serves_doctor(looked_at, tmp_path):
    """A run keeps no hash of the pixels; what cannot be used is not opened again."""
    root, opened = looked_at
    images = {name: str(root / "images" / name) for name in ALL}
    screening.scan(images, screening.DECODE, root=str(root), loading=pixels.NATURAL)
    opened.clear()
    report = doctor.examine("folder", root)
    assert sorted(opened) == ALL[:4] and report["notes"][0].startswith("1 of 5 images were looked")
    assert report["images"]["no image"] == ["page.jpg"]
    assert report["images"]["pixel-identical groups"] == ["a.png = b.png"]


def test_verdicts_and_hashes_of_another_pillow_are_not_used(looked_at, monkeypatch):
    root, opened = looked_at
    doctor.examine("folder", root)
    opened.clear()
    monkeypatch.setattr(PIL, "__version__", "0.1")
    images = {name: str(root / "images" / name) for name in ALL}
    screening.scan(images, screening.DECODE, root=str(root), loading=pixels.NATURAL)
    assert sorted(opened) == ALL
    opened.clear()
    doctor.examine("folder", root)
    assert sorted(opened) == ALL[:4]


@pytest.mark.parametrize(
    ("make", "heading"),
    [
        (lambda file: file.write_bytes(b"<html>403</html>"), "no image"),
        (lambda file: file.mkdir(), "no file"),
        (os.mkfifo, "no file"),
        (lambda file: file.symlink_to("nowhere"), "missing"),
        (lambda file: file.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50)), "cut off"),
    ],
)
def test_files_are_headed_by_what_they_are(tmp_path, capsys, make, heading):
    root = runs.write_fashioniq(tmp_path / "data", images=6, categories=("dress",))
    (root / "images/B0002.png").unlink()
    make(root / "images/B0002.png")
    assert main(["doctor", "fashioniq", str(root)]) == 1
    said = capsys.readouterr().out
    assert f"\n{heading}: 1: B0002\n" in said and f"cannot be used (1 {heading})" in said
    assert "undecodable" not in said
