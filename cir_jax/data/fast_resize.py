# SPDX-License-Identifier: Apache-2.0
"""Pillow's resizing by the vector instructions of the processor, within one level of 255.

cykooz-resizer has the same filters. It is asked for columns first and rows then, as Pillow works,
with 8 bits kept in between: the order and that rounding are what values depend on. Where a
picture grows two levels are possible, and Pillow turns the order around for some long ones; these,
and modes other than RGB and grey, are left to Pillow.
"""

import threading
from importlib import metadata
from typing import Any

from PIL import Image

from cir_jax.errors import UserError

PACKAGE = "cykooz-resizer"
_LONG = 1.3  # ratio of the sides of a picture that is left to Pillow
_of_thread = threading.local()


def check() -> None:
    """Checks that the package is there.

    Raises:
      UserError: it is not.
    """
    try:
        import cykooz_resizer  # noqa: F401
    except ImportError:
        raise UserError(
            f"data.resize=fast needs {PACKAGE}, which is not installed; run pip install "
            "'cir_jax[fast]', or set data.resize=pillow"
        ) from None


def made_by() -> str:
    """The package and its version, which may change a value."""
    return f"{PACKAGE} {metadata.version(PACKAGE)}"


def resized(
    image: Image.Image,
    size: tuple[int, int],
    resample: Image.Resampling = Image.Resampling.BICUBIC,
) -> Image.Image:
    """The image in another size (width and height in pixels), see the module.

    `resample` is Pillow's name of the filter, bicubic or bilinear.
    """
    grows = size[0] > image.width or size[1] > image.height
    if grows or image.mode not in ("RGB", "L") or max(image.size) > _LONG * min(image.size):
        return image.resize(size, resample)
    from cykooz_resizer import ImageData, PixelType

    kind = PixelType.U8x3 if image.mode == "RGB" else PixelType.U8
    narrow = ImageData(size[0], image.height, kind)
    small = ImageData(*size, kind)
    resizer, options = _resizer(resample)
    resizer.resize(ImageData(*image.size, kind, image.tobytes()), narrow, options)
    resizer.resize(narrow, small, options)
    return Image.frombytes(image.mode, size, small.get_buffer())


def _resizer(resample: Image.Resampling) -> tuple[Any, Any]:
    """That of this thread, which keeps memory that only one may use; and the filter's options."""
    if not hasattr(_of_thread, "resizer"):
        from cykooz_resizer import FilterType, ResizeAlg, ResizeOptions, Resizer

        # Catmull and Rom's cubic is the bicubic of Pillow: a = -0.5.
        filters = {
            Image.Resampling.BICUBIC: FilterType.catmull_rom,
            Image.Resampling.BILINEAR: FilterType.bilinear,
        }
        options = {ours: ResizeOptions(ResizeAlg.convolution(f)) for ours, f in filters.items()}
        _of_thread.resizer = Resizer(), options
    resizer, options = _of_thread.resizer
    return resizer, options[resample]
