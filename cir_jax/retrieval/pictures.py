# SPDX-License-Identifier: Apache-2.0
"""What people give as an image: a path, a PIL image or an array."""

import os
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cir_jax.data.pixels import Preprocess
from cir_jax.errors import UserError

Picture: TypeAlias = str | os.PathLike[str] | Image.Image | NDArray[np.uint8]
_loading = threading.Lock()  # Pillow reads a file when its pixels are asked for, once


@dataclass(frozen=True, eq=False)
class Decoded:
    """An image that is no file. A key of its own, where PIL images and arrays can be none."""

    image: Image.Image


def items(images: Iterable[Picture]) -> list[str | Decoded]:
    """The images as keys: a path, or a decoded image.

    Raises:
      UserError: one of them is no image.
    """
    if isinstance(images, str | os.PathLike | Image.Image):
        raise UserError(f"{images!r} is one image, not a list of images; give a list of it")
    return [_item(image, number) for number, image in enumerate(images)]


def _item(image: Any, number: int) -> str | Decoded:
    if isinstance(image, str | os.PathLike):
        return os.path.expanduser(os.fspath(image))
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise UserError(
                f"image {number} is an array {list(image.shape)} of {image.dtype}; give uint8 "
                "[H, W, 3], red, green and blue from 0 to 255"
            )
        return Decoded(Image.fromarray(image))
    if isinstance(image, Image.Image):
        try:
            with _loading:
                image.load()
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(
                f"image {number} cannot be decoded ({error}); give another one"
            ) from None
        if 0 in image.size:
            raise UserError(f"image {number} is {image.width}x{image.height}; give one with pixels")
        return Decoded(image)
    raise UserError(
        f"image {number} is a {type(image).__name__}; give a path, a PIL image or a uint8 array "
        "[H, W, 3]"
    )


class Reader:
    """Such a key -> uint8 [S, S, 3].

    Args:
      preprocess: image -> the same.
    """

    def __init__(self, preprocess: Preprocess):
        self._preprocess = preprocess

    def __call__(self, item: Any) -> np.ndarray:
        """What the preprocessing makes of it.

        Raises:
          UserError: there is no such file, or it cannot be read.
        """
        return self._preprocess(self.source(item))

    def source(self, item: Any) -> Any:
        """The image as a preprocessing takes it.

        Raises:
          UserError: there is no such file.
        """
        if isinstance(item, Decoded):
            return item.image
        if isinstance(item, str) and not Path(item).exists():
            raise UserError(f"image {item} does not exist; give the path of an image file")
        return item

    def prepare(self, items: Sequence[Any]) -> None:
        """As the preprocessing, where it asks others for what it makes of images."""
        if (prepare := getattr(self._preprocess, "prepare", None)) is not None:
            prepare([self.source(item) for item in items])
