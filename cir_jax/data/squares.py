# SPDX-License-Identifier: Apache-2.0
"""Pad, resize, crop the centre: the square of an image, also where its canvas would fill memory.

An image of 1 x 65,000 pixels, padded to a ratio of 1.25, is a canvas of 3.4 thousand million. Of a
large canvas only strips are made. Pillow resizes rows first and columns then, each by itself, so
the pixels are the same bit for bit.
"""

from collections.abc import Callable

from PIL import Image, ImageOps

from cir_jax.data.picture_files import MAX_PIXELS
from cir_jax.errors import UserError

WHOLE = 1 << 26  # pixels of a canvas, or of a resized one, that is made in one piece
STRIP = 1 << 22  # pixels of a strip
MAX_CANVAS = 1 << 32  # pixels of a canvas at all: the longest side of a JPEG is 65,535
_PREMULTIPLIED = {"LA": "La", "RGBA": "RGBa"}  # in which Pillow resizes


def square(
    image: Image.Image,
    padding: tuple[int, int],
    resized: Callable[[int, int], tuple[int, int]],
    side: int,
) -> Image.Image:
    """The centre, `side` x `side` pixels, of the padded and resized image.

    Args:
      image: in any mode.
      padding: (left = right, top = bottom) zeros, in pixels.
      resized: size of the padded image -> its size when its short side is `side`.
      side: of the square, in pixels.

    Raises:
      ValueError: it is so long and thin that its canvas has more than `MAX_CANVAS` pixels.
    """
    left, top = padding
    canvas = image.width + 2 * left, image.height + 2 * top
    new = resized(*canvas)
    most = max(canvas[0] * canvas[1], new[0] * new[1])
    if most <= WHOLE:
        if left or top:
            image = ImageOps.expand(image, (left, top, left, top), fill=0)
        image = image.resize(new, Image.Resampling.BICUBIC)
        x, y = _centre(new, side)
        return image.crop((x, y, x + side, y + side))
    # `side` columns of every row are kept between the two passes.
    if most > MAX_CANVAS or side * image.height > MAX_PIXELS:
        raise ValueError(
            f"it is {image.width:,} x {image.height:,} pixels, so long and thin that as a square "
            f"it takes {most:,}, over the limit of {MAX_CANVAS:,}"
        )
    return _in_strips(image, padding, new, side)


def refused(name: str, why: ValueError) -> UserError:
    """What to say of an image that cannot be made a square."""
    return UserError(
        f"image {name} cannot be used ({why}); cut or shrink it, or remove it and set "
        "data.on_missing=drop"
    )


def _in_strips(
    image: Image.Image, padding: tuple[int, int], new: tuple[int, int], side: int
) -> Image.Image:
    (left, top), (x, y), mode = padding, _centre(new, side), image.mode
    if mode in _PREMULTIPLIED:  # once, as Pillow does, and not once for each pass
        image = image.convert(_PREMULTIPLIED[mode])
    width, height = image.size
    rows = max(1, STRIP // max(width + 2 * left, new[0]))
    narrow = _blank(image, (side, height))
    for start in range(0, height, rows):
        strip = image.crop((0, start, width, min(start + rows, height)))
        strip = ImageOps.expand(strip, (left, 0, left, 0), fill=0)
        strip = strip.resize((new[0], strip.height), Image.Resampling.BICUBIC)
        narrow.paste(strip.crop((x, 0, x + side, strip.height)), (0, start))
    columns = max(1, STRIP // max(height + 2 * top, new[1]))
    result = _blank(image, (side, side))
    for start in range(0, side, columns):
        strip = narrow.crop((start, 0, min(start + columns, side), height))
        strip = ImageOps.expand(strip, (0, top, 0, top), fill=0)
        strip = strip.resize((strip.width, new[1]), Image.Resampling.BICUBIC)
        result.paste(strip.crop((0, y, strip.width, y + side)), (start, 0))
    return result.convert(mode) if mode in _PREMULTIPLIED else result


def _blank(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """An image of the same mode and palette."""
    return image.crop((0, 0, 1, 1)).resize(size, Image.Resampling.NEAREST)


def _centre(size: tuple[int, int], side: int) -> tuple[int, int]:
    # Python rounds halves to even, and so does the pipeline this one must match.
    return round((size[0] - side) / 2), round((size[1] - side) / 2)
