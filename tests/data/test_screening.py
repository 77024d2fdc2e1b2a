# SPDX-License-Identifier: Apache-2.0
"""Images that cannot be used: one notion, all of them at once, and a scan that is kept."""

import io
import json
import os
import tarfile

import pytest
from PIL import Image

from cir_jax.data import kept_looks, picture_files, refusals, screening, unusable
from cir_jax.data.inspection import inspect_images
from cir_jax.data.pixels import NATURAL, RELEASED, Crop, open_image
from cir_jax.data.screening import DECODE, LOOK, Explained, Screen, scan
from cir_jax.datasets import shards
from cir_jax.errors import UserError
from tests import runs


def encoded(kind, seed=1, side=48):
    colours = [(seed * i) % 251 for i in range(side * side * 3)]
    image = Image.frombytes("RGB", (side, side), bytes(colours))
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def write_broken(folder):
    """Name -> file of images that cannot be used, and the reason of each."""
    page, pixels = b"<!DOCTYPE html><html>403</html>", encoded("PNG")
    files = {
        "page.jpg": (page, "no image"),
        "error.png": (b'{"error": "gone"}', "no image"),
        "pointer.jpg": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "no image"),
        "words.gif": (b"not found", "no image"),
        "zip.png": (b"PK\x03\x04" + bytes(99), "no image"),
        "zeros.jpg": (bytes(5000), "no image"),
        "empty.jpg": (b"", "empty (0 bytes)"),
        "signature.png": (pixels[:8], "cut off"),
        "huge.png": (pixels[:16] + (60_000).to_bytes(4) * 2 + pixels[24:], None),
    }
    for kind in ("JPEG", "PNG", "WEBP"):
        whole = encoded(kind)
        for share in (0.5, 0.9):
            files[f"{share}.{kind.lower()}"] = (whole[: int(len(whole) * share)], "cut off")
    found = {}
    for name, (content, reason) in files.items():
        (folder / name).write_bytes(content)
        found[name] = reason
    (folder / "folder.jpg").mkdir()
    os.mkfifo(folder / "pipe.jpg")
    (folder / "link.jpg").symlink_to("nowhere.jpg")
    found |= {"folder.jpg": "no file", "pipe.jpg": "no file", "link.jpg": "missing"}
    return {n: str(folder / n) for n in [*found, "gone.jpg"]}, found | {"gone.jpg": "missing"}


def test_every_kind_of_broken_file_is_found_at_the_start(tmp_path):
    paths, reasons = write_broken(tmp_path)
    for depth in (LOOK, DECODE):
        found = scan(paths, depth)
        within = {"huge.png"} if depth == LOOK else set()  # its ends are those of a whole file
        assert found.keys() == paths.keys() - within
        wrong = {
            n: str(found[n])
            for n, r in reasons.items()
            if n in found and r and found[n].reason != r
        }
        assert not wrong
    assert set(inspect_images(paths).unusable()) == paths.keys()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_whole_files_pass_and_parts_are_as_the_decoder_says(tmp_path, kind):
    whole, paths = encoded(kind, side=24), {}
    for number in range(12):
        paths[f"{number}"] = str(tmp_path / f"{number}")
        (tmp_path / f"{number}").write_bytes(whole[: len(whole) * (number + 1) // 12])
    refused = set()
    for name, path in paths.items():
        try:
            open_image(path)
        except UserError:
            refused.add(name)
    assert "11" not in refused and len(refused) > 5
    assert set(scan(paths, DECODE)) == set(scan(paths, LOOK)) == refused


def test_an_error_has_all_of_them_and_a_list(tmp_path):
    paths, _ = write_broken(tmp_path)
    runs.write_image(tmp_path / "good.png", (1, 2, 3))
    paths["good.png"] = str(tmp_path / "good.png")
    screen = Screen("error", key="eval.on_missing", folder=str(tmp_path / "run"))
    with pytest.raises(UserError, match=r"and \d+ more.* set eval.on_missing=drop to") as error:
        screen.unusable(paths)
    assert f"{len(paths) - 1} of {len(paths)} images" in str(error.value)
    listed = [json.loads(x) for x in (tmp_path / "run" / refusals.LIST).open()]
    assert {one["image"] for one in listed} == paths.keys() - {"good.png"}
    assert set(Screen("drop").unusable(paths)) == paths.keys() - {"good.png"}
    Screen("error", folder=str(tmp_path / "run")).unusable({"good.png": paths["good.png"]})
    assert not (tmp_path / "run" / refusals.LIST).exists()


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Name -> file of five images whose looks are kept, and the files that were decoded since."""
    monkeypatch.setenv("CIR_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(screening, "LEAST", 1)
    monkeypatch.setattr(kept_looks, "LEAST", 1)
    paths = {}
    for number in range(5):
        paths[f"{number}"] = str(tmp_path / f"{number}.jpg")
        (tmp_path / f"{number}.jpg").write_bytes(encoded("JPEG", number + 1))
        os.utime(tmp_path / f"{number}.jpg", (1_000, 1_000 + number))
    (tmp_path / "4.jpg").write_bytes(b"<html>")
    os.utime(tmp_path / "4.jpg", (1_000, 1_000))
    opened = []

    def open_one(source, loading=RELEASED):
        opened.append(source)
        return open_image(source, loading)

    monkeypatch.setattr(screening, "open_image", open_one)
    return str(tmp_path), paths, opened


def test_a_second_start_opens_nothing(kept):
    root, paths, opened = kept
    assert list(scan(paths, DECODE, root=root)) == ["4"] and len(opened) == 5
    for depth in (DECODE, LOOK):
        assert str(scan(paths, depth, root=root)["4"]).endswith("(no image: an HTML page)")
    assert len(opened) == 5


def test_a_look_is_not_taken_for_a_decoding(kept):
    root, paths, opened = kept
    assert list(scan(paths, LOOK, root=root)) == ["4"] and len(opened) == 1
    scan(paths, DECODE, root=root)
    assert len(opened) == 5  # the broken one is known already


def test_another_time_or_content_is_noticed(kept):
    root, paths, opened = kept
    scan(paths, DECODE, root=root)
    opened.clear()
    os.utime(paths["0"])  # the same content: a few bytes are compared
    assert list(scan(paths, DECODE, root=root)) == ["4"] and not opened
    with open(paths["1"], "r+b") as file:
        file.truncate(700)
    (size := os.stat(paths["2"]).st_size, os.truncate(paths["2"], 0))
    with open(paths["2"], "wb") as file:
        file.write(bytes(size))  # as large as before
    with open(paths["4"], "wb") as file:
        file.write(encoded("JPEG"))  # mended
    assert list(scan(paths, DECODE, root=root)) == ["1", "2"]


def test_damaged_looks_are_made_again(kept):
    root, paths, opened = kept
    scan(paths, DECODE, root=root)
    [file] = (f for f in os.scandir(f"{root}/cache/{kept_looks.FOLDER}") if f.name[-4:] == "json")
    held = json.loads(open(file.path, "rb").read())["images"]
    spoiled = [
        {"version": 1, "images": {place: [*known[:at], value, *known[at + 1 :]]}}
        for place, known in held.items()
        for at, value in enumerate(("1", "2", 3, "4", 5, [6]))
    ]
    contents = [b"{", b'{"version": 1, "images": {"x": [1]}}', b"[]", b'{"version": 9}',
                b"[" * 9999, b'{"version": 1, "images": []}']  # fmt: skip
    for content in [*contents, *(json.dumps(one).encode() for one in spoiled[:6])]:
        with open(file.path, "wb") as out:
            out.write(content)
        opened.clear()
        assert list(scan(paths, DECODE, root=root)) == ["4"] and len(opened) == 5


def test_an_image_that_breaks_later_tells_of_all_others(tmp_path):
    paths = {}
    for name in ("a", "b", "c"):
        paths[name] = str(tmp_path / f"{name}.jpg")
        content = bytearray(encoded("PNG"))
        if name != "a":
            content[len(content) // 2] ^= 255  # its ends are those of a whole file
        (tmp_path / f"{name}.jpg").write_bytes(content)
    screen = Screen("error")
    assert not screen.unusable(paths)
    read = Explained(open_image, screen, paths)
    assert read(paths["a"]).size == (48, 48)
    with pytest.raises(
        UserError, match=r"2 of 3 images cannot be used (?s:.*)b.jpg.*c.jpg.*=drop"
    ) as e:
        read(paths["c"])
    assert "data.on_missing=drop" in str(e.value)
    assert set(Screen("drop").unusable(paths)) == {"b", "c"}


def test_processes_leave_out_the_same(tmp_path):
    paths = {n: str(tmp_path / f"{n}.png") for n in "abc"}
    for path in paths.values():
        runs.write_image(tmp_path / path, (1, 2, 3))
    elsewhere = {"b": unusable.Problem("/other/b.png", "missing")}
    screen = Screen("drop", agree=lambda mine: mine | elsewhere)
    assert list(screen.unusable(paths)) == ["b"]


def test_images_in_shards_are_looked_at_once_when_broken_ones_are_an_error(kept, monkeypatch):
    """A part of them is at the start; nothing is read again as long as the shard is as it was."""
    root, _, _ = kept
    contents = {"whole": encoded("PNG"), "half": encoded("JPEG")[:300], "page": b"<html>"}
    place = f"{root}/a.tar"
    with tarfile.open(place, "w") as file:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    with tarfile.open(place) as file:
        offsets = {m.name: (m.offset_data, m.size) for m in file.getmembers()}
    os.utime(place, (1_000, 1_000))
    images = {n: shards.TarImage(place, *at) for n, at in offsets.items()}
    read, before = [], shards.TarImage.read_bytes
    monkeypatch.setattr(shards.TarImage, "read_bytes", lambda x: read.append(x) or before(x))
    for _ in range(2):
        with pytest.raises(UserError, match=r"2 of 3 images .*1 cut off, 1 no image") as error:
            Screen("error", root=root).unusable(images)
        assert f"{place}@" in str(error.value)
        seen = len(read)
        read.clear()
    assert not seen
    os.utime(place, (2_000, 2_000))
    assert set(scan(images, LOOK, root=root)) == {"half", "page"} and read


def test_a_box_outside_its_image_is_found_at_the_start(kept):
    """Each image is decoded once for all its boxes, and its size is kept."""
    root, paths, opened = kept
    images = {
        "whole": paths["0"],
        "inside": Crop(paths["0"], (40, 40, 20, 20)),
        "beside": Crop(paths["0"], (50, 0, 20, 20)),
        "by dilation": Crop(paths["1"], (50, 0, 10, 20), 0.7),
        "of a page": Crop(paths["4"], (0, 0, 20, 20)),
        "of a part": Crop(Crop(paths["2"], (0, 0, 10, 10)), (12, 0, 5, 5)),
        "other": paths["3"],
    }
    reasons = {"beside": unusable.BOX, "of a page": "no image", "of a part": unusable.BOX}
    for depth in (LOOK, DECODE):
        found = scan(images, depth, root=root)
        assert {name: one.reason for name, one in found.items()} == reasons
        assert sorted(opened) == sorted(paths[n] for n in ("0", "1", "2", "4", "3")[: 3 + depth])
    assert str(found["beside"]) == (
        f"{paths['0']} box 50, 0, 20, 20 (box outside its image: 48x48 pixels)"
    )
    for name, image in images.items():  # as opening them says
        if name in reasons:
            with pytest.raises(UserError):
                open_image(image)
        else:
            open_image(image)
    with pytest.raises(UserError, match=r"3 of 7 images .*2 box outside its image, 1 no image"):
        Screen("error", root=root).unusable(images)
    assert set(Screen("drop", root=root).unusable(images)) == reasons.keys()
    assert {n: p.reason for n, p in inspect_images(images).problems.items()} == reasons


def test_looks_without_the_size_of_the_image_are_made_again_where_it_is_needed(kept):
    root, paths, opened = kept
    scan(paths, DECODE, root=root)
    [file] = (f for f in os.scandir(f"{root}/cache/{kept_looks.FOLDER}") if f.name[-4:] == "json")
    content = json.loads(open(file.path, "rb").read())
    content["images"] = {place: known[:6] for place, known in content["images"].items()}
    with open(file.path, "w") as out:  # as earlier versions wrote it
        json.dump(content, out)
    opened.clear()
    assert list(scan(paths, DECODE, root=root)) == ["4"] and not opened
    box = {"box": Crop(paths["0"], (50, 0, 5, 5))}
    for _ in range(2):
        assert list(scan(box, LOOK, root=root)) == ["box"] and opened == [paths["0"]]


def test_a_box_is_of_the_picture_as_it_is_loaded(tmp_path):
    image = Image.new("RGB", (20, 40))
    exif = image.getexif()
    exif[0x0112] = 6  # lies on its side: 40 wide and 20 high as a person sees it
    image.save(tmp_path / "a.jpg", exif=exif)
    crops = {"right": Crop(str(tmp_path / "a.jpg"), (30, 0, 5, 5)),
             "below": Crop(str(tmp_path / "a.jpg"), (0, 30, 5, 5))}  # fmt: skip
    assert list(scan(crops, LOOK)) == ["right"]
    assert list(scan(crops, LOOK, loading=NATURAL)) == ["below"]


def test_other_decoders_look_again(kept, monkeypatch):
    """Such as a newer Pillow, or a package for HEIC: what was refused may open now."""
    root, paths, opened = kept
    refuse = lambda image: (_ for _ in ()).throw(UserError(f"image {image} is HEIC"))
    assert len(scan(paths, DECODE, root=root, opener=refuse)) == 5
    assert len(scan(paths, DECODE, root=root)) == 5 and not opened  # it is known
    monkeypatch.setattr(picture_files.PIL, "__version__", "99.0")
    for _ in range(2):
        assert list(scan(paths, DECODE, root=root)) == ["4"] and len(opened) == 5
    monkeypatch.setattr(picture_files.metadata, "version", lambda package: f"{package} 99")
    assert list(scan(paths, DECODE, root=root)) == ["4"] and len(opened) == 10


def blank(path):
    """Zeros of the same size and time, as a crash may leave them."""
    before = os.stat(path)
    with open(path, "wb") as file:
        file.write(bytes(before.st_size))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("on_missing", ["error", "drop"])
def test_what_a_run_finds_broken_is_not_taken_for_good_again(kept, on_missing):
    """Nor what broke with it, though sizes and times are those of the last look."""
    root, paths, opened = kept
    images = {name: path for name, path in paths.items() if name != "4"}
    screen = Screen(on_missing, root=root)
    assert not screen.unusable(images)
    blank(paths["1"]), blank(paths["3"])
    opened.clear()
    assert not screen.unusable(images) and not opened
    with pytest.raises(
        UserError, match=r"2 of 4 images cannot be used .2 no image. *: .*1.jpg"
    ) as e:
        Explained(open_image, screen, images)(paths["1"])
    assert ("start again" in str(e.value)) == (on_missing == "drop")
    # Of those that were decoded before a few bytes are compared.
    assert set(opened) == {paths[n] for n in (images if on_missing == "error" else "13")}
    again = Screen(on_missing, root=root)
    if on_missing == "drop":
        assert list(again.unusable(images)) == ["1", "3"]
    else:
        with pytest.raises(UserError, match="2 of 4 images cannot be used"):
            again.unusable(images)
