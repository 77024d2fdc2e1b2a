# SPDX-License-Identifier: Apache-2.0
"""Files that claim too much, run programs, or are of no kind: a sentence, in bounded memory."""

import io
import os
import re
import struct
import subprocess
import sys
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from cir_jax.data import picture_files, pillow_warnings, squares
from cir_jax.data.pixels import NATURAL, RELEASED, Preprocess, open_image
from cir_jax.errors import UserError

BOTH = pytest.mark.parametrize("loading", [RELEASED, NATURAL], ids=["released", "natural"])


def chunk(kind, content):
    check = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + check


def png(width, height, rows=b"", extra=b"", colour=2, bits=8):
    """A PNG that claims a size, with these rows."""
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = chunk(b"IHDR", head), extra, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiled(side, compression=8, channels=1):
    """A TIFF of 10 x 10 pixels in one tile that claims to be larger."""
    kind = 2 if channels > 1 else 1
    tags = {256: 10, 257: 10, 258: 8, 259: compression, 262: kind, 277: channels,
            322: side, 323: side, 324: 8, 325: 9}  # fmt: skip
    rows = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II" + struct.pack("<HI", 42, 17) + b"x" * 9 + struct.pack("<H", 10) + rows + bytes(4)


def webp(width, height):
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return (
        b"RIFF" + struct.pack("<I", 99) + b"WEBPVP8X" + struct.pack("<II", 10, 2) + size + bytes(60)
    )


GIF = b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
CLAIMS = {
    "png": (png(60000, 60000), r"3600000000 pixels\) exceeds limit of 178956970"),
    "row pointers": (png(1, 150_000_000), r"1 x 150,000,000 pixels, over.*4,194,304 a side"),
    "gif": (GIF + b",\0\0\0\0\1\0\1\0\0\2\2D\1\0;", r"4294836225 pixels\) exceeds"),
    "webp": (webp(1 << 24, 201), r"16,777,216 x 201 pixels, over the limit of 178,956,970"),
    "tiles": (tiled(65520), r"has tiles of 65,520 x 65,520 pixels, over the limit of 178,956,970"),
    "text": (
        png(4, 4, extra=chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(10_000_000)))), r"too large"
    ),
    "profile": (
        png(4, 4, extra=chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(10_000_000)))), r"too large"
    ),
}  # fmt: skip


@BOTH
@pytest.mark.parametrize("name", CLAIMS)
def test_claims_are_refused_before_memory_is_asked_for(loading, name):
    content, match = CLAIMS[name]
    with pytest.raises(UserError, match=match):
        open_image(content, loading)


@BOTH
def test_no_program_is_run(loading, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)  # what Pillow starts Ghostscript with
    monkeypatch.setattr(subprocess, "check_call", None)
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "EPS")
    dos = b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 32, len(file.getvalue())) + bytes(20)
    for content in (file.getvalue(), b"%!PS-Adobe-3.0\nquit\n", dos + file.getvalue()):
        with pytest.raises(UserError, match=r"bytes is PostScript, which a program .* PNG"):
            open_image(content, loading)


NO_PICTURES = {
    b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>': "an SVG drawing",
    b"<!DOCTYPE html><html>not found</html>": "an HTML page, as a failed download leaves it",
    b"%PDF-1.7": "a PDF document",
    b"PK\x03\x04" + bytes(30): "a zip archive",
}


@BOTH
@pytest.mark.parametrize("content", NO_PICTURES)
def test_what_is_no_picture_is_called_by_its_name(loading, content):
    with pytest.raises(UserError, match=rf"cannot be decoded \(.*it is {NO_PICTURES[content]}"):
        open_image(content, loading)


@pytest.mark.parametrize("form", ["PPM", "JPEG2000", "TGA", "ICO", "SGI"])
def test_natural_opens_what_people_use(form):
    """Whatever the suffix is; "released" goes on to open all that Pillow does."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(file, form)
    with pytest.raises(
        UserError, match=r"natural opens JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, and"
    ):
        open_image(file.getvalue(), NATURAL)
    assert open_image(file.getvalue()).size == (16, 16)


def test_a_palette_that_is_missing():
    """Pillow asserts that there is one. As published runs opened such a file, it is grey."""
    content = png(4, 4, bytes(20), colour=3)
    with pytest.raises(UserError, match=r"cannot be used \(its palette is missing\); correct that"):
        open_image(content, NATURAL)
    assert open_image(content).size == (4, 4)


def test_a_suffix_says_nothing(tmp_path):
    for form in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"):
        Image.new("RGB", (16, 16), "red").save(tmp_path / "a.txt", form)
        red, green, blue = open_image(tmp_path / "a.txt", NATURAL).getpixel((8, 8))
        assert red > 250 and green < 5 and blue < 5


def test_heic_names_what_it_needs(monkeypatch):
    content = struct.pack(">I", 24) + b"ftypheic\0\0\0\0mif1heic" + bytes(100)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(UserError, match=r"HEIC, as iPhones.*pip install 'cir_jax\[heic\]'"):
        open_image(content, NATURAL)
    with pytest.raises(UserError, match=r"it is HEIC, which data.loading=natural opens"):
        open_image(content)


def test_what_is_no_file(tmp_path):
    (tmp_path / "a.png").mkdir()
    with pytest.raises(UserError, match=r"a.png cannot be read \(it is a folder\)"):
        open_image(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"cannot be read \(it is no file but a device"):
        open_image("/dev/zero")
    with pytest.raises(UserError, match=r"cannot be read \(embedded null byte"):
        open_image(str(tmp_path / "a\0b"))
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate(picture_files.MAX_BYTES + 1)
    with pytest.raises(UserError, match=r"large.png has 1,43.*bytes, over the limit"):
        open_image(tmp_path / "large.png")


MODES = ("1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "I", "F", "I;16")


@pytest.mark.parametrize("mode", MODES)
def test_strips_are_bit_equal(mode, monkeypatch):
    """What is too large to be made whole has the very pixels of the whole."""
    drawn = np.random.default_rng(2).integers(0, 256, (90, 37, 4), np.uint8)
    base = Image.fromarray(drawn)
    opaque = base.convert("RGB").convert("L" if mode == "I;16" else "RGB")
    image = (base if mode in ("RGBA", "LA") else opaque).convert(mode)
    for turned in (image, image.transpose(Image.Transpose.ROTATE_90)):
        for pad in ("target", "square"):
            preprocess = Preprocess(24, pad)
            monkeypatch.setattr(squares, "WHOLE", 1 << 26)
            whole = preprocess(turned)
            monkeypatch.setattr(squares, "WHOLE", 0)
            monkeypatch.setattr(squares, "STRIP", 300)
            np.testing.assert_array_equal(preprocess(turned), whole, err_msg=f"{mode} {pad}")


def test_a_square_that_is_too_long_is_refused():
    with pytest.raises(UserError, match=r"1 x 65,000 pixels, so long and thin.*3,261,440,000 resi"):
        Preprocess(224, "none")(Image.new("L", (1, 65000)))
    with pytest.raises(UserError, match=r"300,000 x 1 pixels, so long.*over the limits of 4,294"):
        Preprocess(224)(Image.new("L", (300_000, 1)))


MEASURE = """
import resource, sys
from cir_jax.data import pixels
from cir_jax.errors import UserError
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
for name in ("released", "natural"):
    try:
        pixels.Preprocess(224, sys.argv[2], 1.25, pixels.Loading(name))(sys.argv[1])
    except UserError as error:
        assert "over the limit" in str(error), error
print((peak() - before) >> 10)
"""


@pytest.mark.parametrize(
    ("width", "height", "pad"), [(20000, 1, "target"), (1, 12000, "target"), (1, 65000, "none")]
)
def test_thin_images_take_little_memory(tmp_path, width, height, pad):
    """Padded whole, the first would take 1.3 GB, and resized the last 13 GB."""
    rows = (b"\0" + b"\x10\x20\x30" * width) * height
    (tmp_path / "a.png").write_bytes(png(width, height, rows))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "a.png"), pad],
        capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    assert int(done.stdout.split()[-1]) < 250  # MB


def test_a_warning_is_a_line_that_names_the_file(tmp_path, capsys):
    image = Image.new("P", (2, 2))
    image.putpalette([1, 2, 3, 4, 5, 6])
    for name in ("a.png", "b.png"):
        image.save(tmp_path / name, transparency=bytes([0, 9]))
        for _ in range(2):
            with warnings.catch_warnings(record=True) as raw:
                Preprocess(16)(tmp_path / name)
            assert raw == []
    lines = [line for line in capsys.readouterr().out.splitlines() if "Palette images" in line]
    assert [line.split(": ")[1] for line in lines] == [
        f"image {tmp_path / name}" for name in ("a.png", "b.png")
    ]


def test_many_warnings_of_one_kind_are_not_all_shown(capsys):
    for number in range(pillow_warnings.FIRST + 5):
        with pillow_warnings.named(f"many/{number}.png"):
            pillow_warnings.note(f"it has {number} faults")
    lines = [line for line in capsys.readouterr().out.splitlines() if "faults" in line]
    assert len(lines) == pillow_warnings.FIRST and "further images" in lines[-1]


def test_warnings_of_others_go_where_they_went():
    with warnings.catch_warnings(record=True) as raw:
        open_image(png(1, 1, b"\0\1\2\3"))
        warnings.warn("mine", UserWarning, stacklevel=1)
    assert [str(one.message) for one in raw] == ["mine"]


def _dds():
    """With flags of pixels that nobody has defined."""
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "DDS")
    content = file.getvalue()
    return content[:80] + bytes(4) + content[84:]


def _avif():
    """Whose pixels are noise: its own decoder raises a RuntimeError."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(file, "AVIF")
    content = file.getvalue()
    start = content.index(b"mdat") + 4
    return content[:start] + b"\xff" * (len(content) - start)


@pytest.mark.parametrize(
    ("made", "loading"), [(_dds, RELEASED), (_avif, RELEASED), (_avif, NATURAL)]
)
def test_other_errors_of_decoders(made, loading, tmp_path):
    (tmp_path / "a.png").write_bytes(made())
    with pytest.raises(UserError, match=r"image .*a.png cannot be decoded \(.+\); fetch it again"):
        open_image(tmp_path / "a.png", loading)


LIMITED = """
import resource, sys
from pathlib import Path
from cir_jax.data import kept_looks, screening
kept_looks.LEAST = screening.LEAST = 1
now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + (400 << 20),) * 2)
root = Path(sys.argv[1])
images = {file.name: str(file) for file in sorted(root.iterdir())}
try:
    screen = screening.Screen("drop", root=str(root), threads=1)
    print([str(one) for one in screen.unusable(images).values()])
except MemoryError as error:
    print("MemoryError:", error)
"""


def looked_at(folder, content):
    """What a process of 400 MB says of an image that may be left out, and the looks it keeps."""
    images = folder / "images"
    images.mkdir()
    (images / "a.png").write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(images)],
        capture_output=True, text=True, check=True, timeout=300,
        env={**os.environ, "CIR_JAX_CACHE": str(folder / "cache")},
    )  # fmt: skip
    return done.stdout, list((folder / "cache").rglob("*.json"))


def test_too_little_memory_is_never_kept(tmp_path):
    """With more memory the image may be as good as any: nothing is left out, the run stops."""
    said, kept = looked_at(tmp_path, png(13000, 13000, bytes(100)))
    assert re.search(r"MemoryError: too little to decode .*a.png of 13,000 x 13,000 pixels", said)
    assert not kept


def test_a_small_image_that_asks_for_too_much_is_damaged(tmp_path):
    """10 x 10 pixels in a tile of 533 MB."""
    said, kept = looked_at(tmp_path, tiled(13328, compression=5, channels=3))
    assert "it asks for more memory than an image of its size takes (decoder error -9)" in said
    assert kept


@BOTH
@pytest.mark.parametrize("error", [MemoryError(), OSError("out of memory error when reading")])
def test_memory_that_comes_back_is_used(loading, error, monkeypatch):
    """Other threads had it."""
    load, failed = Image.Image.load, []

    def once(image):
        if not failed:
            failed.append(1)
            raise error
        return load(image)

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", once)
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG")
    assert open_image(file.getvalue(), loading).size == (4, 4)
    assert failed


@BOTH
def test_an_image_that_never_finds_memory(loading, monkeypatch):
    def never(image):
        raise MemoryError

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", never)
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG")
    with pytest.raises(UserError, match=r"cannot be decoded \(it asks for more memory than an im"):
        open_image(file.getvalue(), loading)
    monkeypatch.setattr(picture_files, "_BESIDE", 1 << 60)  # what no machine has
    with pytest.raises(MemoryError, match=r"^too little to decode \d+ bytes of 4 x 4 pixels$"):
        open_image(file.getvalue(), loading)
