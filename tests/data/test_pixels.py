# SPDX-License-Identifier: Apache-2.0
"""Preprocessing, to the last bit: sizes of the released pipeline, odd images, broken files."""

import io

import numpy as np
import pytest
from PIL import Image

from cir_jax.data.pixels import IMAGE_MEAN, IMAGE_STD, Preprocess, normalize, open_image
from cir_jax.errors import UserError
from cir_jax.models.contract import normalize as normalize_on_device

# (width, height) -> size after TargetPad(1.25), size after the resize to 288: released code.
TARGET = {
    (400, 600): ((480, 600), (288, 360)),
    (401, 600): ((479, 600), (288, 360)),
    (37, 90): ((71, 90), (288, 365)),
    (1000, 333): ((1000, 799), (360, 288)),
    (640, 480): ((640, 512), (360, 288)),
    (480, 600): ((480, 600), (288, 360)),
}
SQUARE = {(401, 600): (599, 600), (37, 90): (89, 90)}
MODES = ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16")
SIZES = ((24, 24), (31, 20), (1, 9), (80, 4), (20, 33))


@pytest.mark.parametrize("size", TARGET)
def test_target_pad_sizes(size):
    preprocess = Preprocess(288, "target")
    left, top = preprocess.padding(*size)
    padded = (size[0] + 2 * left, size[1] + 2 * top)
    assert (padded, preprocess.resized(*padded)) == TARGET[size]


@pytest.mark.parametrize("size", SQUARE)
def test_square_pad_sizes(size):
    left, top = Preprocess(224, "square").padding(*size)
    assert (size[0] + 2 * left, size[1] + 2 * top) == SQUARE[size]


def picture(mode, size):
    rng = np.random.default_rng(5)
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


@pytest.mark.parametrize("pad", ["target", "square", "none"])
@pytest.mark.parametrize("mode", MODES)
def test_odd_images_to_the_last_bit(mode, pad):
    for size in SIZES:
        image = picture(mode, size)
        got = Preprocess(16, pad)(image)
        assert got.shape == (16, 16, 3) and got.dtype == np.uint8
        np.testing.assert_array_equal(got, released(image, 16, pad))


def test_every_source_gives_the_same(tmp_path):
    image = picture("RGB", (30, 20))
    image.save(tmp_path / "a.png")
    preprocess = Preprocess(16)
    content = (tmp_path / "a.png").read_bytes()
    for source in (str(tmp_path / "a.png"), tmp_path / "a.png", content):
        np.testing.assert_array_equal(preprocess(source), preprocess(image))


def test_orientation_tag_is_not_applied():
    image, file = picture("RGB", (30, 20)), io.BytesIO()
    tag = Image.Exif()
    tag[0x0112] = 6
    image.save(file, "PNG", exif=tag)
    assert open_image(file.getvalue()).size == (30, 20)


def test_normalize_on_host_and_device():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8)
    want = (pixels / 255.0 - np.asarray(IMAGE_MEAN)) / np.asarray(IMAGE_STD)
    np.testing.assert_allclose(normalize(pixels), want, atol=1e-6)
    np.testing.assert_allclose(normalize_on_device(pixels), want, atol=1e-6)


def test_broken_files(tmp_path):
    preprocess = Preprocess(16)
    with pytest.raises(UserError, match=r"no.png does not exist; run `cir-jax doctor`"):
        preprocess(str(tmp_path / "no.png"))
    (tmp_path / "empty.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"empty.jpg is empty \(0 bytes\)"):
        preprocess(tmp_path / "empty.jpg")
    file = io.BytesIO()
    picture("RGB", (64, 64)).save(file, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(file.getvalue()[:700])
    with pytest.raises(UserError, match=r"cut.jpg cannot be decoded"):
        preprocess(tmp_path / "cut.jpg")
    with pytest.raises(UserError, match=r"7 bytes cannot be decoded"):
        preprocess(b"nothing")


def test_bad_options():
    with pytest.raises(UserError, match=r"data.pad='targetpad' is unknown.*Did you mean 'target'"):
        Preprocess(16, "targetpad")
    with pytest.raises(UserError, match=r"data.target_ratio=0.5 is below 1"):
        Preprocess(16, "target", 0.5)
    assert Preprocess(16).fingerprint() != Preprocess(16, "none").fingerprint()
