# SPDX-License-Identifier: Apache-2.0
"""Images that a client sends: read within limits, and kept for a while under their content.

A link that names an upload shows the same again for as long as it is kept. What is kept is bounded;
the image that was asked for longest ago is forgotten first.
"""

import base64
import binascii
import hashlib
import re
from urllib.parse import unquote_to_bytes

from PIL import Image

from cir_jax.data import picture_files
from cir_jax.errors import UserError
from cir_jax.serving.kept import Kept
from cir_jax.serving.refusals import Refusal

HASH = re.compile("[0-9a-f]{64}")
_DATA = re.compile(r"data:(?P<kind>[\w.+-]+/[\w.+-]+)?(?P<more>(;[^,;]*)*),", re.ASCII)


class Uploads:
    """Keeps uploads; any thread may use it.

    Args:
      most: bytes of all that are kept.
    """

    def __init__(self, most: int):
        self._kept = Kept(most)

    def keep(self, content: bytes) -> str:
        """Keeps the content of an image file; the name under which it is found again."""
        name = hashlib.sha256(content).hexdigest()
        self._kept.put(name, content)
        return name

    def find(self, name: str) -> bytes:
        """The content that is kept under a name.

        Raises:
          Refusal: 404, there is none, or not any more.
        """
        content = self._kept.get(name)
        if content is None:
            raise Refusal(
                404,
                f"no upload {name[:80]!r} is kept (any more); send the image again",
                param="upload",
                code="no_such_upload",
            )
        return content


def content_of(url: str, most: int, param: str) -> bytes:
    """What a data URL holds. No other address is ever opened.

    Args:
      url: "data:image/png;base64,...".
      most: bytes that it may hold.
      param: the part of the request that it is.

    Raises:
      Refusal: it is another address, or not encoded as it says; 413 if it holds more.
    """
    found = _DATA.match(url)
    if found is None:
        shown = url[:60] + ("..." if len(url) > 60 else "")
        raise Refusal(
            400,
            f"{param} is {shown!r}; this server opens no address, so send the image itself, as "
            "data:image/png;base64,...",
            param=param,
            code="no_data_url",
        )
    payload = url[found.end() :]
    if len(payload) * 3 // 4 > most + 2:
        raise too_many_bytes(len(payload) * 3 // 4, most, param)
    try:
        if not found["more"].lower().endswith(";base64"):
            return unquote_to_bytes(payload)
        return base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refusal(
            400, f"{param} is no base64 ({error}); encode the bytes of the file", param=param
        ) from None


def opened(content: bytes, pixels: int, most: int, param: str) -> Image.Image:
    """The picture in the content of a file, decoded by the house's opener; of several the first.

    Args:
      content: of the file.
      pixels: most of the picture.
      most: bytes of the file.
      param: the part of the request that it is.

    Raises:
      Refusal: 413 if it is larger; 400 if it is no picture that can be opened.
    """
    if len(content) > most:
        raise too_many_bytes(len(content), most, param)
    try:
        return picture_files.decoded(
            picture_files.Content(content, "of the request"),
            picture_files.NATURAL_FORMATS,
            pixels=pixels,
        )
    except picture_files.TooLarge as error:
        raise Refusal(413, str(error), param=param, code="too_large") from None
    except UserError as error:
        raise Refusal(400, str(error), param=param, code="no_image") from None


def too_many_bytes(size: int, most: int, param: str) -> Refusal:
    """What to say of a file that is too large."""
    return Refusal(
        413,
        f"{param} has {size:,} bytes, over the limit of {most:,}; make it smaller",
        param=param,
        code="too_large",
    )
