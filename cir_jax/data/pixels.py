# SPDX-License-Identifier: Apache-2.0
"""Image file -> square uint8 pixels; and the mean and deviation by which a device normalises them.

    released   bit-compatible with the released CLIP4CIR/SPN pipelines: pad, resize the short side
               (bicubic, antialiased), crop the centre, and only then convert to RGB. The order
               matters: a palette image is resized in its own mode, and transparency is dropped, not
               blended. Orientation tags are not applied, and values over 255 are cut, because the
               released code does so.
    natural    first the picture that a person sees, see `cir_jax.data.natural`; then the same.

An opaque, upright 8-bit RGB or grey image has the same pixels in both.

Pillow 9.5, 12.3 and 13.0 give the same pixels to a padded image. Without padding, 13 shrinks images
far taller than wide (500 x 2000) in another order of axes: of noise a fifth to a quarter of the
values differ, by up to 14 of 255. So `results.json` names the version.
"""

import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageColor

from cir_jax.data import fast_resize, natural, picture_files, pillow_warnings, squares
from cir_jax.errors import UserError, nearest

# Of OpenAI CLIP; the released code uses them for every backbone.
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
PADS = ("target", "square", "none", "squash")
# Filters of a resize. Both take the mean over what becomes one pixel (antialiasing) in a smaller
# image, as Pillow's and those of the image processors of transformers and open_clip do.
INTERPOLATIONS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
AUTO = "auto"  # of data.loading: what weights or data say
LOADINGS = ("released", "natural")
RESIZES = ("pillow", "fast")
FAST = RESIZES[1]


@dataclass(frozen=True)
class Normalisation:
    """What is done to a value of a pixel on the device: (value / 255 - mean) / deviation.

    Attributes:
      mean: of red, green and blue, in the units of an image whose white is 1.
      deviation: the same; CLIP's by default.

    Raises:
      UserError: there are not three of each, or no image can have them.
    """

    mean: tuple[float, ...] = IMAGE_MEAN
    deviation: tuple[float, ...] = IMAGE_STD

    def __post_init__(self) -> None:
        for name, values, limit in (("mean", self.mean, 0), ("deviation", self.deviation, 1e-6)):
            if len(values) != 3 or not all(limit <= value <= 1 for value in values):
                raise UserError(
                    f"a pixel {name} of {tuple(values)} is none of an image: give three numbers "
                    f"from {limit:g} to 1, of red, green and blue"
                )

    def fingerprint(self) -> str:
        """Names it; "" for CLIP's, which every run had before there was another."""
        if self == CLIP:
            return ""
        said = ("mean", self.mean), ("deviation", self.deviation)
        return " ".join(f"{name}={','.join(f'{x:.8g}' for x in values)}" for name, values in said)


CLIP = Normalisation()


@dataclass(frozen=True)
class Resize:
    """How the images of a tower became squares where its weights were first trained.

    Attributes:
      pad: "none", the short side is fitted and the centre cropped, or "squash", both sides are.
      interpolation: one of INTERPOLATIONS.
    """

    pad: str = "none"
    interpolation: str = "bicubic"


CROPPED = Resize()  # as CLIP's


@dataclass(frozen=True)
class Loading:
    """How a file becomes a picture: `data.loading` and `data.background`.

    Attributes:
      name: "released" or "natural", see the module.
      background: of "natural", behind what is transparent: the name of a colour, or "#rrggbb".

    Raises:
      UserError: an unknown name or colour.
    """

    name: str = "released"
    background: str = "white"

    def __post_init__(self) -> None:
        if self.name not in LOADINGS:
            raise UserError(
                f"data.loading={self.name!r} is unknown; there are: {', '.join(LOADINGS)}."
                f"{nearest(self.name, LOADINGS)}"
            )
        self.colour()

    def colour(self) -> tuple[int, int, int]:
        """Red, green and blue of the background."""
        try:
            red, green, blue = ImageColor.getrgb(self.background)[:3]
        except ValueError:
            raise UserError(
                f"data.background={self.background!r} is no colour; give a name such as white or "
                "black, or #rrggbb"
            ) from None
        return red, green, blue

    def of(self, image: Image.Image) -> Image.Image:
        """The picture of a decoded image: of "released" the image itself, of "natural" in RGB.

        Raises:
          ValueError: "natural" finds no picture in it, see `natural.seen`.
        """
        return image if self.name == "released" else natural.seen(image, self.colour())

    def fingerprint(self) -> str:
        """Names everything that changes a pixel before the padding."""
        if self.name == "released":
            return "rgb-last"
        return "natural on #{:02x}{:02x}{:02x}".format(*self.colour())


RELEASED, NATURAL = Loading("released"), Loading("natural")


class Preprocess:
    """Callable: image -> uint8 [S, S, 3].

    Args:
      size: side S in pixels.
      pad: "target" pads the short side with zeros until the aspect ratio is `target_ratio`;
        "square" until it is 1; "none" is plain CLIP (resize and crop); "squash" makes the image a
        square whatever its sides, as SigLIP does.
      target_ratio: for "target"; 1.25 in every released run.
      loading: how files become pictures.
      resize: "pillow", bit for bit as the released code, or "fast", see `cir_jax.data.fast_resize`.
      interpolation: one of INTERPOLATIONS, that of the model.
      normalisation: of the model. It is done on the device; here it is part of the fingerprint.

    Raises:
      UserError: an unknown `pad`, `resize` or `interpolation`, a ratio below 1, or a package that
        is not there.
    """

    def __init__(
        self,
        size: int,
        pad: str = "target",
        target_ratio: float = 1.25,
        loading: Loading = RELEASED,
        resize: str = RESIZES[0],
        interpolation: str = "bicubic",
        normalisation: Normalisation = CLIP,
    ):
        if pad not in PADS:
            raise UserError(
                f"data.pad={pad!r} is unknown; there are: {', '.join(PADS)}.{nearest(pad, PADS)}"
            )
        if target_ratio < 1:
            raise UserError(f"data.target_ratio={target_ratio} is below 1; the default is 1.25")
        if resize not in RESIZES:
            raise UserError(
                f"data.resize={resize!r} is unknown; there are: {', '.join(RESIZES)}."
                f"{nearest(resize, RESIZES)}"
            )
        if resize == FAST:
            fast_resize.check()
        if interpolation not in INTERPOLATIONS:
            raise UserError(
                f"model.interpolation={interpolation!r} is unknown; there are: "
                f"{', '.join(INTERPOLATIONS)}.{nearest(interpolation, INTERPOLATIONS)}"
            )
        self.interpolation = interpolation
        self.normalisation = normalisation
        self.size = size
        self.resize = resize
        self.pad = pad
        self.target_ratio = target_ratio
        self.loading = loading

    def __call__(self, source: Any) -> np.ndarray:
        """`source`: a path, bytes, an object with `read_bytes()`, a `Crop`, or a PIL image.

        Raises:
          UserError: the image is missing, empty, cut off, too large or none; the file is named.
        """
        name = "that was given decoded" if isinstance(source, Image.Image) else source
        with pillow_warnings.named(name):
            try:
                opened = isinstance(source, Image.Image)
                image = self.loading.of(source) if opened else open_image(source, self.loading)
                return self.square(image)
            except UserError:  # is a ValueError too, and names the file
                raise
            except ValueError as error:
                raise picture_files.unusable(name, error) from None

    def square(self, image: Image.Image) -> np.ndarray:
        """uint8 [S, S, 3] of an image as `open_image` gives it.

        Raises:
          ValueError: it is so long and thin that it makes no square.
        """
        resample = INTERPOLATIONS[self.interpolation]
        resize = partial(fast_resize.resized, resample=resample) if self.resize == FAST else None
        padding = self.padding(*image.size)
        image = squares.square(image, padding, self.resized, self.size, resize, resample)
        return np.asarray(image.convert("RGB"), dtype=np.uint8)

    def loaded(self, loading: Loading) -> "Preprocess":
        """The same with another loading."""
        made = copy.copy(self)
        made.loading = loading
        return made

    def padding(self, width: int, height: int) -> tuple[int, int]:
        """(left = right, top = bottom) zeros for an image of this size, in pixels."""
        long, short = max(width, height), min(width, height)
        unpadded = self.pad in ("none", "squash")
        if unpadded or (self.pad == "target" and long / short < self.target_ratio):
            return 0, 0
        side = long / self.target_ratio if self.pad == "target" else long
        # Truncation leaves the ratio a little above the target; the released code does so too.
        return max(int((side - width) / 2), 0), max(int((side - height) / 2), 0)

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Size after the short side was made S, or both where they are squashed."""
        if self.pad == "squash":
            return self.size, self.size
        if width <= height:
            return self.size, int(self.size * height / width)
        return int(self.size * width / height), self.size

    def fingerprint(self) -> str:
        """Names everything that changes an input of the model."""
        ratio = f" {self.target_ratio}" if self.pad == "target" else ""
        loading = self.loading.fingerprint()
        how = f" by {fast_resize.PACKAGE}" * (self.resize == FAST)
        made = f"pad={self.pad}{ratio} size={self.size} {self.interpolation}{how} centre {loading}"
        return f"{made} {self.normalisation.fingerprint()}".strip()

    def made_by(self) -> str:
        """Names what else may change a pixel: versions of packages, beside that of Pillow."""
        return fast_resize.made_by() if self.resize == FAST else ""


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
          BoxOutside: nothing of the box lies inside the image.
        """
        corners = self._corners(*image.size)
        if image.mode not in ("L", "RGB"):  # black is not zero in others
            image = image.convert("RGB")
        part = image.crop(corners)
        side = max(part.size)
        square = Image.new(part.mode, (side, side))
        square.paste(part, ((side - part.width) // 2, (side - part.height) // 2))
        return square

    def side(self, width: int, height: int) -> int:
        """Side of the square that is cut out of a file's image of this size, all in pixels.

        Raises:
          BoxOutside: nothing of the box lies inside the image.
        """
        if isinstance(self.source, Crop):
            width = height = self.source.side(width, height)
        left, top, right, bottom = self._corners(width, height)
        return max(right - left, bottom - top)

    def _corners(self, width: int, height: int) -> tuple[int, int, int, int]:
        """(left, top, right, bottom) of the part of an image of this size."""
        left, top, wide, high = self.box
        left, top = max(0, left - self.dilate * wide), max(0, top - self.dilate * high)
        right = min(width, left + (1 + self.dilate) * wide)
        bottom = min(height, top + (1 + self.dilate) * high)
        corners = round(left), round(top), round(right), round(bottom)
        if corners[0] >= corners[2] or corners[1] >= corners[3]:
            raise BoxOutside(self, width, height)
        return corners

    def __str__(self) -> str:
        return f"{self.source} box {', '.join(f'{x:g}' for x in self.box)}"


class BoxOutside(UserError):
    """A crop whose box holds no pixel of its image.

    Args:
      crop: the crop.
      width, height: of its image, in pixels.
    """

    def __init__(self, crop: Crop, width: int, height: int):
        super().__init__(
            f"box {crop.box} (left, top, width, height) holds no pixel of {crop.source}, which "
            f"is {width}x{height}; correct the annotation, or fetch the image again"
        )
        self.size = width, height


class Packed(Protocol):
    """An image inside a larger file, e.g. a record of an ArrayRecord file."""

    def read_bytes(self) -> bytes:
        """The bytes of the image file."""

    def __hash__(self) -> int:
        """Of which image it is: an image is encoded once, and its rows are kept under it."""


ImageFile = str | Path | Packed | Crop


def open_image(source: Any, loading: Loading = RELEASED) -> Image.Image:
    """Opens and decodes an image completely; of a `Crop`, its part.

    It takes at most `picture_files.MAX_BYTES` for the file and 12 bytes for each of at most
    `picture_files.MAX_PIXELS` pixels, whatever its header says.

    Args:
      source: see `Preprocess.__call__`.
      loading: "released" opens what Pillow opens, and gives an image in the mode of its file;
        "natural" opens `picture_files.NATURAL_FORMATS` and HEIC, and gives RGB.

    Raises:
      UserError: see `Preprocess.__call__`.
    """
    if isinstance(source, Crop):
        return source.cut(open_image(source.source, loading))
    with pillow_warnings.named(source):
        if loading.name == "released":
            return picture_files.decoded(source)
        image = picture_files.decoded(source, picture_files.NATURAL_FORMATS)
        try:
            return loading.of(image)
        except ValueError as error:
            raise picture_files.unusable(source, error) from None
