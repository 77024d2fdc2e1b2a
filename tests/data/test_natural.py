# SPDX-License-Identifier: Apache-2.0
"""Natural loading: every odd file becomes the picture that a person sees, in the right values."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms

from cir_jax.data.inspection import inspect_images
from cir_jax.data.pixels import NATURAL, RELEASED, Loading, Preprocess, open_image
from cir_jax.datasets import doctor
from cir_jax.errors import UserError

DRAWN = np.random.default_rng(3).integers(0, 256, (4, 6, 3), np.uint8)
RAMP = np.arange(24, dtype=np.float64).reshape(4, 6) / 23  # 0 to 1


def encoded(image, form="PNG", **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def seen(content, loading=NATURAL):
    return np.asarray(open_image(content, loading))


def tiff(values, photometric=1, kind=1, order="<"):
    """A TIFF of one band: kind 1 is unsigned, 2 signed, 3 float."""
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    height, width = values.shape
    tags = {
        256: width, 257: height, 258: values.dtype.itemsize * 8, 259: 1, 262: photometric, 273: 8,
        277: 1, 278: height, 279: len(data), 339: kind,
    }  # fmt: skip
    rows = b"".join(struct.pack(order + "HHII", tag, 4, 1, v) for tag, v in tags.items())
    head = b"II" if order == "<" else b"MM"
    return (
        head + struct.pack(order + "HI", 42, 8 + len(data)) + data
        + struct.pack(order + "H", len(tags)) + rows + bytes(4)
    )  # fmt: skip


# Orientation -> what undoes it, by numpy.
UPRIGHT = {
    1: lambda x: x, 2: lambda x: x[:, ::-1], 3: lambda x: x[::-1, ::-1], 4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1), 6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(x, 2).swapaxes(0, 1), 8: lambda x: np.rot90(x),
}  # fmt: skip


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_orientation(form, orientation):
    exif = Image.Exif()
    exif[0x112] = orientation
    options = {"lossless": True} if form == "WEBP" else {}
    content = encoded(Image.fromarray(DRAWN), form, exif=exif, **options)
    np.testing.assert_array_equal(seen(content), UPRIGHT[orientation](DRAWN))
    if form != "TIFF":  # which Pillow itself turns
        np.testing.assert_array_equal(seen(content, RELEASED), DRAWN)


def test_orientation_of_photographs():
    exif = Image.Exif()
    exif[0x112] = 6
    plain = seen(encoded(Image.fromarray(DRAWN), "JPEG", quality=95))
    for form, more in (("JPEG", {}), ("MPO", {"save_all": True, "append_images": []})):
        content = encoded(Image.fromarray(DRAWN), form, quality=95, exif=exif, **more)
        np.testing.assert_array_equal(seen(content), np.rot90(plain, -1))
    exif[0x112] = 99  # means nothing
    content = encoded(Image.fromarray(DRAWN), "JPEG", quality=95, exif=exif)
    np.testing.assert_array_equal(seen(content), plain)


GREY = np.floor(RAMP * 255 + 0.5).astype(np.uint8)
SIXTEEN = np.round(RAMP * 65535).astype(np.uint16)
DEEP = {
    "16-bit png": encoded(Image.fromarray(SIXTEEN)),
    "16-bit tiff": tiff(SIXTEEN),
    "16-bit tiff, big-endian": tiff(SIXTEEN, order=">"),
    "16-bit tiff, white is zero": tiff(65535 - SIXTEEN, photometric=0),
    "16-bit signed": tiff((SIXTEEN.astype(np.int32) - 32768).astype(np.int16), kind=2),
    "32-bit up to 255": tiff(GREY.astype(np.int32), kind=2),
    "32-bit up to 65535": tiff(SIXTEEN.astype(np.int32), kind=2),
    "32-bit signed": tiff((RAMP * 4e9 - 2e9).astype(np.int32), kind=2),
    "8-bit signed": tiff((GREY.astype(np.int16) - 128).astype(np.int8), kind=2),
    "8-bit, white is zero": tiff(255 - GREY, photometric=0),
    "float up to 1": tiff(RAMP.astype(np.float32), kind=3),
    "float, big-endian": tiff(RAMP.astype(np.float32), kind=3, order=">"),
    "float of any range": tiff((RAMP * 7 - 3).astype(np.float32), kind=3),
    "float up to 255": tiff((RAMP * 255).astype(np.float32), kind=3),
}


@pytest.mark.parametrize("name", DEEP)
def test_depth(name):
    """Black is 0, white 255, and all between lie where they should."""
    found = seen(DEEP[name]).astype(int)
    assert found.shape == (4, 6, 3) and np.ptp(found, axis=2).max() == 0
    assert np.abs(found[..., 0] - GREY).max() <= 1
    assert (found[0, 0, 0], found[-1, -1, 0]) == (0, 255)


def test_half_of_the_range_is_not_stretched():
    half = encoded(Image.fromarray((SIXTEEN // 2).astype(np.uint16)))
    assert (
        seen(half).max() == 127 and seen(tiff((RAMP / 2).astype(np.float32), kind=3)).max() == 128
    )


def test_values_that_are_no_numbers():
    odd = RAMP.astype(np.float32)
    odd[0, :3] = np.nan, np.inf, -np.inf
    assert [*seen(tiff(odd, kind=3))[0, :3, 0]] == [0, 255, 0]
    with pytest.raises(UserError, match=r"cannot be used \(none of its values is a finite number"):
        open_image(tiff(np.full((2, 2), np.nan, np.float32), kind=3), NATURAL)
    assert seen(tiff(np.full((2, 2), 9, np.float32), kind=3)).max() == 9


def blended(alpha, background):
    share = alpha[..., None] / 255
    return np.round(DRAWN * share + np.asarray(background) * (1 - share)).astype(int)


@pytest.mark.parametrize(("name", "colour"), [("white", (255,) * 3), ("#102030", (16, 32, 48))])
def test_transparency_lies_on_the_background(name, colour):
    alpha = np.arange(0, 240, 10, dtype=np.uint8).reshape(4, 6)
    image = Image.fromarray(np.dstack([DRAWN, alpha]))
    loading = Loading("natural", name)
    for form, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})):
        found = seen(encoded(image, form, **options), loading).astype(int)
        assert np.abs(found - blended(alpha, colour)).max() <= 1, form
    for mode in ("RGBa", "LA", "La"):
        deep = (image if mode == "RGBa" else image.convert("LA")).convert(mode)
        found = np.asarray(loading.of(deep)).astype(int)
        base = DRAWN if mode == "RGBa" else np.asarray(image.convert("LA"))[..., :1]
        share = alpha[..., None] / 255
        want = base * share + np.asarray(colour) * (1 - share)
        shown = alpha[..., None] > 100  # premultiplied values of little alpha are coarse
        assert np.abs((found - want) * shown).max() <= 3, mode


def test_a_palette_with_alpha():
    image = Image.new("PA", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([(0, 255), (1, 128)])
    assert np.asarray(NATURAL.of(image)).tolist() == [[[10, 20, 30], [227, 177, 152]]]


@pytest.mark.parametrize("form", ["PNG", "GIF"])
def test_palettes_with_transparency(form):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1])
    found = seen(encoded(image, form, transparency=1))
    assert found.tolist() == [[[10, 20, 30], [255, 255, 255]]]
    if form == "PNG":
        half = seen(encoded(image, form, transparency=bytes([255, 128])))
        assert half[0, 1].tolist() == [227, 177, 152]


def test_one_transparent_colour():
    rgb, grey = Image.fromarray(DRAWN), Image.fromarray(DRAWN[..., 0])
    clear = tuple(int(v) for v in DRAWN[1, 2])
    assert seen(encoded(rgb, transparency=clear))[1, 2].tolist() == [255] * 3
    assert seen(encoded(grey, transparency=clear[0]))[1, 2].tolist() == [255] * 3
    deep = encoded(Image.fromarray(SIXTEEN), transparency=0)
    assert seen(deep)[0, :2, 0].tolist() == [255, GREY[0, 1]]
    bits = Image.fromarray(DRAWN[..., 0] > 99)
    assert seen(encoded(bits, transparency=0)).min() == 255


def test_other_modes():
    rgb = Image.fromarray(DRAWN)
    for form in ("JPEG", "TIFF"):
        cmyk = encoded(rgb.convert("CMYK"), form, **({"quality": 100} if form == "JPEG" else {}))
        assert np.abs(seen(cmyk).astype(int) - DRAWN).mean() < 8
    lab = ImageCms.profileToProfile(
        *(rgb, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")), outputMode="LAB"
    )
    assert np.abs(seen(encoded(lab, "TIFF")).astype(int) - DRAWN).mean() < 4
    bits = Image.fromarray(DRAWN[..., 0] > 99)
    for form, more in (("PNG", {}), ("TIFF", {"compression": "group4"}), ("BMP", {})):
        found = seen(encoded(bits, form, **more))
        np.testing.assert_array_equal(found[..., 0], np.where(DRAWN[..., 0] > 99, 255, 0))


def test_a_profile_of_cmyk_is_used(monkeypatch, capsys):
    content = encoded(Image.fromarray(DRAWN).convert("CMYK"), "TIFF", icc_profile=b"no profile")
    plain = encoded(Image.fromarray(DRAWN).convert("CMYK"), "TIFF")
    np.testing.assert_array_equal(seen(content), seen(plain))
    assert "its CMYK profile cannot be used" in capsys.readouterr().out
    calls = []

    def build(profile, target, mode, out):
        calls.append((mode, out))
        return "transform"

    red = Image.new("RGB", (6, 4), "red")
    monkeypatch.setattr(ImageCms, "ImageCmsProfile", lambda file: file.read())
    monkeypatch.setattr(ImageCms, "buildTransform", build)
    monkeypatch.setattr(ImageCms, "applyTransform", lambda image, transform: red)
    assert seen(content).tolist() == np.asarray(red).tolist() and calls == [("CMYK", "RGB")]


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_counts(form):
    frames = [Image.new("RGB", (6, 4), "blue"), Image.new("RGB", (6, 4), "red")]
    more = {"lossless": True} if form == "WEBP" else {}
    content = encoded(frames[0], form, save_all=True, append_images=frames[1:], **more)
    assert seen(content).reshape(-1, 3).tolist() == [[0, 0, 255]] * 24


@pytest.mark.parametrize("pad", ["target", "square", "none"])
def test_plain_images_are_the_same_in_both(pad):
    drawn = np.random.default_rng(1).integers(0, 256, (30, 70, 3), np.uint8)
    for array in (drawn, drawn[..., 0]):
        for form in ("PNG", "JPEG", "WEBP", "BMP", "TIFF"):
            content = encoded(Image.fromarray(array), form)
            both = [Preprocess(16, pad, 1.25, loading)(content) for loading in (RELEASED, NATURAL)]
            np.testing.assert_array_equal(*both)


def test_a_picture_of_yours_is_that_of_its_file(tmp_path):
    exif = Image.Exif()
    exif[0x112] = 8
    Image.fromarray(DRAWN).save(tmp_path / "a.png", exif=exif)
    preprocess = Preprocess(16, "none", loading=NATURAL)
    with Image.open(tmp_path / "a.png") as image:
        np.testing.assert_array_equal(preprocess(image), preprocess(tmp_path / "a.png"))


def test_fingerprints():
    assert Preprocess(16).fingerprint() == "pad=target 1.25 size=16 bicubic centre rgb-last"
    found = {
        Preprocess(16, loading=loading).fingerprint()
        for loading in (RELEASED, NATURAL, Loading("natural", "black"))
    }
    assert len(found) == 3
    white = Loading("natural", "#ffffff")
    assert white.fingerprint() == NATURAL.fingerprint()


def test_unknown_names():
    with pytest.raises(UserError, match=r"data.loading='natrual' is unknown.*'natural'"):
        Loading("natrual")
    with pytest.raises(UserError, match=r"data.background='whit' is no colour; give a name"):
        Loading("natural", "whit")


def test_deep_pictures_stay_different(tmp_path):
    """Three 16-bit pictures are three: for the doctor, and where images are compared."""
    images = tmp_path / "images"
    images.mkdir()
    for number in range(3):
        values = np.roll(SIXTEEN, number, axis=1) // 2 + 20_000
        Image.fromarray(values.astype(np.uint16)).save(images / f"{number}.png")
    line = '{"reference": "0.png", "target": "1.png", "text": "x"}\n'
    for split in ("train", "val"):
        (tmp_path / f"{split}.jsonl").write_text(line + line.replace("1.png", "2.png"))
    report = doctor.examine("folder", tmp_path)
    assert report["images"]["pixel-identical groups"] == []
    paths = {file.name: str(file) for file in images.iterdir()}
    (as_published,) = inspect_images(paths, loading=RELEASED).duplicates
    assert sorted(as_published) == sorted(paths)
    assert inspect_images(paths, loading=NATURAL).duplicates == []
