# SPDX-License-Identifier: Apache-2.0
"""Decodes every image of a data set: which cannot be used, which are equal, which are unusual."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import xxhash
from PIL import Image

from cir_jax import progress
from cir_jax.data import picture_files, unusable
from cir_jax.data.pixels import RELEASED, Crop, Loading, open_image
from cir_jax.data.unusable import Problem
from cir_jax.errors import UserError

_WINDOW = 1024  # images in flight: memory does not grow with the data set
_ORIENTATION = 0x0112  # tag of EXIF: 1 is upright, 2 to 8 are turned or mirrored
_BITS = 258  # tag of TIFF: bits of each channel
TURNED = "EXIF orientation other than upright"
DEEP = "more than 8 bits per channel"
TRANSPARENT = "transparent in places"
ANIMATED = "animated; only the first frame is seen"
INKS = "colours other than RGB or grey"
UNUSUAL = (TURNED, DEEP, TRANSPARENT, ANIMATED, INKS)


@dataclass
class Findings:
    """What was found about some images.

    Attributes:
      images: how many were looked at.
      problems: name -> why it cannot be used.
      duplicates: groups of names whose images are equal.
      unusual: one of UNUSUAL -> names.
    """

    images: int = 0
    problems: dict[str, Problem] = field(default_factory=dict)
    duplicates: list[list[str]] = field(default_factory=list)
    unusual: dict[str, list[str]] = field(default_factory=dict)

    @property
    def missing(self) -> list[str]:
        """Names of images that are not there."""
        return self._of(unusable.MISSING)

    @property
    def empty(self) -> list[str]:
        """Names of images whose file holds nothing."""
        return self._of(unusable.EMPTY)

    @property
    def undecodable(self) -> list[str]:
        """Names of images whose file holds something else, or a part."""
        return [n for n in self.problems if n not in {*self.missing, *self.empty}]

    def unusable(self) -> list[str]:
        """Names of all images that cannot be used."""
        return [*self.missing, *self.empty, *self.undecodable]

    def _of(self, reason: str) -> list[str]:
        return [name for name, problem in self.problems.items() if problem.reason == reason]


def inspect_images(
    paths: Mapping[str, Any], decode: bool = True, threads: int = 16, loading: Loading = RELEASED
) -> Findings:
    """Looks at every image of `paths` (name -> file).

    Two images are duplicates if they decode to the same size and RGB pixels, as `loading` opens
    them; only hashes are kept. Without `decode`, files are only asked for their size.
    """
    findings = Findings(images=len(paths))
    by_hash: dict[str, list[str]] = {}
    items = list(paths.items())
    with ThreadPoolExecutor(threads) as pool:
        for start in progress.bar(range(0, len(items), _WINDOW), title="images"):
            window = items[start : start + _WINDOW]
            for (name, _), (problem, digest, odd) in zip(
                window, pool.map(lambda item: _look(item[1], decode, loading), window), strict=True
            ):
                if problem:
                    findings.problems[name] = problem
                elif digest:
                    by_hash.setdefault(digest, []).append(name)
                for what in odd:
                    findings.unusual.setdefault(what, []).append(name)
    findings.duplicates = [names for names in by_hash.values() if len(names) > 1]
    return findings


def pixel_hash(image: Image.Image) -> str:
    """Hash of the size and the RGB pixels of an image (128 bits in hexadecimal).

    XXH3 over Pillow's own memory: two per cent of the time of decoding, where a copy of the pixels
    and a cryptographic hash would take half of it.
    """
    import pyarrow  # slow to import, and whoever only reads annotations decodes no image

    image = image if image.mode == "RGB" else image.convert("RGB")
    try:
        pixels = pyarrow.array(image).buffers()[-1]
    except ValueError:  # a large image lies in several pieces; the same bytes, copied
        pixels = image.tobytes("raw", "RGBX")
    return xxhash.xxh3_128_hexdigest(pixels, seed=image.width << 32 | image.height)


def unusual(image: Image.Image, start: bytes = b"") -> Iterator[str]:
    """What is unusual about a decoded image, of UNUSUAL.

    Args:
      image: as `open_image` gives it.
      start: first bytes of its file, which alone tell the depth of a PNG in colour.
    """
    with suppress(OSError, ValueError, SyntaxError, KeyError, TypeError):  # damaged tags
        if image.getexif().get(_ORIENTATION, 1) in range(2, 9):
            yield TURNED
    deep = start.startswith(b"\x89PNG") and start[24:25] == b"\x10"
    with suppress(ValueError, TypeError):
        deep = deep or max(getattr(image, "tag_v2", {}).get(_BITS, (8,))) > 8
    if deep or image.mode in ("I", "F") or image.mode.startswith("I;"):
        yield DEEP
    if "A" in image.getbands():
        if image.getchannel("A").getextrema()[0] < 255:  # type: ignore[operator]
            yield TRANSPARENT
    elif "transparency" in image.info:
        yield TRANSPARENT
    with suppress(OSError, ValueError, EOFError, AttributeError):
        if getattr(image, "is_animated", False) and image.format != "MPO":
            yield ANIMATED
    if image.mode in ("CMYK", "LAB", "HSV", "YCbCr"):
        yield INKS


def _look(path: Any, decode: bool, loading: Loading) -> tuple[Problem | None, str, list[str]]:
    """(why it cannot be used or None, hash of the decoded image or "", what is unusual)."""
    source = unusable.source_of(path)
    state = unusable.stamp(source)
    if isinstance(state, Problem):
        return state, "", []
    if not decode:
        return None, "", []
    try:
        if isinstance(path, Crop):
            return None, pixel_hash(open_image(path, loading)), []
        image = _decoded(path, loading)
        digest = pixel_hash(loading.of(image))
    except (UserError, OSError, ValueError) as error:  # or a mode without a conversion to RGB
        return unusable.problem(source, error), "", []
    start = unusable.samples(source).start if image.format == "PNG" else b""
    return None, digest, list(unusual(image, start))


def _decoded(path: Any, loading: Loading) -> Image.Image:
    """The image as it is in its file, if it is one that `loading` opens."""
    if loading.name == RELEASED.name:
        return open_image(path)
    return picture_files.decoded(path, picture_files.NATURAL_FORMATS)
