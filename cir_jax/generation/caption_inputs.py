# SPDX-License-Identifier: Apache-2.0
"""What the local model and the server have in common: length of a reply, image, refused requests.

Both must show a model the same pixels and stop it at the same length, or a run that moves from one
to the other would change its captions for no visible reason.
"""

import base64
import io
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from PIL import ExifTags, Image, ImageOps

from cir_jax.data import natural, picture_files
from cir_jax.data.pixels import RELEASED, Loading, open_image
from cir_jax.errors import UserError
from cir_jax.generation.captioner import Reply

TOKENS_PER_WORD = 4  # generous: a byte-level BPE writes rare words in more, common ones in 1 or 2
SPARE_TOKENS = 16  # "Sure, here is a caption:" must not cut the caption off
JPEG_QUALITY = 95
FIRST = 3  # requests refused before the first success mean that none will succeed


def token_limit(section: ConfigDict) -> int:
    """Tokens a reply may have: `max_tokens`, or derived from the words asked for.

    Four times the longest text that is accepted: a reply that runs into this limit is over-long
    anyway, and is listed as cut instead of being stored without its end.
    """
    return section.max_tokens or (
        TOKENS_PER_WORD * (section.max_words or 4 * section.words) + SPARE_TOKENS
    )


def check_section(section: ConfigDict) -> None:
    """The keys that every captioner with a model has.

    Raises:
      UserError: one of them is out of its range; it is named.
    """
    if not section.model:
        raise UserError("model is empty; name the model that shall write, or its folder")
    for key in ("temperature", "max_tokens", "max_side"):
        at_least(section, key, 0)
    if not 0 < section.top_p <= 1:
        raise UserError(f"top_p={section.top_p} is outside (0, 1]; 1 samples from all tokens")
    if token_limit(section) < 1:
        raise UserError(f"words={section.words} leaves no token to write; ask for 1 or more")


def at_least(section: ConfigDict, key: str, low: float) -> Any:
    """`section[key]`.

    Raises:
      UserError: it is below `low`.
    """
    if section[key] < low:
        raise UserError(f"{key}={section[key]} is below {low}; give {low} or more")
    return section[key]


def small_image(source: Any, max_side: int, loading: Loading = RELEASED) -> Image.Image:
    """The image in RGB, upright, its long side at most `max_side` pixels (0: as it is).

    Of "natural" loading it is what the encoder sees; of "released" the encoder's orientation and
    transparency are those of the published runs, and the captioner's are these.

    Raises:
      UserError: it cannot be read; the file is named.
    """
    image = open_image(source, loading)
    if loading.name == "released":
        image = ImageOps.exif_transpose(image).convert("RGB")
    if max_side:
        image.thumbnail((max_side, max_side), Image.Resampling.BICUBIC)
    return image


def unreadable(key: str, error: UserError) -> Reply:
    """The reply to a request whose image cannot be read."""
    return Reply(key, "", f"unreadable: {error}", final=True)


def data_url(source: Any, max_side: int, loading: Loading = RELEASED) -> str:
    """A base64 data URL of the image: its own bytes where any server reads them, or encoded anew.

    Raises:
      UserError: it cannot be read; the file is named.
    """
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
        content = Path(source).read_bytes() if isinstance(source, str) else source.read_bytes()
    else:
        form = "PNG" if form in ("PNG", "GIF", "BMP") else "JPEG"
        content = _encoded(small_image(source, max_side, loading), form)
    return f"data:image/{form.lower()};base64,{base64.b64encode(content).decode()}"


def _encoded(image: Image.Image, form: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, quality=JPEG_QUALITY)
    return buffer.getvalue()


class GreyImage:
    """A plain grey picture, which every server can read."""

    def read_bytes(self) -> bytes:
        """PNG, 224 pixels wide and high."""
        return _encoded(Image.new("RGB", (224, 224), (128, 128, 128)), "PNG")


class Refusals:
    """Counts refused requests, to tell one that cannot be served from a set-up that serves none.

    Args:
      who: what refuses, e.g. "server http://host:8000/v1".
      remedy: ends the message, what to do when all are refused.
    """

    def __init__(self, who: str, remedy: str):
        self._who, self._remedy = who, remedy
        self._refused, self._succeeded = 0, False

    def success(self) -> None:
        """A request was served: from now on a refusal is the request's own fault."""
        self._succeeded = True

    def refused(self, why: str) -> str:
        """`why`, to be the problem of one reply.

        Raises:
          UserError: nothing was ever served, and this is the third refusal.
        """
        self._refused += 1
        if self._refused >= FIRST and not self._succeeded:
            raise UserError(
                f"{self._who} served none of the first {FIRST} requests, the last: {why}; "
                f"{self._remedy}"
            )
        return why
