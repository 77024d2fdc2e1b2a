# SPDX-License-Identifier: Apache-2.0
"""Small pictures of image files, and as data URIs, so that a page holds its pictures itself."""

import base64
import io
from functools import lru_cache

from PIL import Image

from cir_jax.data.pixels import RELEASED, ImageFile, Loading, open_image
from cir_jax.errors import UserError

SIDE = 160  # longest side in pixels: twice the size on the page, for sharp screens
_EXACT = 96  # drawings up to this side are kept exactly; JPEG would blur their edges


def data_uri(source: ImageFile, loading: Loading = RELEASED, side: int = SIDE) -> str:
    """The picture as "data:image/...;base64,..."; "" if it cannot be read.

    A page is still worth having where an image has moved since.

    Args:
      source: its file.
      loading: how the run opened it, so that a report shows what the model saw.
      side: longest side in pixels, at most.
    """
    try:
        return _encoded(source, loading, side)
    except UserError:
        return ""


def small(source: ImageFile, loading: Loading = RELEASED, side: int = SIDE) -> Image.Image:
    """The picture itself, "RGB" or, where it is transparent, "RGBA"; arguments as above.

    Raises:
      UserError: it cannot be read.
    """
    image = open_image(source, loading)
    transparent = image.mode in ("RGBA", "LA") or "transparency" in image.info
    image = image.convert("RGBA" if transparent else "RGB")
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return image


@lru_cache(maxsize=4096)
def _encoded(source: ImageFile, loading: Loading, side: int) -> str:
    image = small(source, loading, side)
    exact, transparent = max(image.size) <= _EXACT, image.mode == "RGBA"
    buffer = io.BytesIO()
    if exact or transparent:
        image.save(buffer, "PNG", optimize=True)
        kind = "png"
    else:
        image.save(buffer, "JPEG", quality=82, optimize=True)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
