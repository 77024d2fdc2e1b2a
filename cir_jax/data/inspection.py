# SPDX-License-Identifier: Apache-2.0
"""Looks at image files: missing, empty, undecodable, duplicate. Nothing is dropped silently."""

import os
import stat
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import xxhash
from PIL import Image

from cir_jax import progress
from cir_jax.data.pixels import RELEASED, Loading, open_image
from cir_jax.data.triplets import TripletSet
from cir_jax.errors import UserError

_WINDOW = 1024  # images in flight: memory does not grow with the data set


@dataclass
class Findings:
    """Names of images by what is wrong with them; `duplicates` holds groups of equal images."""

    images: int = 0
    missing: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    undecodable: list[str] = field(default_factory=list)
    duplicates: list[list[str]] = field(default_factory=list)

    def unusable(self) -> list[str]:
        """Names of images that cannot be opened."""
        return [*self.missing, *self.empty, *self.undecodable]


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
            for (name, _), (state, digest) in zip(
                window, pool.map(lambda item: _look(item[1], decode, loading), window), strict=True
            ):
                if state:
                    getattr(findings, state).append(name)
                elif digest:
                    by_hash.setdefault(digest, []).append(name)
    findings.duplicates = [names for names in by_hash.values() if len(names) > 1]
    return findings


def drop_missing(
    sets: Sequence[TripletSet], on_missing: str
) -> tuple[list[TripletSet], dict[str, int]]:
    """Leaves out triplets whose images are missing or empty, if asked to.

    Args:
      sets: triplet sets.
      on_missing: "error" or "drop".

    Returns:
      The sets, and source -> number of triplets left out.

    Raises:
      UserError: images are missing and `on_missing` is "error", or nothing is left.
    """
    if on_missing not in ("error", "drop"):
        raise UserError(f"on_missing={on_missing!r} is unknown; use error or drop")
    paths: dict[str, Any] = {}
    for one in sets:
        paths |= one.paths
    bad = inspect_images(paths, decode=False).unusable()
    if not bad:
        return list(sets), {}
    if on_missing == "error":
        raise UserError(
            f"{len(bad)} of {len(paths)} images are missing or empty: "
            f"{', '.join(str(paths[n]) for n in bad[:3])}{', ...' if len(bad) > 3 else ''}. Run "
            "`cir-jax doctor` for the list, or set data.on_missing=drop to train without them"
        )
    lost = set(bad)
    kept, dropped = [], {}
    for one in sets:
        good = tuple(t for t in one.triplets if not {t.reference, t.target} & lost)
        if len(good) < len(one.triplets):
            dropped[one.name] = len(one.triplets) - len(good)
        kept.append(replace(one, triplets=good))
    if not any(one.triplets for one in kept):
        raise UserError(f"no triplet is left after dropping {len(bad)} missing images")
    return kept, dropped


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


def _look(path: Any, decode: bool, loading: Loading) -> tuple[str, str]:
    """(what is wrong or "", hash of the decoded image or "")."""
    if isinstance(path, str):
        try:
            found = os.stat(path)
        except OSError:
            return "missing", ""
        if not stat.S_ISREG(found.st_mode):
            return "undecodable", ""
        if found.st_size == 0:
            return "empty", ""
    if not decode:
        return "", ""
    try:
        return "", pixel_hash(open_image(path, loading))
    except (UserError, OSError, ValueError):  # or a mode without a conversion to RGB
        return "undecodable", ""
