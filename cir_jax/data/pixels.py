# SPDX-License-Identifier: Apache-2.0
"""Image file -> square uint8 pixels, bit-compatible with the released CLIP4CIR/SPN pipelines.

Order: pad, resize the short side (bicubic, antialiased), crop the centre, and only then convert to
RGB. The order matters: a palette image is resized in its own mode, and transparency is dropped, not
blended. Orientation tags are not applied, because the released code does not apply them.
"""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from cir_jax.errors import UserError, nearest

# Of OpenAI CLIP; the released code uses them for every backbone.
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
PADS = ("target", "square", "none")
# Pillow refuses an image of more than 178,956,970 pixels; a broken header claims as many.
_UNDECODABLE = (
    UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError,
)  # fmt: skip


class Preprocess:
    """Callable: image -> uint8 [S, S, 3].

    Args:
      size: side S in pixels.
      pad: "target" pads the short side with zeros until the aspect ratio is `target_ratio`;
        "square" until it is 1; "none" is plain CLIP (resize and crop).
      target_ratio: for "target"; 1.25 in every released run.

    Raises:
      UserError: an unknown `pad`, or a ratio below 1.
    """

    def __init__(self, size: int, pad: str = "target", target_ratio: float = 1.25):
        if pad not in PADS:
            raise UserError(
                f"data.pad={pad!r} is unknown; there are: {', '.join(PADS)}.{nearest(pad, PADS)}"
            )
        if target_ratio < 1:
            raise UserError(f"data.target_ratio={target_ratio} is below 1; the default is 1.25")
        self.size = size
        self.pad = pad
        self.target_ratio = target_ratio

    def __call__(self, source: Any) -> np.ndarray:
        """`source`: a path, bytes, an object with `read_bytes()`, a `Crop`, or a PIL image.

        Raises:
          UserError: the image is missing, empty, cut off or no image; the file is named.
        """
        image = source if isinstance(source, Image.Image) else open_image(source)
        left, top = self.padding(*image.size)
        if left or top:
            image = ImageOps.expand(image, (left, top, left, top), fill=0)
        image = image.resize(self.resized(*image.size), Image.Resampling.BICUBIC)
        image = _crop_centre(image, self.size)
        return np.asarray(image.convert("RGB"), dtype=np.uint8)

    def padding(self, width: int, height: int) -> tuple[int, int]:
        """(left = right, top = bottom) zeros for an image of this size, in pixels."""
        long, short = max(width, height), min(width, height)
        if self.pad == "none" or (self.pad == "target" and long / short < self.target_ratio):
            return 0, 0
        side = long / self.target_ratio if self.pad == "target" else long
        # Truncation leaves the ratio a little above the target; the released code does so too.
        return max(int((side - width) / 2), 0), max(int((side - height) / 2), 0)

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Size after the short side was made S."""
        if width <= height:
            return self.size, int(self.size * height / width)
        return int(self.size * width / height), self.size

    def fingerprint(self) -> str:
        """Names everything that changes a pixel."""
        ratio = f" {self.target_ratio}" if self.pad == "target" else ""
        return f"pad={self.pad}{ratio} size={self.size} bicubic centre rgb-last"


@dataclass(frozen=True, slots=True)
class Crop:
    """A box of an image, cut out and padded with zeros to a square; it stands wherever a path may.

    Crops of one file are equal if their boxes are, so each is encoded once.

    Attributes:
      source: the image, as `open_image` takes it.
      box: left, top, width and height, in pixels.
      dilate: by how much of its width and height the upper left corner moves outwards. The side
        grows by as much, measured from where the corner came to lie: the lower right corner stays,
        unless the border of the image stopped the upper left one, and then it moves instead. This
        is GeneCIS's own rule.
    """

    source: Any
    box: tuple[float, float, float, float]
    dilate: float = 0.0

    def cut(self, image: Image.Image) -> Image.Image:
        """The square part of the opened `image`.

        Raises:
          UserError: nothing of the box lies inside the image.
        """
        left, top, width, height = self.box
        left, top = max(0, left - self.dilate * width), max(0, top - self.dilate * height)
        right = min(image.width, left + (1 + self.dilate) * width)
        bottom = min(image.height, top + (1 + self.dilate) * height)
        corners = round(left), round(top), round(right), round(bottom)
        if corners[0] >= corners[2] or corners[1] >= corners[3]:
            raise UserError(
                f"box {self.box} (left, top, width, height) holds no pixel of {self.source}, which "
                f"is {image.width}x{image.height}; correct the annotation, or fetch the image again"
            )
        if image.mode not in ("L", "RGB"):  # black is not zero in others
            image = image.convert("RGB")
        part = image.crop(corners)
        side = max(part.size)
        square = Image.new(part.mode, (side, side))
        square.paste(part, ((side - part.width) // 2, (side - part.height) // 2))
        return square

    def __str__(self) -> str:
        return f"{self.source} box {', '.join(f'{x:g}' for x in self.box)}"


class Packed(Protocol):
    """An image inside a larger file, e.g. a record of an ArrayRecord file."""

    def read_bytes(self) -> bytes:
        """The bytes of the image file."""

    def __hash__(self) -> int:
        """Of which image it is: an image is encoded once, and its rows are kept under it."""


ImageFile = str | Path | Packed | Crop


def open_image(source: Any) -> Image.Image:
    """Opens and decodes an image completely; of a `Crop`, its part.

    Raises:
      UserError: see `Preprocess.__call__`.
    """
    if isinstance(source, Crop):
        return source.cut(open_image(source.source))
    name = str(source) if not isinstance(source, bytes) else f"{len(source)} bytes"
    try:
        if isinstance(source, str | Path):
            content = Path(source).read_bytes()
        else:
            content = source if isinstance(source, bytes) else source.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"image {name} does not exist; run `cir-jax doctor`, or set data.on_missing=drop"
        ) from None
    except OSError as error:
        raise UserError(f"image {name} cannot be read ({error}); correct that file") from None
    if not content:
        raise UserError(
            f"image {name} is empty (0 bytes), as a broken download leaves it; fetch it again"
        )
    try:
        image = Image.open(io.BytesIO(content))
        image.load()
    except _UNDECODABLE as error:
        # Pillow's own words name a place in memory, another one each time.
        why = "no format that Pillow knows" if isinstance(error, UnidentifiedImageError) else error
        raise UserError(
            f"image {name} cannot be decoded ({why}); fetch it again, or remove it and set "
            "data.on_missing=drop"
        ) from None
    return image


def _crop_centre(image: Image.Image, size: int) -> Image.Image:
    width, height = image.size
    # Python rounds halves to even, and so does the pipeline this one must match.
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))
