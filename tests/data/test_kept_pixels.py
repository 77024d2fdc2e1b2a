# SPDX-License-Identifier: Apache-2.0
"""Kept pixels are those that decoding gives, of the file that is there now; and where they fit."""

import os
import re
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cir_jax import files
from cir_jax.data import kept_pixels, pixel_files
from cir_jax.data.kept_pixels import KeptPixels, place_of
from cir_jax.data.pixels import NATURAL, RELEASED, Crop, Preprocess
from cir_jax.data.screening import Screen, drop_missing
from cir_jax.data.triplets import Triplet, TripletSet
from cir_jax.datasets import shards
from cir_jax.errors import UserError
from tests import runs

SIDE = 16
LONG_AGO = 1_000_000_000


class Counting(Preprocess):
    """Counts the images that are decoded to a square."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.made = 0

    def square(self, image):
        self.made += 1
        return super().square(image)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CIR_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def images(tmp_path):
    """Files of several kinds, of times that are long ago, a part of one, and two in a shard."""
    found = []
    for number in range(6):
        path = tmp_path / "images" / f"{number}.{('png', 'jpg', 'gif')[number % 3]}"
        runs.write_image(path, (40 * number, 90, 200), number, size=(40, 23 + 9 * number))
        found.append(str(path))
    turned = tmp_path / "images" / "turned.png"
    palette = Image.open(found[0]).convert("P")
    exif = Image.Exif()
    exif[0x0112] = 6
    palette.save(turned, exif=exif, transparency=3)
    found.append(str(turned))
    for path in found:
        os.utime(path, (LONG_AGO, LONG_AGO))
    with tarfile.open(tmp_path / "shard.tar", "w") as shard:
        for path in found[:2]:
            shard.add(path, os.path.basename(path))
    with tarfile.open(tmp_path / "shard.tar") as shard:
        members = shard.getmembers()
    inside = [shards.TarImage(str(tmp_path / "shard.tar"), m.offset_data, m.size) for m in members]
    return [*found, Crop(found[1], (3, 4, 20, 12), 0.1), Crop(found[1], (3, 4, 20, 13)), *inside]


def kept_by(mode, images=(), loading=RELEASED, again=True, memory=10**9):
    part = KeptPixels(mode, Counting(SIDE, loading=loading), memory).part(again)
    part.expect(images)
    return part


def made(part):
    return part.kept.preprocess.made


@pytest.mark.parametrize("loading", [RELEASED, NATURAL])
@pytest.mark.parametrize("mode", ["auto", "memory", "disk"])
def test_kept_pixels_are_decoded_pixels(images, mode, loading):
    plain, part = Preprocess(SIDE, loading=loading), kept_by(mode, images, loading)
    assert part.fingerprint() == plain.fingerprint()
    for _ in range(3):
        for image in images:
            np.testing.assert_array_equal(part(image), plain(image))
    assert made(part) == len(images) == len(set(map(place_of, images)))
    later = kept_by(mode, images, loading)
    for image in images:
        np.testing.assert_array_equal(later(image), plain(image))
    assert made(later) == (0 if mode == "disk" else len(images))


def test_decode_and_what_has_no_place_keep_nothing(images, cache):
    part = kept_by("decode", images)
    for _ in range(2):
        part(images[0])
    assert made(part) == 2 and not cache.exists()
    other = kept_by("disk", images)
    for _ in range(2):
        other(open(images[0], "rb").read())
        other(Image.open(images[0]))
    assert made(other) == 4 and not cache.exists()


def test_a_relative_path_is_the_file_of_its_folder(images, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path / "images")
    part = kept_by("disk", images)
    part(images[0])
    part("0.png")
    assert made(part) == 1
    (tmp_path / "other").mkdir()
    shutil.copy2(images[1], tmp_path / "other" / "0.png")
    monkeypatch.chdir(tmp_path / "other")
    np.testing.assert_array_equal(part("0.png"), Preprocess(SIDE)(images[1]))


def replace_image(path, number, keep_time=True):
    """Another picture in a file of the same size in bytes."""
    pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), np.uint8)
    Image.fromarray(pixels).save(path, "BMP")
    when = LONG_AGO if keep_time else LONG_AGO + 50
    os.utime(path, (when, when))


@pytest.mark.parametrize("keep_time", [True, False])
@pytest.mark.parametrize("mode", ["disk"])
def test_a_file_that_changed_is_decoded_again(tmp_path, mode, keep_time):
    path = str(tmp_path / "a.bmp")
    replace_image(path, 1)
    before = kept_by(mode, [path])(path)
    replace_image(path, 2, keep_time)
    for expected in (1, 0):  # and the row is then that of the new file
        later = kept_by(mode, [path])
        now = later(path)
        np.testing.assert_array_equal(now, Preprocess(SIDE)(path))
        assert made(later) == expected and (now != before).any()
    [rows] = (tmp_path / "cache" / "pixels").glob("*/*.pixels")
    assert rows.stat().st_size == SIDE * SIDE * 3


def test_a_change_where_no_sample_is_taken_is_seen_by_the_time(tmp_path):
    """So a file counts as unchanged with another time only if all of it is."""
    path = tmp_path / "a.bmp"
    Image.new("RGB", (100, 100), "white").save(path)
    os.utime(path, (LONG_AGO, LONG_AGO))
    kept_by("disk", [path])(path)
    content = bytearray(path.read_bytes())
    content[9_000:12_000] = bytes(3_000)
    path.write_bytes(content)
    later = kept_by("disk", [path])
    np.testing.assert_array_equal(later(path), Preprocess(SIDE)(path))
    assert made(later) == 1


def test_a_file_with_another_time_keeps_its_row(images):
    part = kept_by("disk", images)
    part(images[0])
    for when in (LONG_AGO + 9, LONG_AGO + 10):
        os.utime(images[0], (when, when))
        later = kept_by("disk", images)
        later(images[0])
        assert made(later) == 0
    row = later.kept._files.find(place_of(images[0]))
    assert row.identity.time == when * 10**9  # of which the next run reads but samples
    os.utime(images[0])  # just now: it may change again within the same time
    later = kept_by("disk", images)
    later(images[0])
    assert made(later) == 0
    assert later.kept._files.find(place_of(images[0])).identity.time == when * 10**9


def test_a_file_that_is_gone_or_broken_is_an_error_that_names_it(images):
    part = kept_by("disk", images)
    part(images[0])
    os.unlink(images[0])
    later = kept_by("disk", images)
    with pytest.raises(UserError, match=f"image {images[0]} does not exist"):
        later(images[0])
    with open(images[1], "wb") as file:
        file.write(b"<html>")
    for source in (images[1], images[7]):
        with pytest.raises(UserError, match=f"image {images[1]} cannot be decoded"):
            later(source)


def test_two_that_see_other_files_by_one_path_read_their_own(tmp_path, monkeypatch):
    """As containers do that share a cache folder."""
    monkeypatch.setattr(pixel_files, "_AGAIN", 0.0)
    path, parts = str(tmp_path / "a.bmp"), []
    for number in (1, 2):
        replace_image(path, number)
        parts.append(kept_by("disk", [path]))
        want = Preprocess(SIDE)(path)
        np.testing.assert_array_equal(parts[-1](path), want)
        np.testing.assert_array_equal(parts[-1](path), want)
    for number, part in enumerate(parts, 1):
        replace_image(path, number)
        part.kept._files.missing(set())  # looks for what the other one has written
        np.testing.assert_array_equal(part(path), Preprocess(SIDE)(path))
        assert made(part) == 1


def test_a_row_that_somebody_else_replaced_is_compared_again(tmp_path, monkeypatch):
    monkeypatch.setattr(pixel_files, "_AGAIN", 0.0)
    path, other = str(tmp_path / "a.bmp"), str(tmp_path / "b.bmp")
    replace_image(other, 3)
    replace_image(path, 1)
    first, reader = kept_by("disk", [path]), kept_by("memory", again=False)
    np.testing.assert_array_equal(first(path), reader(path))
    assert made(reader) == 0
    replace_image(path, 2)
    kept_by("disk", [path])(path)
    replace_image(path, 1)
    reader(other)  # is not there, so it looks for what is new
    np.testing.assert_array_equal(reader(path), Preprocess(SIDE)(path))


def test_the_look_for_unusable_images_fills_the_store(images, tmp_path):
    sets = _sets(tmp_path, images[:6])
    part = kept_by("disk", loading=RELEASED)
    left, dropped = drop_missing(sets, Screen("drop", pixels=part))
    assert dropped == {"human": 1} and len(left[0].triplets) == 2
    assert made(part) == 4  # and not of image 4, which no triplet names
    later = kept_by("disk", images)
    for name in ("0", "1", "2", "3"):
        path = sets[0].paths[name]
        np.testing.assert_array_equal(later(path), Preprocess(SIDE)(path))
    assert made(later) == 0


def _sets(tmp_path, paths):
    """Triplets over images 0 to 3 and a broken one; image 4 is of none."""
    broken = tmp_path / "images" / "broken.jpg"
    broken.write_bytes(b"<html>")
    files = {str(i): path for i, path in enumerate(paths)} | {"broken": str(broken)}
    pairs = (("0", "1"), ("2", "3"), ("0", "broken"))
    triplets = tuple(Triplet(a, b, ("x",), "x", "human", a + b) for a, b in pairs)
    return [TripletSet("human", triplets, files)]


def test_memory_keeps_what_is_opened_again(images):
    kept = KeptPixels("memory", Counting(SIDE), 10**9)
    bank, gallery = kept.part(again=False), kept.part(again=True)
    bank.expect(images[:4])
    gallery.expect(images[4:6])
    for image in (*images[:6], *images[:6]):
        (gallery if image in images[4:6] else bank)(image)
    assert kept.preprocess.made == 4 * 2 + 2


ROW = SIDE * SIDE * 3


@pytest.mark.parametrize(
    ("mode", "memory", "free", "kind", "told"),
    [
        (
            "auto",
            4 * 6 * ROW,
            0,
            "memory",
            r"4.6 kB of memory keep 6 decoded images \(data.pixels=a",
        ),
        (
            "auto",
            4 * 6 * ROW - 1,
            2000 + 6 * ROW,
            "disk",
            r"6 images are kept at .*cache/pixels/16-",
        ),
        (
            "auto",
            4 * 6 * ROW - 1,
            2000 + 6 * ROW - 1,
            "decode",
            r"decoded each time, since 6 image",
        ),
        ("auto", 0, 2000 + 6 * ROW, "disk", r"4.6 kB, 4.6 kB of it new \(data.pixels=auto\)"),
        ("memory", 6 * ROW, 0, "memory", r"4.6 kB of memory keep 6"),
        (
            "memory",
            6 * ROW - 1,
            0,
            None,
            r"memory: 6 images take 4.6 kB of memory, of which 4.6 kB",
        ),
        ("memory", 0, 0, "memory", r"4.6 kB of memory keep 6"),
        ("disk", 10**9, 100 + 6 * ROW, "disk", r"for this run and later ones: 4.6 kB"),
        (
            "disk",
            10**9,
            99 + 6 * ROW,
            None,
            r"6 images take 4.6 kB more of the disk, of which 4.7 k",
        ),
    ],
)
def test_what_is_chosen_and_said(images, monkeypatch, capsys, mode, memory, free, kind, told):
    usage = shutil._ntuple_diskusage(10_000, 0, free)
    monkeypatch.setattr(kept_pixels.shutil, "disk_usage", lambda place: usage)
    if kind is None:
        with pytest.raises(UserError, match=told) as error:
            kept_by(mode, images[:6], memory=memory)
        assert "set data.pixels=" in str(error.value)
        return
    kept = kept_by(mode, images[:6], memory=memory).kept
    kept.say()
    assert kept.kind == kind
    [line] = capsys.readouterr().out.splitlines()
    assert re.search(told, line)


def test_what_is_there_already_takes_no_room(images, monkeypatch):
    part = kept_by("disk", images[:6])
    for image in images[:4]:
        part(image)
    part.kept._files.close()
    usage = shutil._ntuple_diskusage(10_000, 0, 100 + 2 * ROW)
    monkeypatch.setattr(kept_pixels.shutil, "disk_usage", lambda place: usage)
    assert kept_by("disk", images[:6]).kept.kind == "disk"


def test_more_images_change_the_choice(images, monkeypatch):
    usage = shutil._ntuple_diskusage(10_000, 0, 2000 + 6 * ROW)
    monkeypatch.setattr(kept_pixels.shutil, "disk_usage", lambda place: usage)
    part, kinds = kept_by("auto", memory=4 * 2 * ROW), []
    for count in (2, 4, 7):
        part.expect(images[:count])
        kinds.append(part.kept.kind)
        np.testing.assert_array_equal(part(images[0]), Preprocess(SIDE)(images[0]))
    assert kinds == ["memory", "disk", "decode"]
    many = kept_by("auto", range(10**4), memory=100)  # whose places are not looked at
    assert many.kept.kind == "decode" and not many.kept._known


def test_without_a_home_pixels_are_decoded(images, monkeypatch):
    monkeypatch.delenv("CIR_JAX_CACHE")

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(files, "cache", homeless)
    assert kept_by("auto", images, memory=1).kept.kind == "decode"
    with pytest.raises(UserError, match="there is no home"):
        kept_by("disk", images)
    part = kept_by("memory", images)
    np.testing.assert_array_equal(part(images[0]), Preprocess(SIDE)(images[0]))


def test_a_disk_that_fills_up_ends_in_decoding(images, monkeypatch, capsys):
    part = kept_by("disk", images)

    def full(*_):
        raise OSError(28, "No space left on device")

    part(images[0])
    monkeypatch.setattr(os, "pwrite", full)
    for _ in range(2):
        for image in images:
            np.testing.assert_array_equal(part(image), Preprocess(SIDE)(image))
    assert made(part) == 1 + 2 * (len(images) - 1)
    assert capsys.readouterr().out.count("No space left on device") == 1


def test_a_broken_image_in_the_look_keeps_nothing(tmp_path):
    path = tmp_path / "thin.png"
    Image.new("L", (100_000, 1)).save(path)  # it opens, and makes no square
    part = kept_by("disk", [str(path)])
    screen = Screen("drop", pixels=part)
    assert not screen.unusable({"thin": str(path)})
    assert part.open(str(path)).size == (100_000, 1)
    with pytest.raises(UserError, match="so long and thin"):
        part(str(path))


def test_a_cache_folder_that_may_not_be_entered_keeps_nothing(images, monkeypatch):
    def forbidden(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", forbidden)
    assert kept_by("auto", images, memory=1).kept.kind in ("decode", "disk")
