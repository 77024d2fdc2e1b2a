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
from cir_jax.data.kept_looks import LEAST, KeptLooks, Known
from cir_jax.data.pixels import RELEASED, Crop, Loading, open_image
from cir_jax.data.unusable import INSPECT, Looked, Problem
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
      kept: how many are as they were when they were looked at before.
    """

    images: int = 0
    problems: dict[str, Problem] = field(default_factory=dict)
    duplicates: list[list[str]] = field(default_factory=list)
    unusual: dict[str, list[str]] = field(default_factory=dict)
    kept: int = 0

    @property
    def missing(self) -> list[str]:
        """Names of images that are not there."""
        return self.of(unusable.MISSING)

    @property
    def empty(self) -> list[str]:
        """Names of images whose file holds nothing."""
        return self.of(unusable.EMPTY)

    @property
    def undecodable(self) -> list[str]:
        """Names of images whose file holds something else, or a part."""
        return [n for n in self.problems if n not in {*self.missing, *self.empty}]

    def unusable(self) -> list[str]:
        """Names of all images that cannot be used."""
        return [*self.missing, *self.empty, *self.undecodable]

    def of(self, reason: str) -> list[str]:
        """Names of images that cannot be used for one of `cir_jax.data.unusable.REASONS`."""
        return [name for name, problem in self.problems.items() if problem.reason == reason]


def inspect_images(
    paths: Mapping[str, Any],
    decode: bool = True,
    threads: int = 16,
    loading: Loading = RELEASED,
    *,
    root: str = "",
    again: bool = False,
) -> Findings:
    """Looks at every image of `paths` (name -> file).

    Two images are duplicates if they decode to the same size and RGB pixels, as `loading` opens
    them; only hashes are kept. Without `decode`, files are only asked for their size.

    Args:
      paths: name -> file.
      decode: open the images.
      threads: images opened at a time.
      loading: how files become pictures.
      root: of the data set; what is found out is kept under it, for runs too, and what they have
        kept is used. "" keeps nothing.
      again: open also those that have been looked at before.
    """
    # Hashes of pixels are kept of one background alone.
    keeps = decode and len(paths) >= LEAST and loading == Loading(loading.name)
    kept = KeptLooks(root if keeps else "", loading.name)
    with kept.alone(lambda: None):
        kept.read()
        return _inspect(paths, decode, threads, loading, kept, again)


def _inspect(
    paths: Mapping[str, Any],
    decode: bool,
    threads: int,
    loading: Loading,
    kept: KeptLooks,
    again: bool,
) -> Findings:
    findings = Findings(images=len(paths))
    by_hash: dict[str, list[str]] = {}
    new: dict[str, Known] = {}

    def look(path: Any) -> tuple[Known | Problem | None, bool]:
        before = None if again else kept.known.get(str(path))
        return _look(path, decode, loading, before)

    items = list(paths.items())
    with ThreadPoolExecutor(threads) as pool:
        for start in progress.bar(range(0, len(items), _WINDOW), title="images"):
            window = items[start : start + _WINDOW]
            for (name, path), (known, is_new) in zip(
                window, pool.map(lambda item: look(item[1]), window), strict=True
            ):
                if known is None:
                    continue
                if isinstance(known, Problem):
                    findings.problems[name] = known
                    continue
                findings.kept += not is_new
                new |= {str(path): known} if is_new else {}
                if problem := known.problem(str(path)):
                    findings.problems[name] = problem
                else:
                    by_hash.setdefault(known.pixels, []).append(name)
                for what in filter(None, known.unusual.split("\n")):
                    findings.unusual.setdefault(what, []).append(name)
    kept.add(new)
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


def _look(
    path: Any, decode: bool, loading: Loading, before: Known | None
) -> tuple[Known | Problem | None, bool]:
    """(what there is to say of an image, whether it was opened for that).

    A `Problem` of one that is not there at all; None without `decode`.
    """
    source = unusable.source_of(path)
    state = unusable.stamp(source)
    if isinstance(state, Problem):
        return state, False
    if not decode:
        return None, False
    if before is not None and before.holds(state, INSPECT):
        return before, False
    try:
        found = unusable.samples(source)
    except OSError as error:
        return unusable.problem(source, error), False
    digest = found.digest()
    # A damaged file may be mended where no sample is taken.
    same = before is not None and before.size == state.size and not before.reason
    if before is not None and same and before.deep_enough(INSPECT) and before.sample == digest:
        return before.still(state), True
    try:
        pixels, odd, size = _inspected(path, loading, found.start)
    except (UserError, OSError, ValueError) as error:  # or a mode without a conversion to RGB
        looked = Looked(unusable.problem(path, error), digest)
        return Known.now(state, looked, INSPECT), True
    return Known.now(state, Looked(None, digest, *size), INSPECT, pixels, "\n".join(odd)), True


def _inspected(path: Any, loading: Loading, start: bytes) -> tuple[str, list[str], tuple[int, int]]:
    """(hash of the pixels, what is unusual, width and height) of an image."""
    if isinstance(path, Crop):
        picture = open_image(path, loading)
        return pixel_hash(picture), [], picture.size
    image = _decoded(path, loading)
    picture = loading.of(image)
    odd = list(unusual(image, start if image.format == "PNG" else b""))
    return pixel_hash(picture), odd, picture.size


def _decoded(path: Any, loading: Loading) -> Image.Image:
    """The image as it is in its file, if it is one that `loading` opens."""
    if loading.name == RELEASED.name:
        return open_image(path)
    return picture_files.decoded(path, picture_files.NATURAL_FORMATS)
