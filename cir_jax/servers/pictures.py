# SPDX-License-Identifier: Apache-2.0
"""How an image is sent to a server: its own bytes where any server reads them, or encoded anew."""

import base64
import io
from typing import Any

from PIL import ExifTags, Image, ImageOps

from cir_jax.data import natural, picture_files
from cir_jax.data.pixels import RELEASED, Crop, Loading, open_image

JPEG_QUALITY = 95


def small_image(source: Any, max_side: int, loading: Loading = RELEASED) -> Image.Image:
    """The image in RGB, upright, its long side at most `max_side` pixels (0: as it is).

    Of "natural" loading it is what the encoder sees; of "released" the encoder's orientation and
    transparency are those of the published runs, and those here are what a person sees.

    Raises:
      UserError: it cannot be read; the file is named.
    """
    opened = isinstance(source, Image.Image)
    image = loading.of(source) if opened else open_image(source, loading)
    if loading.name == "released":
        image = ImageOps.exif_transpose(image).convert("RGB")
    if max_side:
        image.thumbnail((max_side, max_side), Image.Resampling.BICUBIC)
    return image


def data_url(source: Any, max_side: int, loading: Loading = RELEASED) -> str:
    """A base64 data URL of the image, see `encoded`.

    Raises:
      UserError: it cannot be read; the file is named.
    """
    form, content = encoded(source, max_side, loading)
    return as_url(form, content)


def as_url(form: str, content: bytes) -> str:
    """A base64 data URL of what `encoded` gave."""
    return f"data:image/{form.lower()};base64,{base64.b64encode(content).decode()}"


def encoded(source: Any, max_side: int, loading: Loading = RELEASED) -> tuple[str, bytes]:
    """("PNG", "JPEG" or "WEBP", the bytes of the image as a file).

    Args:
      source: a path, bytes, an object with `read_bytes()`, a `Crop`, or a PIL image.
      max_side: of the long side, in pixels; 0 for no limit.
      loading: how a file becomes a picture.

    Raises:
      UserError: it cannot be read; the file is named.
    """
    if isinstance(source, Crop | Image.Image):  # no file of its own: nothing of it is lost as PNG
        return "PNG", _as_file(small_image(source, max_side, loading), "PNG")
    # A broken file is found here and not by the server.
    formats = picture_files.NATURAL_FORMATS if loading.name == "natural" else None
    image = picture_files.decoded(source, formats)
    form, fits = image.format, not max_side or max(image.size) <= max_side
    # Servers differ in what they make of transparency, palettes and photographs that lie on their
    # side; upright RGB says what is meant.
    if loading.name == "natural":
        clear = natural.is_plain(image)
    else:
        upright = image.getexif().get(ExifTags.Base.Orientation, 1) == 1
        clear = upright and image.mode in ("RGB", "L")
    if fits and clear and form in ("PNG", "JPEG", "WEBP"):
        return form, picture_files.read(source)
    form = "PNG" if form in ("PNG", "GIF", "BMP") else "JPEG"
    return form, _as_file(small_image(source, max_side, loading), form)


def _as_file(image: Image.Image, form: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, quality=JPEG_QUALITY)
    return buffer.getvalue()


class GreyImage:
    """A plain grey picture, which every server can read."""

    def read_bytes(self) -> bytes:
        """PNG, 224 pixels wide and high."""
        return _as_file(Image.new("RGB", (224, 224), (128, 128, 128)), "PNG")
