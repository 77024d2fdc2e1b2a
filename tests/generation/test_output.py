# SPDX-License-Identifier: Apache-2.0
"""What the pipeline writes is read back by training: names, files and texts, also after a move."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from cir_jax import config
from cir_jax.data.pixels import open_image
from cir_jax.datasets.records import RecordImage
from cir_jax.errors import UserError
from cir_jax.generation import output, steps
from cir_jax.generation.images import Pool
from cir_jax.generation.modify import Generated
from tests import runs

COLORS = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (200, 200, 30), (30, 200, 200)]


def generate(recipe, workdir, *changes):
    made = config.load(
        f"positives:{recipe}", [f"workdir={workdir}", "caption.captioner=texts", *changes]
    )
    return [str(file) for file in steps.run(made)["files"]]


def load(data, root, file, images=""):
    """The triplets of a file; `images` is the folder of those that the data set does not have."""
    changes = (f"data.generated={file}", f"data.generated_images={images}")
    return runs.load(data, root, "data.annotated=0", *changes)


def lines_of(file):
    return [json.loads(line) for line in open(file)]


def check_read_back(sets, neutral, color_of):
    """The triplets of the file, and pictures that show what their names say."""
    (one,) = sets
    records = lines_of(neutral)
    assert [(t.reference, t.target, list(t.texts)) for t in one.triplets] == [
        (r["reference"], r["target"], r["texts"]) for r in records
    ]
    assert one.name == "generated" and len(records) > 2
    for name in {n for t in one.triplets for n in (t.reference, t.target)}:
        mean = np.asarray(open_image(one.paths[name])).mean(axis=(0, 1))
        assert np.abs(mean - color_of(name)).max() < 25


@pytest.mark.parametrize("data", ["fashioniq", "cirr"])
def test_a_data_set(data, tmp_path):
    write = {"fashioniq": runs.write_fashioniq, "cirr": runs.write_cirr}[data]
    root = write(tmp_path / "data")
    captions = {p.stem: f"a {p.stem}" for p in root.rglob("*.png") if "dev" not in str(p)}
    runs.dump(tmp_path / "it.json", captions)
    neutral, released = generate(
        f"zs-{data}", tmp_path / "made", f"data.root={root}", "caption.unknown=ignore",
        f"caption.file={tmp_path / 'it.json'}",
    )  # fmt: skip
    colors = list(runs.COLORS.values())

    def color_of(name):
        return colors[int(name.removeprefix("B").removeprefix("train-").split("-")[0]) % 4]

    for file in (neutral, released):
        check_read_back(load(data, root, file), neutral, color_of)
    moved = root.rename(tmp_path / "elsewhere")  # the data set knows where its images are
    check_read_back(load(data, moved, neutral), neutral, color_of)
    inside = moved / "made.json"
    inside.write_bytes(open(released, "rb").read())
    check_read_back(load(data, moved, "made.json"), neutral, color_of)


def pictures(folder, below=""):
    """Five pictures and a CSV of their captions."""
    lines = ["image,caption"]
    for number, color in enumerate(COLORS):
        name = f"{below}p{number}.png"
        runs.write_image(folder / name, color, number)
        lines.append(f"{name},picture {number}")
    (folder / "captions.csv").write_text("\n".join(lines) + "\n")
    return folder


def color_of(name):
    return COLORS[int(name.removesuffix(".png")[-1])]


@pytest.mark.parametrize("kind", ["folder", "list"])
def test_images_and_result_moved_together(kind, tmp_path):
    folder = pictures(tmp_path / "one" / "pictures", below="deep/" if kind == "folder" else "")
    given = (
        (f"data.root={folder}", f"caption.file={folder / 'captions.csv'}")
        if kind == "folder"
        else (f"data.lists={folder / 'captions.csv'}",)
    )
    neutral, _ = generate(kind, tmp_path / "one" / "made", *given, "output.layout=cc")
    for record in lines_of(neutral):
        assert record["reference_path"].startswith("../pictures/")
    runs.write_fashioniq(tmp_path / "data")
    sets = load("fashioniq", tmp_path / "data", neutral, folder)
    check_read_back(sets, neutral, color_of)
    (tmp_path / "one").rename(tmp_path / "two")
    moved = tmp_path / "two" / "made" / "triplets.jsonl"
    sets = load("fashioniq", tmp_path / "data", moved, tmp_path / "two" / "pictures")
    check_read_back(sets, moved, color_of)
    assert all("/two/made/../pictures/" in path for path in sets[0].paths.values())


def test_out_of_domain_layout_names_files(tmp_path, monkeypatch):
    """Absolute paths, so that they mean the same wherever the file is read."""
    pictures(tmp_path / "pictures")
    monkeypatch.chdir(tmp_path)
    changes = ("data.lists=pictures/captions.csv", "data.root=pictures")
    neutral, released = generate("cc-cirr", "made", *changes)
    runs.write_cirr(tmp_path / "data")
    monkeypatch.chdir("/")
    (one,) = load("cirr", tmp_path / "data", tmp_path / released, tmp_path / "pictures")
    records = json.loads((tmp_path / released).read_text())
    assert [t.reference for t in one.triplets] == [r["reference"] for r in records]
    for record in records:
        assert record["reference"] == str(tmp_path / "pictures" / record["reference_name"])
        mean = np.asarray(open_image(one.paths[record["target"]])).mean(axis=(0, 1))
        assert np.abs(mean - color_of(record["target_name"])).max() < 25
    sets = load("cirr", tmp_path / "data", tmp_path / neutral, tmp_path / "pictures")
    check_read_back(sets, tmp_path / neutral, color_of)


def shard(path, numbers):
    with tarfile.open(path, "w") as archive:
        for number in numbers:
            pixels = np.full((12, 16, 3), COLORS[number], np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG")
            for suffix, content in (("png", buffer.getvalue()), ("txt", b"picture %d" % number)):
                member = tarfile.TarInfo(f"p{number}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def test_shards(tmp_path):
    (tmp_path / "shards").mkdir()
    shard(tmp_path / "shards" / "0.tar", (0, 1, 2))
    shard(tmp_path / "shards" / "1.tar", (3, 4))
    neutral, released = generate(
        "cc-fashioniq", tmp_path / "made", f"data.lists={tmp_path / 'shards'}"
    )
    runs.write_fashioniq(tmp_path / "data")
    data, images = tmp_path / "data", tmp_path / "shards"
    check_read_back(load("fashioniq", data, neutral, images), neutral, color_of)
    (one,) = load("fashioniq", data, released, images)
    for record in json.loads(open(released).read()):
        mean = np.asarray(open_image(one.paths[record["reference"]])).mean(axis=(0, 1))
        assert np.abs(mean - color_of(record["reference_name"])).max() < 1


@pytest.mark.parametrize("linked", ["workdir", "images", "both"])
def test_linked_folders(linked, tmp_path):
    """Folders behind links, as home folders of clusters are."""
    near, far = tmp_path / "near", tmp_path / "disk" / "far" / "deep"
    near.mkdir()
    far.mkdir(parents=True)
    for name, kind in (("pictures", "images"), ("made", "workdir")):
        if linked in (kind, "both"):
            (far / name).mkdir()
            (near / name).symlink_to(far / name)
    pictures(near / "pictures")
    neutral, *_ = generate("list", near / "made", f"data.lists={near / 'pictures/captions.csv'}")
    runs.write_fashioniq(tmp_path / "data")
    for file in (neutral, (near / "made").resolve() / "triplets.jsonl"):
        sets = load("fashioniq", tmp_path / "data", file, near / "pictures")
        check_read_back(sets, file, color_of)
    for record in lines_of(neutral):
        assert not record["reference_path"].startswith("/")
    if linked == "images":  # a way through the link, which is still there after a move
        (tmp_path / "much" / "deeper").mkdir(parents=True)
        near.rename(tmp_path / "much" / "deeper" / "near")
        moved = tmp_path / "much" / "deeper" / "near" / "made" / "triplets.jsonl"
        sets = load("fashioniq", tmp_path / "data", moved, moved.parents[1] / "pictures")
        check_read_back(sets, moved, color_of)


def test_errors(tmp_path):
    with pytest.raises(UserError, match=r"output.layout='cir' is unknown; use nothing, fashioniq"):
        output.check_output(config.load("positives:folder", ["output.layout=cir"]))
    packed = Pool({"a": RecordImage("packed/x", 3), "b": "b.png"})
    made = [Generated({"reference": "b", "target": "a"}, ("x", "y"), ("z",))]
    with pytest.raises(UserError, match=r"layout=cc names images by .* packed/x\[3\]"):
        output.run(config.load("positives:folder", ["output.layout=cc"]), made, packed, tmp_path)
