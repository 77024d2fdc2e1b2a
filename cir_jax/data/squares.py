# SPDX-License-Identifier: Apache-2.0
"""Pad, resize, crop the centre: the square of an image, also where its canvas would fill memory.

An image of 1 x 65,000 pixels, padded to a ratio of 1.25, is a canvas of 3.4 thousand million. Of a
large canvas only strips are made. Pillow shrinks rows first and columns then, each by itself, so
the pixels are the same bit for bit. (Since version 13 it begins with the columns of some images
that are much higher than wide; a padded canvas is none of them.)
"""

from collections.abc import Callable

from PIL import Image, ImageOps

from cir_jax.data.picture_files import MAX_PIXELS

WHOLE = 1 << 26  # pixels of a canvas that is made in one piece
STRIP = 1 << 22  # pixels of a strip
MAX_CANVAS = 1 << 32  # pixels of a canvas at all: the longest side of a JPEG is 65,535
_SQUARISH = 1.3  # ratio of a canvas that may be made in strips; padding leaves 1.25, or 1
_PREMULTIPLIED = {"LA": "La", "RGBA": "RGBa"}  # in which Pillow resizes


def square(
    image: Image.Image,
    padding: tuple[int, int],
    resized: Callable[[int, int], tuple[int, int]],
    side: int,
    resize: Callable[[Image.Image, tuple[int, int]], Image.Image] | None = None,
    resample: Image.Resampling = Image.Resampling.BICUBIC,
) -> Image.Image:
    """The centre, `side` x `side` pixels, of the padded and resized image.

    Args:
      image: in any mode.
      padding: (left = right, top = bottom) zeros, in pixels.
      resized: size of the padded image -> its size when its short side is `side`.
      side: of the square, in pixels.
      resize: image, size -> resized image, where the canvas is made in one piece; None is Pillow.
      resample: Pillow's filter.

    Raises:
      ValueError: it is so long and thin that it has more than `MAX_CANVAS` pixels padded, or
        `picture_files.MAX_PIXELS` resized.
    """
    left, top = padding
    canvas = image.width + 2 * left, image.height + 2 * top
    new = resized(*canvas)
    # What Pillow keeps between its two passes is `side` pixels of each row or column.
    kept = max(new[0] * new[1], side * max(image.size))
    pixels, strips = canvas[0] * canvas[1], max(canvas) <= _SQUARISH * min(canvas)
    if kept > MAX_PIXELS or pixels > (MAX_CANVAS if strips else MAX_PIXELS):
        raise ValueError(
            f"it is {image.width:,} x {image.height:,} pixels, so long and thin that its square "
            f"takes {pixels:,} padded and {kept:,} resized, over the limits of {MAX_CANVAS:,} and "
            f"{MAX_PIXELS:,}: cut it"
        )
    if (left or top) and strips and pixels > WHOLE:
        return _in_strips(image, padding, new, side, resample)
    if left or top:
        image = ImageOps.expand(image, (left, top, left, top), fill=0)
    image = resize(image, new) if resize else image.resize(new, resample)
    x, y = _centre(new, side)
    return image.crop((x, y, x + side, y + side))


def _in_strips(
    image: Image.Image,
    padding: tuple[int, int],
    new: tuple[int, int],
    side: int,
    resample: Image.Resampling,
) -> Image.Image:
    (left, top), (x, y), (width, height) = padding, _centre(new, side), image.size
    # Multiplied once, as Pillow does, and not once for each pass.
    inner = _PREMULTIPLIED.get(image.mode, image.mode)
    rows = max(1, STRIP // max(width + 2 * left, new[0]))
    narrow = _blank(image, inner, (side, height))
    for start in range(0, height, rows):
        strip = _in(image.crop((0, start, width, min(start + rows, height))), inner)
        strip = ImageOps.expand(strip, (left, 0, left, 0), fill=0)
        strip = strip.resize((new[0], strip.height), resample)
        narrow.paste(strip.crop((x, 0, x + side, strip.height)), (0, start))
    columns = max(1, STRIP // max(height + 2 * top, new[1]))
    result = _blank(image, inner, (side, side))
    for start in range(0, side, columns):
        strip = narrow.crop((start, 0, min(start + columns, side), height))
        strip = ImageOps.expand(strip, (0, top, 0, top), fill=0)
        strip = strip.resize((strip.width, new[1]), resample)
        result.paste(strip.crop((0, y, strip.width, y + side)), (start, 0))
    return _in(result, image.mode)


def _in(image: Image.Image, mode: str) -> Image.Image:
    return image if image.mode == mode else image.convert(mode)


def _blank(image: Image.Image, mode: str, size: tuple[int, int]) -> Image.Image:
    """An image with the same palette."""
    return _in(image.crop((0, 0, 1, 1)), mode).resize(size, Image.Resampling.NEAREST)


def _centre(size: tuple[int, int], side: int) -> tuple[int, int]:
    # Python rounds halves to even, and so does the pipeline this one must match.
    return round((size[0] - side) / 2), round((size[1] - side) / 2)
