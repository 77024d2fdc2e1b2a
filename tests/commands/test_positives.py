# SPDX-License-Identifier: Apache-2.0
"""`cir-jax positives`: all steps on every kind of input, stopped, resumed, and used wrongly."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from cir_jax.data.image_table import ImageTable
from cir_jax.datasets import generated
from cir_jax.datasets.readers import emoji
from cir_jax.errors import UserError
from cir_jax.main import main
from tests import runs
from tests.datasets.importer_samples import shard
from tests.generation import pictures
from tests.generation.pictures import make

RESULT = ("config.json", "results.json", "triplets.jsonl", "pairs.jsonl", "captions.jsonl",
          "hashes.jsonl", "same_image_list.json", "optimized_images.json")  # fmt: skip


@pytest.fixture
def root(tmp_path):
    """Six pictures, 05.png the same as 00.png."""
    return pictures.folder(tmp_path / "in", 6)


def results(workdir):
    return json.loads((workdir / "results.json").read_text())


def content(workdir):
    """Everything that was made, but for times."""
    files = {p.name: p.read_bytes() for p in workdir.iterdir() if p.name not in RESULT[:2]}
    counts = results(workdir)
    counts.pop("seconds")
    return files | {"results.json": counts}


def test_a_folder_of_images(tmp_path, root, capsys):
    made, counting = tmp_path / "made", pictures.Counting(tmp_path)
    assert make(made, root, *counting.sets) == 0
    said = capsys.readouterr().out
    assert "6 images, 5 different ones" in said and "5 triplets of 5 captioned images in" in said
    assert f"to train on them: --set data.generated={made / 'triplets.jsonl'}" in said
    assert sorted(p.name for p in made.iterdir()) == sorted([*RESULT, ".lock"])
    counts = results(made)
    assert counts.pop("seconds") >= 0 and counts == {
        "images": 6, "distinct": 5, "captions": 5, "pairs": 5, "triplets": 5, "texts": 10,
        "files": [str(made / "triplets.jsonl")], "unusable": {},
    }  # fmt: skip
    assert json.loads((made / "config.json").read_text())["data"]["root"] == str(root)
    triplets = pictures.lines(made / "triplets.jsonl")
    assert Counter(t["reference"] for t in triplets) == Counter(f"0{i}.png" for i in range(5))
    for one in triplets:
        a, b = (f"a picture of {one[key]}" for key in ("reference", "target"))
        assert a != b and one["texts"] == [f"{b} instead of {a}", f"Unlike {a}, I want {b}"]
    # Training finds the images, also where duplicates are taken for one.
    (read,) = generated.read([made / "triplets.jsonl"], {}, "unused")
    assert all(Path(path).samefile(root / name) for name, path in read.paths.items())
    table = ImageTable.from_sets([read], str(made / "optimized_images.json"))
    assert len(table) == 5
    before = content(made)
    assert make(made, root, *counting.sets) == 0
    assert content(made) == before and len(counting.asked()) == 5


def test_other_settings_leave_no_old_file(tmp_path, root, capsys):
    made, counting = tmp_path / "made", pictures.Counting(tmp_path)
    assert make(made, root, *counting.sets, "output.layout=cirr", "output.tag=a") == 0
    old = [Path(f).name for f in results(made)["files"]]
    assert old == ["triplets.jsonl", "cap.rc2.train.extend_a.json"]
    # What fails leaves the result of before, with its own config.
    before = content(made)
    assert make(made, root, *counting.sets, "pair.keep=99") == 2
    assert "pair.keep=99 of 5 pairs" in capsys.readouterr().err
    assert content(made) == before
    assert json.loads((made / "config.json").read_text())["pair"]["keep"] == 0
    assert make(made, root, *counting.sets, "output.layout=cirr", "output.tag=b") == 0
    assert not (made / "cap.rc2.train.extend_a.json").exists()
    assert (made / "cap.rc2.train.extend_b.json").is_file()
    (made / "results.json").write_text("[")  # as good as none
    assert make(made, root, *counting.sets) == 0
    assert len(counting.asked()) == 5


@pytest.mark.parametrize("name", ["fashioniq", "cirr"])
def test_data_sets(tmp_path, name):
    write = getattr(runs, f"write_{name}")
    root = write(tmp_path / name, images=12, triplets=10)
    made, counting = tmp_path / "made", pictures.Counting(tmp_path)
    changes = ("pair.keep=5", "caption.words=7")
    assert make(made, root, *counting.sets, *changes, recipe=f"blip2-{name}") == 0
    counts = results(made)
    tag = {"fashioniq": "cap.extend_blip2.train.json", "cirr": "cap.rc2.train.extend_blip2.json"}
    assert [Path(f).name for f in counts["files"]] == ["triplets.jsonl", tag[name]]
    assert counts["triplets"] == 5 and counts["captions"] == counts["distinct"]
    prompts = {prompt for _, _, prompt in counting.asked()}
    subject = {"fashioniq": "shirt", "cirr": "image"}[name]
    assert prompts == {f"please briefly describe the {subject} in 7 words"}
    # Training reads either file as an extension of the data set.
    for file in counts["files"]:
        human, ours = runs.load(name, root, f"data.generated={file}")
        assert len(ours.triplets) == 5 and len(human.triplets) in (10, 20)
        table = ImageTable.from_sets([human, ours])
        references = {t.reference for t in human.triplets}
        assert all(t.reference in references for t in ours.triplets)
        assert len(table) <= 12


def test_openmoji(tmp_path):
    drawings = emoji.prepare(tmp_path / "emoji", limit=300)
    made = tmp_path / "made"
    assert make(made, drawings, recipe="quicktest") == 0
    counts = results(made)
    assert counts["triplets"] == 100 and counts["captions"] == counts["distinct"] > 100
    human = runs.load("emoji", drawings)[0]
    known = {(t.reference, t.target) for t in human.triplets}
    texts = {r["image"]: r["text"] for r in pictures.lines(made / "captions.jsonl")}
    for one in pictures.lines(made / "triplets.jsonl"):
        assert (one["reference"], one["target"]) not in known
        assert one["texts"] == [texts[one["target"]]]
    names = {t.reference for t in human.triplets}
    assert {t["reference"] for t in pictures.lines(made / "triplets.jsonl")} <= names


def test_shards(tmp_path):
    (tmp_path / "shards").mkdir()
    for part in range(3):
        members = {}
        for i in range(4):
            runs.write_image(tmp_path / "p.png", (40 * part, 50 * i, 9), seed=i)
            name = f"{part:05d}{i:04d}"
            members |= {f"{name}.png": (tmp_path / "p.png").read_bytes()}
            members |= {f"{name}.txt": b"number %d" % (4 * part + i), f"{name}.json": b"{}"}
        shard(tmp_path / "shards" / f"{part:05d}.tar", members)
    made = tmp_path / "made"
    assert make(made, "", f"data.lists={tmp_path}/shards/*.tar", recipe="list") == 0
    assert results(made)["triplets"] == 12
    triplets = pictures.lines(made / "triplets.jsonl")
    assert triplets[0]["reference_path"].startswith("../shards/00000.tar@")
    (read,) = generated.read([made / "triplets.jsonl"], {}, "unused")
    for name, image in read.paths.items():
        assert f"{image.shard}".endswith(f"{name[:5]}.tar") and image.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("apart", [False, True])
def test_the_printed_keys_let_a_training_read_what_was_made(tmp_path, capsys, apart):
    """Of one list or of several, in folders apart, which a published data set knows nothing of."""
    lists = []
    for part in range(2):
        folder = tmp_path / "in" / (f"{part}" if apart else "")
        rows = ["image,caption"]
        for i in range(3):
            runs.write_image(folder / f"{part}{i}.png", (90 * part, 50 * i, 9), seed=i)
            rows.append(f"{part}{i}.png,number {3 * part + i}")
        (folder / f"{part}.csv").write_text("\n".join(rows))
        lists.append(str(folder / f"{part}.csv"))
    made = tmp_path / "made"
    assert make(made, "", f"data.lists={','.join(lists)}", recipe="list") == 0
    said = capsys.readouterr().out
    keys = re.findall(r"--set (\S+)", said.split("to train on them:")[1])
    assert keys[1] == f"data.generated_images={tmp_path / 'in'}"
    data = runs.write_fashioniq(tmp_path / "data")
    (read,) = runs.load("fashioniq", data, "data.annotated=0", *keys)
    assert len(read.triplets) == 6 and len(read.paths) == 6
    with pytest.raises(UserError, match="outside of"):
        runs.load("fashioniq", data, "data.annotated=0", keys[0])


def test_a_full_disk(tmp_path, root, capsys):
    """Every file in turn is the one for which there is no room; then there is."""
    counting = pictures.Counting(tmp_path)
    whole = tmp_path / "whole"
    assert make(whole, root, *counting.sets) == 0
    expected = content(whole)
    failed, asked, made = [], len(counting.asked()), tmp_path / "made"
    for size in range(200, 4000, 50):
        capsys.readouterr()
        with pictures.largest_file(size):
            status = make(made, root, *counting.sets)
        said = capsys.readouterr().err
        asked += len(counting.asked())
        for file in made.glob("*.json*"):
            lines = file.read_text().splitlines() if file.suffix == ".jsonl" else []
            assert all(json.loads(line) for line in lines)
        if not status:
            break
        assert status == 2 and "cannot be written (File too large); what it held is kept" in said
        assert "Traceback" not in said and not (made / "results.json").exists()
        failed.append(Path(said.split(": ")[1].split(" cannot")[0]).name)
    assert {"hashes.jsonl", "captions.jsonl", "triplets.jsonl"} <= set(failed)
    assert not status
    before, after = (_without_places(c) for c in (expected, content(made)))
    assert before == after
    captions = pictures.lines(made / "captions.jsonl")
    assert max(Counter(r["image"] for r in captions).values()) == 1
    # What did not fit was asked for again, and nothing else.
    assert asked == 5 + 5 + failed.count("captions.jsonl")


def _without_places(files):
    """Content that does not tell where it lies, nor when it was made."""
    kept = {n: c for n, c in files.items() if n in ("pairs.jsonl", "same_image_list.json")}
    captions = [json.loads(line) for line in files["captions.jsonl"].splitlines()]
    triplets = [json.loads(line) for line in files["triplets.jsonl"].splitlines()]
    return kept | {
        "captions": {r["image"]: r["text"] for r in captions},
        "triplets": [(t["reference"], t["target"], t["texts"]) for t in triplets],
    }


def start(*flags):
    """The real command in a process of its own."""
    environment = os.environ | {"PYTHONPATH": os.getcwd(), "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [sys.executable, "-m", "cir_jax.main", *flags], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def until(condition, process):
    end = time.monotonic() + 120
    while not condition() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    assert condition(), process.communicate()


def test_killed_while_it_captions(tmp_path, capsys):
    """Nothing is lost, nothing is asked for twice; a second process is told that it is one."""
    root, counting = pictures.folder(tmp_path / "in", 30), pictures.Counting(tmp_path)
    made = tmp_path / "made"
    file = made / "captions.jsonl"
    slow = start(*pictures.flags(made, root, *counting.sets, "caption.timeout=0.3"))
    try:
        until(lambda: file.is_file() and len(file.read_bytes().splitlines()) >= 4, slow)
        assert make(made, root, *counting.sets) == 2
        assert f"another process is at work in {made}; wait for it" in capsys.readouterr().err
        assert slow.poll() is None
    finally:
        slow.send_signal(signal.SIGKILL)
        slow.communicate()
    assert slow.returncode == -signal.SIGKILL
    kept = [r["image"] for r in pictures.lines(file)]
    first = [key for key, _, _ in counting.asked()]
    assert 4 <= len(kept) < 29 and first[: len(kept)] == kept and len(first) - len(kept) <= 1
    assert not (made / "triplets.jsonl").exists() and not (made / "results.json").exists()
    with file.open("a") as torn:  # as if the kill had come in the middle of a line
        torn.write('{"image": "00.png", "text": "a pic')
    assert make(made, root, *counting.sets) == 0
    again = [key for key, _, _ in counting.asked()]
    assert not set(again) & set(kept)
    names = [f"{i:02d}.png" for i in range(29)]
    assert [r["image"] for r in pictures.lines(file)] == names == sorted({*kept, *again})
    assert len(kept) + len(again) == 29 and results(made)["triplets"] == 29
    assert make(tmp_path / "other", root, *counting.sets) == 0
    same = _without_places(content(tmp_path / "other"))
    assert _without_places(content(made)) == same


WRONG = [
    (("--config", "clip_sum"), "this config trains a model; triplets are made with one of"),
    (("--config", "positives:clip-fashionq"), "no recipe 'clip-fashionq'.*'clip-fashioniq'"),
    (("--config", "positives", "--set", "caption.promt=x"), "Did you mean 'caption.prompt'"),
    (("--config", "positives"), "data.root is empty; set it to a folder of images"),
]


@pytest.mark.parametrize(("flags", "message"), WRONG)
def test_wrong_command_lines(tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    assert main(["positives", *flags]) == 2
    said = capsys.readouterr().err
    assert said.startswith("cir-jax positives: ") and re.search(message, said)
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p.name != ".lock"]


def test_its_config_trains_nothing(capsys):
    assert main(["train", "--config", "positives:folder"]) == 2
    assert "--config positives:folder makes triplets; use it with `cir-jax positives`" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("caption.prompt=in {word} words", "caption.prompt='in {word} words' cannot be filled in"),
        ("caption.captioner=servr", "no 'servr' in captioners"),
        ("pair.method=windo", "pair.method='windo' is unknown"),
        ("modify.templates={reference}", "does not name {target}"),
        ("rewrite.captioner=servr", "no 'servr' in captioners"),
        ("output.layout=cir", "output.layout='cir' is unknown"),
        ("dedupe.near=99", "dedupe.near=99 is out of range"),
        ("output.source=", "output.source is empty"),
        ("data.on_missing=skip", "data.on_missing='skip' is unknown"),
    ],
)
def test_typos_are_found_before_anything_is_done(tmp_path, root, capsys, change, message):
    counting = pictures.Counting(tmp_path)
    changes = [c for c in counting.sets if not c.startswith("caption.captioner")]
    if not change.startswith("caption.captioner"):
        changes.append(counting.sets[0])
    assert make(tmp_path / "made", root, *changes, change) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "made").exists() and counting.asked() == []


def test_images_that_cannot_be_used_are_left_out_and_counted(tmp_path, root, capsys):
    made, counting = tmp_path / "made", pictures.Counting(tmp_path)
    (root / "06.png").write_bytes(b"<html>403</html>")
    groups = tmp_path / "same_image_list.json"
    groups.write_text("[[0], [1], [2], [3], [4], [5], [6]]")
    for sets in (counting.sets, [*counting.sets, f"dedupe.optimized={groups}"]):
        assert make(made, root, *sets) == 2 and not counting.asked()
        assert "1 of 7 images cannot be used (1 no image)" in capsys.readouterr().err
    for sets in (counting.sets, [*counting.sets, f"dedupe.optimized={groups}"]):
        assert make(made, root, *sets, "data.on_missing=drop") == 0
        counts = results(made)
        assert (counts["images"], counts["unusable"]) == (6, {"no image": 1})
        [listed] = pictures.lines(made / "unusable_images.jsonl")
        assert (listed["image"], listed["reason"]) == ("06.png", "no image")


def test_places_that_cannot_be_written(tmp_path, root, capsys):
    (tmp_path / "file").write_text("mine")
    assert make(tmp_path / "file", root) == 2
    assert "file cannot be written (File exists)" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


def test_damaged_files_of_the_work_folder(tmp_path, root, capsys):
    made, counting = tmp_path / "made", pictures.Counting(tmp_path)
    assert make(made, root, *counting.sets) == 0
    for name in ("captions.jsonl", "hashes.jsonl"):
        whole = (made / name).read_text()
        (made / name).write_text(whole.replace("\n", "\n{oh\n", 1))
        assert make(made, root, *counting.sets) == 2
        assert f"{made / name}:2 is no JSON" in capsys.readouterr().err
        (made / name).write_text(whole)
    assert make(made, root, *counting.sets) == 0


def test_help(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["positives", "--help"])
    said = capsys.readouterr().out
    assert stopped.value.code == 0 and "goes on where it was stopped" in said
    assert "folder, list, tgcir-fashioniq, " in said
