# SPDX-License-Identifier: Apache-2.0
"""No name in a data file leads out of the roots; listings follow links and end."""

import json
import os
import tarfile

import pytest

from cir_jax import config as configs
from cir_jax.data import places
from cir_jax.data.listing import images_below
from cir_jax.datasets import captions, doctor, generated, held_out, loading, unlabelled
from cir_jax.datasets.named_files import NamedFiles
from cir_jax.datasets.readers import circo, cirr, fashioniq, folder
from cir_jax.errors import UserError
from cir_jax.evals import benchmark
from cir_jax.generation import images as pools
from tests import runs, zero_shot_sets


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """secret/ lies beside the data set, which has links to it."""
    base = tmp_path_factory.mktemp("place")
    runs.write_image(base / "secret" / "s.png", (9, 9, 9), 1)
    runs.write_image(base / "root-secret" / "s.png", (9, 9, 9), 1)
    root = base / "root"
    for i in range(4):
        runs.write_image(root / "images" / f"{i}.png", (60 * i, 9, 9), i)
    runs.write_image(root / "more" / "m.png", (9, 99, 9), 9)
    (root / "images" / "file.png").symlink_to(base / "secret" / "s.png")
    (root / "images" / "relative.png").symlink_to("../../secret/s.png")
    (root / "images" / "folder").symlink_to(base / "secret")
    (root / "images" / "chain").symlink_to("folder")
    (root / "images" / "odd.xyz").symlink_to(base / "secret" / "s.png")
    (root / "images" / "up").symlink_to("..")
    return root


def outside(root):
    secret = root.parent / "secret"
    return [
        "../../secret/s.png", "../../secret/s", "../images/../../secret/s.png", f"{secret}/s.png",
        f"{secret}/s", f"{root}/../secret/s.png", f"{root}/images/../../secret/s.png", "file.png",
        "file", "FILE.png", "./file.png", "relative.png", "./relative", "folder/s.png",
        "folder/s", "folder//s.png", "folder/../secret/s.png", "chain/s.png", "chain/./s",
        "odd.xyz",
        "up/../secret/s.png", "..\\..\\secret\\s.png", "folder\\s.png",
        "images/../../../secret/s.png",
        "../../root-secret/s.png", f"{root}-secret/s.png", "/etc/hostname", "/proc/self/environ",
        "../../../../../../../../etc/passwd", "/dev/zero", "0.png/../../../secret/s.png",
        "nothing/../../../secret/s.png", "../more/../../secret/s.png", f"/{secret}/s.png",
    ]  # fmt: skip


NO_IMAGES = [
    "a\0.png", "\0", "a\n.png", "x" * 5000, "x/" * 3000, "y" * 256 + ".png", "\u00e9" * 200,
    "http://example.org/a.png", "https://e.org/a", "file:///etc/passwd", "s3://b/a.png", "gs://b/a",
    "data:image/png;base64,AAAA", "~/a.png", "~", "\udcff.png", "\ud800", ".hidden.png", "._0.png",
    "sub/._0.png", ".git/a.png", "__MACOSX/0.png", "__MACOSX/._0.png", "Thumbs.db", "THUMBS.DB",
    "desktop.ini", "0.png.tmp", "sub/.DS_Store", "\x1b[31mred.png", "\x7f.png", "FTP://h/a.png",
    ".cache\\a.png",
]  # fmt: skip


def test_names_that_lead_out(place):
    known = NamedFiles.below(place / "images", place)
    assert sorted(known.files) == [f"{i}.png" for i in range(4)]
    assert len(outside(place)) > 30
    for name in outside(place):
        with pytest.raises(UserError, match=r"here: image .* outside of .*data.allow_outside=True"):
            known.file(known.name(name, "here"))


@pytest.mark.parametrize("name", NO_IMAGES)
def test_names_of_no_image(name, place):
    known = NamedFiles.below(place / "images", place)
    with pytest.raises(UserError, match=r"here: image .* write the name of an image file there"):
        known.name(name, "here")
    with pytest.raises(UserError, match=r"here: image .* write the name of an image file there"):
        places.Written(places.Roots([place])).file(place, name, "here")


def test_names_that_may_be(place):
    known = NamedFiles.below(place / "images", place)
    assert known.file(known.name("../more/m.png", "")) == os.path.realpath(place / "more" / "m.png")
    assert known.name("up/images/1.png", "") == known.name("folder/../root/images/1", "") == "1.png"
    for name in (
        "lost.png",
        "a...png",
        "CON.png",
        "a%00.png",
        "-rf",
        "*.png",
        "C:\\a",
    ):
        assert not os.path.exists(str(known.file(known.name(name, ""))))


def test_a_link_laid_directly_in_a_root_is_one(tmp_path):
    runs.write_image(tmp_path / "disk" / "a" / "x.png", (9, 9, 9), 1)
    runs.write_image(tmp_path / "disk" / "y.png", (9, 99, 9), 2)
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "images").symlink_to(tmp_path / "disk" / "a")
    (tmp_path / "disk" / "a" / "deep").symlink_to(tmp_path / "disk")
    known = NamedFiles.below(tmp_path / "root" / "images", tmp_path / "root")
    assert list(known.files) == ["x.png"]
    with pytest.raises(UserError, match=r"outside of"):
        known.name("deep/y.png", "here")
    (tmp_path / "alias").symlink_to(tmp_path / "root")  # a root may itself be a link
    assert (
        NamedFiles.below(tmp_path / "alias" / "images", tmp_path / "alias").name("X", "") == "x.png"
    )


def write_folder(root, name):
    for split in ("train", "val"):
        lines = [{"reference": "0.png", "target": "1.png", "text": "x"}] * 2
        lines += [{"reference": "2.png", "target": name, "text": "x"}]
        (root / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))


@pytest.mark.parametrize("name", ["../../secret/s.png", "file", "folder/s.png"])
def test_every_way_into_a_folder_data_set(name, place, tmp_path):
    write_folder(place, name)
    refused = r"train.jsonl:3: image .* is .*/secret/s.png, outside of .*data.allow_outside=True"
    with pytest.raises(UserError, match=refused):
        folder.read(place)
    with pytest.raises(UserError, match=refused):
        doctor.examine("folder", place)
    config = runs.tiny(tmp_path, place, data="folder")
    with pytest.raises(UserError, match=refused):
        loading.load(config, captions=False)
    with pytest.raises(UserError, match=refused.replace("train", "val")):
        benchmark.build(config)
    (place / "gallery.txt").write_text(f"0.png\n{name}\n")
    with pytest.raises(UserError, match=r"gallery.txt:2: image .* outside of"):
        folder.gallery(place)
    (place / "gallery.txt").unlink()
    trusted = configs.override(config, ["data.allow_outside=True"])
    (read,) = loading.load(trusted, captions=False)
    path = read.paths[read.triplets[2].target]
    assert os.path.samefile(path, place.parent / "secret" / "s.png")
    assert len(benchmark.build(trusted).task.names) == 4


@pytest.mark.parametrize("name", ["../../secret/s", "../../secret/s.png", "file", "folder/s"])
def test_fashioniq(name, tmp_path):
    (tmp_path / "secret").mkdir()
    runs.write_image(tmp_path / "secret" / "s.png", (9, 9, 9), 1)
    root = runs.write_fashioniq(tmp_path / "root", images=6, triplets=4, categories=("dress",))
    (root / "images" / "file.png").symlink_to(tmp_path / "secret" / "s.png")
    (root / "images" / "folder").symlink_to(tmp_path / "secret")
    record = {"candidate": name, "target": "B0001", "captions": ["is red", "is long"]}
    runs.dump(root / "captions/cap.dress.train.json", [record])
    with pytest.raises(UserError, match=r"triplet dress/0: image .* is .*/secret/s.*, outside of"):
        fashioniq.read(root)


def test_cirr_circo_and_captions(tmp_path):
    runs.write_image(tmp_path / "secret" / "s.png", (9, 9, 9), 1)
    root = runs.write_cirr(tmp_path / "cirr")
    file = root / "cirr/image_splits/split.rc2.train.json"
    listed = json.loads(file.read_text())
    name = list(listed)[3]
    link = root / "train" / "link.png"
    link.symlink_to(tmp_path / "secret" / "s.png")
    for path in ("./../secret/s.png", str(tmp_path / "secret" / "s.png"), "./train/link.png"):
        runs.dump(file, listed | {name: path})
        with pytest.raises(UserError, match=rf"split.rc2.train.json: {name}: image .* outside of"):
            cirr.read(root)
    circo_root = zero_shot_sets.write_circo(tmp_path / "circo")
    file = circo.image_list(circo_root)
    content = json.loads(file.read_text())
    content["images"][2]["file_name"] = "../../../secret/s.png"
    runs.dump(file, content)
    with pytest.raises(UserError, match=r"image_info_unlabeled2017.json image 2: image .* outside"):
        circo.candidates(circo_root)
    runs.dump(tmp_path / "data" / "it.json", [{"image_path": "../secret/s.png", "caption": "x"}])
    with pytest.raises(UserError, match=r"it.json:1: image .* outside of"):
        captions.read(tmp_path / "data" / "it.json")


@pytest.mark.parametrize(
    "record",
    [
        {"reference": "s", "reference_path": "../secret/s.png"},
        {"reference": "s", "reference_path": "{base}/secret/s.png"},
        {"reference": "s", "reference_path": "it/link.png"},
        {"reference": "s", "reference_path": "../secret/shard.tar@512+100"},
        {"reference": "s", "reference_path": "it/link.tar@512+100"},
        {"reference": "../../secret/s.png"},
    ],
)
def test_generated_triplets(record, place, tmp_path):
    base = tmp_path
    runs.write_image(base / "secret" / "s.png", (9, 9, 9), 1)
    (base / "secret" / "shard.tar").write_bytes(b"x" * 2048)
    # A link laid directly in a root is a root: these lie one level below.
    (base / "made" / "it").mkdir(parents=True)
    (base / "made" / "it" / "link.png").symlink_to(base / "secret" / "s.png")
    (base / "made" / "it" / "link.tar").symlink_to(base / "secret" / "shard.tar")
    root = runs.write_fashioniq(base / "root")
    record = {k: v.replace("{base}", str(base)) for k, v in record.items()}
    line = {"target": "B0001", "text": "x", **record}
    (base / "made" / "it.jsonl").write_text(json.dumps(line))
    given = [f"data.generated={base}/made/it.jsonl", "data.annotated=0",
             f"data.generated_images={root}/images"]  # fmt: skip
    with pytest.raises(UserError, match=r"it.jsonl:1: image .* outside of .*data.allow_outside=T"):
        runs.load("fashioniq", root, *given)
    assert runs.load("fashioniq", root, *given, "data.allow_outside=True")


def test_lists_of_images(tmp_path):
    for name in ("secret/s", "root/in", "root/too"):
        runs.write_image(tmp_path / f"{name}.png", (9, len(name), 9), 1)
    (tmp_path / "root" / "deep").mkdir()
    (tmp_path / "root" / "deep" / "link.png").symlink_to(tmp_path / "secret" / "s.png")

    def pool(*rows):
        (tmp_path / "root" / "it.csv").write_text("\n".join(["image,title", *rows]))
        return pools.read(configs.load("positives:list", [f"data.lists={tmp_path}/root/it.csv"]))

    for name in ("../secret/s.png", f"{tmp_path}/secret/s.png", "deep/link.png"):
        with pytest.raises(UserError, match=r"it.csv:3: image .* outside of"):
            pool("in.png,a", f"{name},b")
    assert list(pool("in.png,a", "./in.png,b", "too.png,c", "deep/../too.png,d").paths) == [
        "in.png", "too.png",
    ]  # fmt: skip


def test_unlabelled_images(place, tmp_path, capsys):
    write_folder(place, "3.png")
    config = runs.tiny(tmp_path, place, stage=2, data="folder")

    def read(changes):
        changed = configs.override(config, changes)
        return unlabelled.read(changed, held_out.of(changed))

    runs.dump(place / "list.json", ["more/m.png", "../secret/s.png"])
    with pytest.raises(UserError, match=r"list.json record 1: image .* outside of"):
        read(["data.unlabelled=list.json"])
    with pytest.raises(UserError, match=r"data.unlabelled: no image in .*captions; give another"):
        (place / "captions").mkdir(exist_ok=True)
        read(["data.unlabelled=captions"])
    found = read(["data.unlabelled=more"])
    assert list(found) == ["more/m.png"]
    (place / "val.jsonl").unlink()
    (place / "val.jsonl").write_text('{"reference": "0.png", "target": "1.png", "text": "x"}\n')
    assert sorted(read(["data.unlabelled=split"])) == [
        "2.png", "3.png",
    ]  # fmt: skip
    assert "links below" in capsys.readouterr().out
    write_folder(place, "3.png")


LITTER = (".a.png", "._0.png", ".hidden/a.png", "__MACOSX/0.png", "__MACOSX/._0.png", "a.png.tmp",
          "sub/.x.jpg", ".git/x.png", "Thumbs.db", "sub/desktop.ini", "x.tmp", "__macosx/a.png",
          ".Trash-0/b.png", ".thumbnails/c.jpg")  # fmt: skip


def test_litter_is_no_image(tmp_path):
    for name in ("a.png", "sub/b.JPG", *LITTER):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(b"x")
    assert list(images_below(tmp_path).files) == ["a.png", "sub/b.JPG"]
    assert list(fashioniq.StemFiles(tmp_path)) == ["a", "b"]
    made = configs.load("positives:folder", [f"data.root={tmp_path}"])
    assert list(pools.read(made).paths) == ["a.png", "sub/b.JPG"]


def test_loops_end_and_every_folder_is_listed_once(tmp_path):
    root = tmp_path / "root"
    for folder_ in ("a", "b/c", "../far/x", "../far/y"):
        runs.write_image(root / folder_ / "i.png", (9, 9, 9), 1)
    (root / "b" / "self").symlink_to(".")
    (root / "b" / "up").symlink_to("..")
    (root / "b" / "above").symlink_to("../..")
    (root / "b" / "to_a").symlink_to("../a")
    (root / "far").symlink_to("../far")
    (root / "far2").symlink_to("../far")
    (root / "far" / "x" / "back").symlink_to(root)
    (root / "gone").symlink_to("nowhere")
    (root / "one").symlink_to("two")
    (root / "two").symlink_to("one")
    # Two links a level: a walk that listed each path would list a million folders.
    for level in range(20):
        (tmp_path / "far" / f"l{level}").mkdir()
        for way in "lr":
            (tmp_path / "far" / f"l{level}" / way).symlink_to(f"../l{level + 1}")
    found = images_below(root)
    assert list(found.files) == ["a/i.png", "b/c/i.png", "far/x/i.png", "far/y/i.png"]
    known = NamedFiles.below(root)
    for written in ("b/to_a/i", "b/self/c/i.png", "far2/x/i.png", "b/up/a/i", "far/x/back/a/i.png"):
        assert known.name(written, "") in found.files, written


def test_links_in_a_shard_are_no_images(tmp_path):
    runs.write_image(tmp_path / "s.png", (9, 9, 9), 1)
    for number, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE)):
        (tmp_path / str(number)).mkdir()
        with tarfile.open(tmp_path / str(number) / "0.tar", "w") as archive:
            member = tarfile.TarInfo("a.png")
            member.type, member.linkname = kind, str(tmp_path / "s.png")
            archive.addfile(member)
            for name in ("b.png", "c.png"):
                archive.add(tmp_path / "s.png", name)
        made = configs.load("positives:list", [f"data.lists={tmp_path / str(number)}"])
        assert list(pools.read(made).paths) == ["b", "c"]


def test_one_listing_per_folder(tmp_path, monkeypatch):
    """A million files: no question about each of them."""
    for i in range(40):
        runs.write_image(tmp_path / "images" / f"{i:02}.png", (i, 9, 9), 1)
    asked = []
    for name in ("stat", "lstat"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, _real=real, **k: asked.append(a) or _real(*a, **k))
    known = NamedFiles.below(tmp_path / "images", tmp_path)
    for i in range(40):
        known.name(f"{i:02}", "")
    listing = len(asked)
    places.distinct(known.files)
    written = places.Written(places.Roots([tmp_path]))
    for i in range(40):
        written.file(tmp_path / "images", f"{i:02}.png", "")
    assert listing < 20 and len(asked) < 80
    more = len(asked)
    places.distinct(known.files)
    assert len(asked) - more < 30


def test_a_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    (tmp_path / "shut").mkdir()
    real = os.scandir

    def refuse(path):
        if str(path).endswith("shut/"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(
        UserError, match=r"shut/ cannot be listed \(Permission denied\); correct it"
    ):
        images_below(tmp_path)


def test_readers_of_others_are_checked_too(tmp_path):
    runs.write_image(tmp_path / "secret.png", (9, 9, 9), 1)
    (tmp_path / "reader.py").write_text(
        "from cir_jax.data.triplets import Triplet, TripletSet\n"
        "def read(root, split='train', categories=()):\n"
        "    one = Triplet('a', 'b', ('x',), 'x', 'mine', '0')\n"
        f"    paths = {{'a': {str(tmp_path / 'secret.png')!r}, 'b': root}}\n"
        "    return [TripletSet('mine', (one,), paths)]\n"
    )
    (tmp_path / "root").mkdir()
    given = str(tmp_path / "reader.py"), tmp_path / "root"
    changes = ("eval.benchmark=none",)
    with pytest.raises(UserError, match=r"mine: image 'a' is .*secret.png, outside of"):
        runs.load(*given, *changes)
    assert runs.load(*given, *changes, "data.allow_outside=True")


def test_outside_a_config_the_caller_names_the_files(tmp_path):
    line = {"reference": "s", "target": "t", "text": "x", "reference_path": "../s.png"}
    (tmp_path / "it.jsonl").write_text(json.dumps(line | {"target_path": "../t.png"}))
    (read,) = generated.read([tmp_path / "it.jsonl"], {}, tmp_path)
    assert read.paths["s"] == str(tmp_path / "../s.png")
