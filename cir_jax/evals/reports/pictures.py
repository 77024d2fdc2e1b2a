# SPDX-License-Identifier: Apache-2.0
"""Turns an image file into a small data URI, so that a report holds its pictures itself."""

import base64
import io
from functools import lru_cache

from PIL import Image

from cir_jax.data.pixels import RELEASED, ImageFile, Loading, open_image
from cir_jax.errors import UserError

SIDE = 160  # longest side in pixels: twice the size on the page, for sharp screens
_EXACT = 96  # drawings up to this side are kept exactly; JPEG would blur their edges


def data_uri(source: ImageFile, loading: Loading = RELEASED) -> str:
    """The picture as "data:image/...;base64,...", at most `SIDE` pixels; "" if it cannot be read.

    A report is still worth having where an image has moved since.

    Args:
      source: its file.
      loading: how the run opened it, so that the report shows what the model saw.
    """
    try:
        return _encoded(source, loading)
    except UserError:
        return ""


@lru_cache(maxsize=4096)
def _encoded(source: ImageFile, loading: Loading) -> str:
    image = open_image(source, loading)
    exact = max(image.size) <= _EXACT
    transparent = image.mode in ("RGBA", "LA") or "transparency" in image.info
    image = image.convert("RGBA" if transparent else "RGB")
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if exact or transparent:
        image.save(buffer, "PNG", optimize=True)
        kind = "png"
    else:
        image.save(buffer, "JPEG", quality=82, optimize=True)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
