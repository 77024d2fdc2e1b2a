# SPDX-License-Identifier: Apache-2.0
"""From a file of any size and kind to a decoded image, in bounded memory.

A header may claim anything: sizes are compared with a limit before memory is asked for them. No
format is opened for which Pillow runs another program.
"""

import importlib
import io
import os
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import PIL
from PIL import Image, UnidentifiedImageError, features

from cir_jax.data import pillow_warnings
from cir_jax.errors import UserError

# What Pillow opens at all, twice its MAX_IMAGE_PIXELS; here it also holds where that was lifted.
MAX_PIXELS = 178_956_970
MAX_SIDE = 1 << 22  # pixels: Pillow keeps a pointer for each row, however short it is
MAX_BYTES = 8 * MAX_PIXELS + (1 << 20)  # of a file: so many pixels of four 16-bit values, unpacked
# What people keep photographs and drawings in. JPEG includes the MPO files of phones.
NATURAL_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
_NATURAL = "JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, and with pip install 'cir_jax[heic]' HEIC"
_UNDECODABLE = (
    UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError,
    # What Pillow's readers of tags and tables meet in damaged files.
    EOFError, KeyError, IndexError, TypeError, AttributeError, OverflowError, ZeroDivisionError,
    struct.error, RuntimeError,
)  # fmt: skip
_NO_MEMORY = ("out of memory error", "decoder error -9")  # Pillow's words, of its own decoders
_A_PIXEL, _BESIDE = 12, 1 << 26  # bytes: what decoding takes of memory at most, see `_free_for`
_SECOND_LOOK = threading.Lock()
_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis")
_CODECS = ("libjpeg_turbo", "jpg", "webp", "jpg_2000", "avif", "libtiff", "littlecms2")
_HEIF = "pillow-heif"
_EPS = (b"%!PS", b"\xc5\xd0\xd3\xc6")  # plain, and with the preview of DOS
_KINDS = {
    b"%PDF": "a PDF document",
    b"8BPS": "a Photoshop document",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"\0\0\1\0": "an icon of Windows",
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"II*\0": "a TIFF with values that Pillow does not read, such as 64-bit ones, or a damaged one",
    b"MM\0*": "a TIFF with values that Pillow does not read, such as 64-bit ones, or a damaged one",
    b"\x89PNG": "a damaged PNG",
    b"\xff\xd8\xff": "a damaged JPEG",
    b"GIF8": "a damaged GIF",
    b"RIFF": "a damaged WebP, or another file of RIFF",
}


@dataclass(frozen=True)
class Content:
    """The content of an image file that was read already; messages call it by its name."""

    content: bytes = field(repr=False)
    name: str

    def read_bytes(self) -> bytes:
        """See `read`."""
        return self.content

    def __str__(self) -> str:
        return self.name


class TooLarge(UserError):
    """An image of more pixels or bytes than may be."""


def read(source: Any) -> bytes:
    """The bytes of a file: of a path, of bytes, or of an object with `read_bytes()`.

    Raises:
      UserError: it does not exist, is empty, no file, or larger than `MAX_BYTES`.
    """
    name = named(source)
    try:
        if isinstance(source, str | Path):
            found = os.stat(source)
            if not stat.S_ISREG(found.st_mode):
                kind = "a folder" if stat.S_ISDIR(found.st_mode) else "no file but a device or pipe"
                raise UserError(f"image {name} cannot be read (it is {kind}); correct that path")
            _check_bytes(name, found.st_size)
            content = Path(source).read_bytes()
        else:
            content = source if isinstance(source, bytes) else source.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"image {name} does not exist; run `cir-jax doctor`, or set data.on_missing=drop"
        ) from None
    except UserError:  # is a ValueError too
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise UserError(f"image {name} cannot be read ({error}); correct that file") from None
    if not content:
        raise UserError(
            f"image {name} is empty (0 bytes), as a broken download leaves it; fetch it again"
        )
    _check_bytes(name, len(content))
    return content


def decoded(
    source: Any, formats: tuple[str, ...] | None = None, pixels: int = MAX_PIXELS
) -> Image.Image:
    """The first frame of an image, in the mode that Pillow gives it.

    Args:
      source: as for `read`.
      formats: names of Pillow's formats that may be opened; None is all but those that run a
        program.
      pixels: most that it may have, up to `MAX_PIXELS`.

    Raises:
      UserError: see `read`; or it is of another format, or damaged.
      TooLarge: it is larger than `pixels`.
      MemoryError: this machine has too little memory for it, which says nothing of the file.
    """
    content, name = read(source), named(source)
    size = [0, 0]  # once it is known

    def opened() -> Image.Image:
        with _decoding(name, content, formats):
            image = Image.open(io.BytesIO(content), formats=formats)
            _check_pixels(name, *image.size, most=pixels)
            _check_tiles(name, image, pixels)
            size[:] = image.size
            image.load()
        return image

    with pillow_warnings.named(source):
        if content.startswith(_EPS):
            raise UserError(
                f"image {name} is PostScript, which a program (Ghostscript) would have to run; "
                "convert it to PNG"
            )
        if formats is not None and _is_heic(content):
            return _heic(content, name, pixels)
        _check_pixels(name, *_claimed(content), most=pixels)
        try:
            return opened()
        except MemoryError:
            return _again(opened, name, content, size)


def _again(
    opened: Callable[[], Image.Image], name: str, content: bytes, size: list[int]
) -> Image.Image:
    """Decodes an image for which a decoder found no memory: the machine has none, or a small file
    claims more than an image of its size takes.

    It is the file's fault only where that happens again with all that such an image takes free
    before and after; an image that was lost to other threads' memory is decoded after all.

    Raises:
      UserError: the file claims too much.
      MemoryError: there is too little memory.
    """
    with _SECOND_LOOK:  # threads that lack memory must not look at one another's
        try:
            if _free_for(content, size):
                return opened()
        except MemoryError as error:
            if _free_for(content, size):
                why = MemoryError(
                    "it asks for more memory than an image of its size takes"
                    f"{f' ({error})' if str(error) else ''}"
                )
                raise _undecodable(name, content, why, None) from None
        width, height = size
        of = f" of {width:,} x {height:,} pixels" if width else ""
        raise MemoryError(f"too little to decode {name}{of}") from None


def _free_for(content: bytes, size: list[int]) -> bool:
    """Whether there is as much memory as decoding an image of this size may take."""
    try:
        bytearray(len(content) + _A_PIXEL * size[0] * size[1] + _BESIDE)
    except MemoryError:
        return False
    return True


@contextmanager
def _decoding(name: str, content: bytes, formats: tuple[str, ...] | None) -> Iterator[None]:
    """Whatever a decoder raises in this `with` becomes an error that names the image; too little
    memory becomes a MemoryError, also where Pillow tells of it in words."""
    try:
        yield
    except UserError:
        raise
    except _UNDECODABLE as error:
        if str(error).startswith(_NO_MEMORY):
            raise MemoryError(str(error)) from None
        raise _undecodable(name, content, error, formats) from None


def decoders() -> str:
    """Names all that decides which files can be opened here, and what their pixels are."""
    found = [f"Pillow {PIL.__version__}", *(f"{one} {features.version(one)}" for one in _CODECS)]
    with suppress(metadata.PackageNotFoundError):
        found.append(f"{_HEIF} {metadata.version(_HEIF)}")
    return ", ".join(found)


def format_of(path: str | Path) -> str:
    """The format of `NATURAL_FORMATS` that a file has, whatever its name says; "" if none."""
    with suppress(*_UNDECODABLE, MemoryError), pillow_warnings.named(path):
        with Image.open(path, formats=NATURAL_FORMATS) as image:
            return image.format or ""
    return ""


def named(source: Any) -> str:
    """What messages call a source."""
    return f"{len(source)} bytes" if isinstance(source, bytes) else str(source)


def unusable(source: Any, why: ValueError) -> UserError:
    """What to say of a decoded image that makes no picture."""
    return UserError(
        f"image {named(source)} cannot be used ({why}); correct that file, or remove it and set "
        "data.on_missing=drop"
    )


def _undecodable(
    name: str, content: bytes, error: BaseException, formats: tuple[str, ...] | None
) -> UserError:
    """What to say of a file that cannot be decoded."""
    if not isinstance(error, UnidentifiedImageError):
        why = str(error) or type(error).__name__
    else:  # Pillow's own words name a place in memory, another one each time
        kind = _kind(content)
        if formats is not None:
            what = f"it is {kind}; " if kind else ""
            return UserError(
                f"image {name} cannot be decoded ({what}data.loading=natural opens {_NATURAL}); "
                "convert it to PNG or JPEG, fetch it again, or remove it and set "
                "data.on_missing=drop"
            )
        why = "no format that Pillow knows" + (f"; it is {kind}" if kind else "")
    refused = TooLarge if isinstance(error, Image.DecompressionBombError) else UserError
    return refused(
        f"image {name} cannot be decoded ({why}); fetch it again, or remove it and set "
        "data.on_missing=drop"
    )


def _check_bytes(name: str, size: int) -> None:
    if size > MAX_BYTES:
        raise TooLarge(
            f"image {name} has {size:,} bytes, over the limit of {MAX_BYTES:,}; make it smaller"
        )


def _check_pixels(
    name: str, width: int, height: int, what: str = "is", most: int = MAX_PIXELS
) -> None:
    if width * height > most or max(width, height) > MAX_SIDE:
        raise TooLarge(
            f"image {name} {what} {width:,} x {height:,} pixels, over the limit of {most:,} "
            f"in all and {MAX_SIDE:,} a side; make it smaller, or remove it and set "
            "data.on_missing=drop"
        )


def _check_tiles(name: str, image: Image.Image, most: int) -> None:
    """A tile of a TIFF is decoded whole, whatever the size of the image is."""
    tags = getattr(image, "tag_v2", None)
    if image.format == "TIFF" and tags is not None:
        sides = tags.get(322, 0), tags.get(323, 0)
        if all(isinstance(side, int) for side in sides):
            _check_pixels(name, *sides, what="has tiles of", most=most)


def _claimed(content: bytes) -> tuple[int, int]:
    """Size in the header of a WebP, whose canvas is made before Pillow looks at it; else (0, 0)."""
    if content[:4] != b"RIFF" or content[8:12] != b"WEBP" or len(content) < 30:
        return 0, 0
    kind = content[12:16]
    if kind == b"VP8X":
        width, height = content[24:27], content[27:30]
        return 1 + int.from_bytes(width, "little"), 1 + int.from_bytes(height, "little")
    if kind == b"VP8L":
        bits = int.from_bytes(content[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        width, height = struct.unpack("<HH", content[26:30])
        return width & 0x3FFF, height & 0x3FFF
    return 0, 0


def _is_heic(content: bytes) -> bool:
    if content[4:8] != b"ftyp":
        return False
    box = content[8 : max(int.from_bytes(content[:4], "big"), 12)][:256]
    brands = [box[:4], *(box[i : i + 4] for i in range(8, len(box), 4))]
    return b"avif" not in brands and any(brand in _HEIC_BRANDS for brand in brands)


def _heic(content: bytes, name: str, most: int) -> Image.Image:
    """The main picture of a HEIC, upright: its decoder turns it, and says that it did."""
    try:
        pillow_heif: Any = importlib.import_module("pillow_heif")
    except ImportError:
        raise UserError(
            f"image {name} is HEIC, as iPhones keep photographs, which needs pillow-heif; run "
            "pip install 'cir_jax[heic]', or convert it to JPEG"
        ) from None
    with _decoding(name, content, None):
        # Not registered with Pillow: that would change what everything else here opens.
        image = pillow_heif.HeifImageFile(io.BytesIO(content))
        _check_pixels(name, image.width, image.height, most=most)
        image.load()
    return image


def _kind(content: bytes) -> str:
    """What a file is that is no picture, in words; "" if that is not known."""
    found = next((kind for start, kind in _KINDS.items() if content.startswith(start)), "")
    if found:
        return found
    if _is_heic(content):
        return "HEIC, which data.loading=natural opens"
    start = content[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"<svg" in start and start.startswith(b"<"):
        return "an SVG drawing"
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "an HTML page, as a failed download leaves it"
    return ""
