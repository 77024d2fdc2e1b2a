# SPDX-License-Identifier: Apache-2.0
"""Whether the file of an image can be used, and if not, for which of a few reasons.

This is the one notion of an image that cannot be used; training, evaluation, positives and `doctor`
share it. What cannot be decoded is decided by opening the file as everything else does, never by
its suffix or its first bytes: those only say which files are worth opening for a closer look.
"""

import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any, NamedTuple

from PIL import Image

from cir_jax.data.pixels import BoxOutside, Crop, ImageFile, open_image
from cir_jax.errors import UserError

MISSING, EMPTY = "missing", "empty (0 bytes)"
NO_FILE = "no file"  # a folder, a pipe, a device
UNREADABLE = "not readable"  # the system does not let us
NO_IMAGE = "no image"  # an HTML page, a text, ...
CUT_OFF, TOO_LARGE, DAMAGED = "cut off", "too large", "undecodable"
BOX = "box outside its image"  # of a part of an image
REASONS = (MISSING, EMPTY, NO_FILE, UNREADABLE, NO_IMAGE, CUT_OFF, TOO_LARGE, DAMAGED, BOX)

# How closely a file is looked at, see `look`; the last is what `cir_jax.data.inspection` does.
STAT, LOOK, DECODE, INSPECT = 0, 1, 2, 3
_SAMPLE = 4096  # bytes, a page
_TOO_LARGE = re.compile(r"exceeds limit|over the limit|larger than the limit|too large")
_WORDS = (  # of a file that is no image, in the order they are tried
    (rb"version https://git-lfs", "a pointer of Git LFS; `git lfs pull` fetches the image"),
    (rb"\s*(<!doctype html|<html|<head|<body)", "an HTML page"),
    (rb"\s*(<svg|<\?xml[^\0]*<svg)", "an SVG drawing"),
    (rb"\s*<", "HTML or XML"),
    (rb"\s*[\[{]", "JSON"),
    (rb"PK\x03\x04", "a zip archive"),
    (rb"\x1f\x8b", "a gzip archive"),
    (rb"%PDF", "a PDF document"),
    (rb"\0+\Z", "nothing but zeros"),
    (rb"[\t\n\r -~\x80-\xff]+\Z", "text"),
)

Opener = Callable[[ImageFile], Image.Image]


@dataclass(frozen=True, slots=True)
class Problem:
    """Why an image cannot be used.

    Attributes:
      file: its file.
      reason: one of REASONS.
      why: more of it, in words; may be "".
    """

    file: str
    reason: str
    why: str = ""

    def __str__(self) -> str:
        return f"{self.file} ({self.reason}{self.why and ': '}{self.why})"


class Stamp(NamedTuple):
    """What tells a file from one that took its place: its size, and its time in nanoseconds."""

    size: int
    time: int


class Samples(NamedTuple):
    """The size of a file in bytes, and 4,096 of its start, its middle and its end."""

    size: int
    start: bytes
    middle: bytes
    end: bytes

    def digest(self) -> str:
        """Their hash."""
        import xxhash

        return xxhash.xxh3_128_hexdigest(b"%d\n%b%b%b" % self)


class Looked(NamedTuple):
    """What a look says: why a file cannot be used or None, hash of its samples, and the width and
    height of its image where that was decoded, else 0."""

    problem: Problem | None
    sample: str = ""
    width: int = 0
    height: int = 0


def source_of(image: ImageFile) -> Any:
    """The file that an image is in: of a part of an image that of the whole."""
    return source_of(image.source) if isinstance(image, Crop) else image


def samples(source: Any) -> Samples:
    """A few bytes of a path, or of an object with `read_bytes()`.

    Raises:
      OSError: it cannot be read.
    """
    with (
        open(source, "rb")
        if isinstance(source, str | os.PathLike)
        else BytesIO(source.read_bytes()) as file
    ):
        size = file.seek(0, os.SEEK_END)
        parts = []
        for start in (0, size // 2, max(size - _SAMPLE, 0)):
            file.seek(start)
            parts.append(file.read(_SAMPLE))
    return Samples(size, *parts)


def stamp(source: Any) -> Stamp | Problem:
    """The stamp of a file without opening it, or why that is none.

    Of an image inside a larger file it is that file's; of a folder of records the folder's.
    """
    packed = not isinstance(source, str | os.PathLike)
    file = getattr(source, "shard", getattr(source, "folder", None)) if packed else source
    if file is None:  # an object that tells nothing of its place
        return Stamp(-1, -1)
    try:
        found = os.stat(file)
    except (FileNotFoundError, NotADirectoryError):
        link = os.path.islink(file)
        return Problem(str(source), MISSING, "a link to nothing" if link else "")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        why = getattr(error, "strerror", "") or str(error)
        return Problem(str(source), UNREADABLE, why)
    if packed:
        return Stamp(found.st_size, found.st_mtime_ns)
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe, socket or device"
        return Problem(str(source), NO_FILE, kind)
    if not found.st_size:
        return Problem(str(source), EMPTY)
    return Stamp(found.st_size, found.st_mtime_ns)


def look(source: Any, depth: int, opener: Opener = open_image) -> Looked:
    """Whether a file that has a stamp can be used.

    Args:
      source: a path, or an object with `read_bytes()`.
      depth: LOOK reads its samples, and decodes it only if they are not those of a complete JPEG,
        PNG, GIF, WebP or BMP file; DECODE decodes it in any case.
      opener: what decodes it.
    """
    try:
        found = samples(source)
    except OSError as error:
        return Looked(Problem(str(source), UNREADABLE, error.strerror or str(error)))
    digest = found.digest()
    if not found.size:
        return Looked(Problem(str(source), EMPTY), digest)
    if depth < DECODE and _is_complete(found):
        return Looked(None, digest)
    try:
        image = opener(source)
    except (UserError, OSError, ValueError) as error:
        return Looked(problem(source, error, found), digest)
    return Looked(None, digest, *image.size)


def outside(image: ImageFile, width: int, height: int) -> Problem | None:
    """Why a part of an image of this size cannot be used; None if it can, or is a whole one."""
    try:
        if isinstance(image, Crop):
            image.side(width, height)
    except BoxOutside as error:
        return problem(image, error)
    return None


def problem(source: Any, error: Exception, found: Samples | None = None) -> Problem:
    """What an error at the opening of an image means.

    Args:
      source: see `look`.
      error: what `open_image` raised.
      found: samples of the file, if they were read.
    """
    if isinstance(error, BoxOutside):
        return Problem(str(source), BOX, "{}x{} pixels".format(*error.size))
    source = source_of(source)
    state = stamp(source)
    if isinstance(state, Problem):
        return state
    try:
        found = found or samples(source)
    except OSError as unreadable:
        return Problem(str(source), UNREADABLE, unreadable.strerror or str(unreadable))
    # The message names the file before, and says what to do behind; both are said elsewhere.
    why = str(error).removeprefix(f"image {source} ").partition("; ")[0]
    if not found.size:
        return Problem(str(source), EMPTY)
    if _TOO_LARGE.search(str(error)):
        return Problem(str(source), TOO_LARGE, why)
    if not _format(found.start):
        return Problem(str(source), NO_IMAGE, _kind(found.start) or why)
    reason = DAMAGED if _is_complete(found) else CUT_OFF
    if "truncated" in why or "not enough" in why:
        reason = CUT_OFF
    return Problem(str(source), reason, why)


def _format(start: bytes) -> str:
    """The format that the first bytes of a file are of; "" if none of those people use."""
    if start.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if start.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "WEBP"
    if start.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "TIFF"
    if start[4:8] == b"ftyp":
        return "AVIF"  # or HEIC
    return "BMP" if start.startswith(b"BM") else ""


def _is_complete(found: Samples) -> bool:
    """Whether a file ends as its format says; False where that cannot be told without decoding."""
    kind, last = _format(found.start), found.end[-64:]
    if kind == "JPEG":
        return b"\xff\xd9" in last
    if kind == "PNG":
        return last.endswith(b"IEND\xaeB`\x82")
    if kind == "GIF":
        return last.endswith(b"\0;")
    if kind == "WEBP":
        return int.from_bytes(found.start[4:8], "little") + 8 <= found.size
    if kind == "BMP":
        return int.from_bytes(found.start[2:6], "little") == found.size
    return False


def _kind(start: bytes) -> str:
    """What a file is that is no image; "" if it looks like nothing known."""
    start = start.removeprefix(b"\xef\xbb\xbf")
    for pattern, words in _WORDS:
        if re.match(pattern, start, re.IGNORECASE):
            return words
    return ""
