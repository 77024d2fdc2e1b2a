# SPDX-License-Identifier: Apache-2.0
"""Preprocessing of real files against the released pipeline, to the last bit.

`released` is that pipeline written down once more with Pillow alone: pad, resize the short side,
crop the centre, and RGB last. The same comparison against torchvision's own transforms, 0.14 (of
the released code) and 0.28, found no pixel that differs.
"""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from cir_jax.contract import normalize
from cir_jax.data.pixels import IMAGE_MEAN, IMAGE_STD, Preprocess
from cir_jax.errors import UserError

PADS = ("target", "square", "none")
MODES = ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16")
# Square, odd, one pixel wide, 20:1, 1:20, and the 1.25 that TargetPad leaves alone.
SHAPES = ((24, 24), (31, 20), (1, 9), (80, 4), (4, 80), (20, 33), (1, 1), (20, 25), (25, 20))


def picture(mode, size, seed=5):
    rng = np.random.default_rng(seed)
    colour = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8))
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 65536, (size[1], size[0])).astype(np.uint16))
    if mode in ("RGBA", "LA"):
        colour.putalpha(Image.fromarray(rng.integers(0, 256, (size[1], size[0]), np.uint8)))
    return colour.convert(mode)


def released(image, size, pad):
    """Pad, resize, crop, and RGB last, on PIL pictures, from the description of the pipeline."""
    width, height = image.size
    side = {"target": max(width, height) / 1.25, "square": max(width, height), "none": 0}[pad]
    if pad == "target" and max(width, height) / min(width, height) < 1.25:
        side = 0
    left, top = max(int((side - width) / 2), 0), max(int((side - height) / 2), 0)
    canvas = Image.new(image.mode, (width + 2 * left, height + 2 * top), 0)
    if image.mode == "P":
        canvas.putpalette(image.getpalette())
    canvas.paste(image, (left, top))
    width, height = canvas.size
    long = int(size * max(width, height) / min(width, height))
    new = (size, long) if width <= height else (long, size)
    canvas = canvas.resize(new, Image.BICUBIC)
    x, y = round((new[0] - size) / 2), round((new[1] - size) / 2)
    return np.asarray(canvas.crop((x, y, x + size, y + size)).convert("RGB"))


def png_of_16_bits(channels, size=(30, 21)):
    """A PNG of 16 bits a channel, which Pillow reads but does not write."""
    values = np.random.default_rng(7).integers(0, 65536, (size[1], size[0], channels))
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    kind = {3: 2, 4: 6}[channels]  # of colour, without and with transparency

    def chunk(name, content):
        check = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + check

    header = struct.pack(">IIBBBBB", *size, 16, kind, 0, 0, 0)
    parts = (("IHDR", header), ("IDAT", zlib.compress(rows)), ("IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(n.encode(), c) for n, c in parts)


def write_files(folder):
    """One file of every kind that a data set has been seen to hold; their paths."""

    def save(name, mode, size=(30, 21), **options):
        picture(mode, size).save(folder / name, **options)

    for mode in ("RGB", "RGBA", "L", "LA", "P", "1", "I;16"):
        save(f"{mode.replace(';', '')}.png", mode)
    save("transparent index.png", "P", transparency=3)
    save("transparent table.png", "P", transparency=bytes(range(256)))
    picture("RGB", (30, 21)).quantize(4).save(folder / "2 bits.png", bits=2)
    for channels in (3, 4):
        (folder / f"16 bits x {channels}.png").write_bytes(png_of_16_bits(channels))
    for mode in ("RGB", "L", "CMYK"):
        save(f"{mode}.jpg", mode)
        save(f"{mode}.tiff", mode, compression="tiff_lzw")
    save("progressive.jpg", "RGB", progressive=True, quality=60)
    save("I16.tiff", "I;16")
    Image.fromarray(np.float32(picture("L", (30, 21)))).save(folder / "F.tiff")
    for mode in ("RGB", "L", "P", "1"):
        save(f"{mode}.bmp", mode)
    save("lossy.webp", "RGB")
    save("transparent.webp", "RGBA", lossless=True)
    frames = [picture("P", (30, 21), seed) for seed in range(3)]
    frames[0].save(folder / "animated.gif", save_all=True, append_images=frames[1:])
    frames[0].save(
        folder / "animated transparent.gif", save_all=True, append_images=frames[1:], transparency=0
    )
    coloured = [frame.convert("RGB") for frame in frames]
    coloured[0].save(
        folder / "animated.webp", save_all=True, append_images=coloured[1:], lossless=True
    )
    for direction in (6, 8):
        tag = Image.Exif()
        tag[0x0112] = direction
        save(f"turned {direction}.jpg", "RGB", exif=tag)
    for size in SHAPES:
        save(f"{size[0]}x{size[1]}.png", "RGB", size)
        save(f"{size[0]}x{size[1]}.gif", "P", size)
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("files"))


# Pillow would rather have it RGBA; the released pipeline resizes it as a palette.
@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize("pad", PADS)
@pytest.mark.parametrize("size", [7, 224, 288])
def test_files_to_the_last_bit(files, size, pad):
    preprocess, modes = Preprocess(size, pad), set()
    for path in files:
        got = preprocess(str(path))
        assert got.shape == (size, size, 3) and got.dtype == np.uint8
        with Image.open(path) as image:
            modes.add(image.mode)
            np.testing.assert_array_equal(got, released(image, size, pad), err_msg=path.name)
    assert modes == {*MODES, "F"}  # no format was quietly written as another one


@pytest.mark.parametrize("pad", PADS)
@pytest.mark.parametrize("mode", MODES)
def test_pictures_in_memory_to_the_last_bit(mode, pad):
    for size in SHAPES:
        image = picture(mode, size)
        got = Preprocess(16, pad)(image)
        np.testing.assert_array_equal(got, released(image, 16, pad))


@pytest.mark.parametrize("direction", [6, 8])
def test_a_turned_photograph_stays_as_it_is_stored(files, direction):
    folder = files[0].parent
    preprocess = Preprocess(24)
    got = preprocess(folder / f"turned {direction}.jpg")
    np.testing.assert_array_equal(got, preprocess(folder / "RGB.jpg"))


def test_the_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (30, 21), colour) for colour in ("red", "lime", "blue")]
    for suffix, options in (("gif", {}), ("webp", {"lossless": True}), ("png", {}), ("tiff", {})):
        path = tmp_path / f"animated.{suffix}"
        frames[0].save(path, save_all=True, append_images=frames[1:], **options)
        assert np.all(Preprocess(16, "none")(path) == (255, 0, 0)), suffix


def test_transparency_is_dropped_not_blended(tmp_path):
    Image.new("RGBA", (8, 8), (200, 100, 50, 128)).save(tmp_path / "half.png")
    assert np.all(Preprocess(8)(tmp_path / "half.png") == (200, 100, 50))


@pytest.mark.parametrize("name", ["RGB.png", "RGB.jpg", "RGB.bmp", "P.bmp", "lossy.webp"])
def test_a_cut_off_file_is_refused(files, tmp_path, name):
    content = (files[0].parent / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) * 3 // 4])
    with pytest.raises(UserError, match=rf"{name} cannot be decoded .*; fetch it again, or remove"):
        Preprocess(16)(tmp_path / name)


def test_every_value_normalised_as_in_torch():
    """All 256 values of the three channels, within 5e-7 of PyTorch's."""
    pixels = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    mean, deviation = torch.tensor(IMAGE_MEAN), torch.tensor(IMAGE_STD)
    want = ((torch.from_numpy(pixels).float() / 255 - mean) / deviation).numpy()
    exact = (pixels / 255.0 - np.asarray(IMAGE_MEAN)) / np.asarray(IMAGE_STD)
    got = normalize(pixels)
    np.testing.assert_allclose(got, want, rtol=0, atol=5e-7)
    np.testing.assert_allclose(got, exact, rtol=0, atol=1e-6)
