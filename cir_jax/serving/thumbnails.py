# SPDX-License-Identifier: Apache-2.0
"""Small pictures of images, made once and kept in bounded memory."""

import io
from collections.abc import Callable, Hashable
from pathlib import Path

from PIL import Image

from cir_jax.data import natural, picture_files
from cir_jax.data.pixels import NATURAL
from cir_jax.errors import UserError
from cir_jax.serving.kept import Kept

SIZES = (64, 128, 256, 512, 1024)
MEDIA = "image/webp"
# What every browser shows as it is; others are sent as JPEG.
_SHOWN = {
    "JPEG": "image/jpeg",
    "PNG": "image/png",
    "WEBP": "image/webp",
    "GIF": "image/gif",
    "AVIF": "image/avif",
}
_QUALITY = 80


class Thumbnails:
    """Keeps encoded pictures; any thread may use it.

    Args:
      most: bytes of all that are kept.
    """

    def __init__(self, most: int):
        self._kept = Kept(most)

    def of(self, key: Hashable, make: Callable[[], bytes]) -> bytes:
        """What is kept under `key`, or else what `make` gives. Two threads may make the same."""
        made = self._kept.get(key)
        if made is None:
            made = make()
            self._kept.put(key, made)
        return made


def small(image: Image.Image, size: int) -> bytes:
    """A picture whose longer side is at most `size`, as a person sees it, as WebP."""
    seen = natural.seen(image, NATURAL.colour())
    seen.thumbnail((size, size), Image.Resampling.BICUBIC, reducing_gap=2.0)
    out = io.BytesIO()
    seen.save(out, "WEBP", quality=_QUALITY, method=2)
    return out.getvalue()


def whole(place: Path) -> tuple[bytes, str]:
    """(content, media type) of an image as a browser can show it: the file itself if it can.

    Raises:
      UserError: it cannot be read or decoded.
    """
    content = picture_files.read(place)
    image = picture_files.decoded(place, picture_files.NATURAL_FORMATS)
    if image.format in _SHOWN:
        return content, _SHOWN[image.format]
    try:
        seen = natural.seen(image, NATURAL.colour())
    except ValueError as error:
        raise UserError(f"image {place.name} has no picture ({error})") from None
    out = io.BytesIO()
    seen.save(out, "JPEG", quality=90)
    return out.getvalue(), "image/jpeg"
