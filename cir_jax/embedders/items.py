# SPDX-License-Identifier: Apache-2.0
"""What an embedder is asked for a vector of: an image, a text, or an image with a text."""

from dataclasses import dataclass, field
from typing import Literal

import xxhash

Kind = Literal["image", "text", "both"]


@dataclass(frozen=True)
class Item:
    """One vector that is wanted, as it is sent.

    Attributes:
      image: the bytes of an image file; b"" for none.
      form: of the image: "PNG", "JPEG" or "WEBP"; "" for none.
      text: with whatever a prompt puts around it; "" for none.
      system: what a chat model is told beside; "" for nothing.
      kind: what it is of. An image alone may have a text too: that of its prompt.
      name: of the image or text, for messages.
    """

    image: bytes = field(repr=False)
    form: str
    text: str
    system: str
    kind: Kind
    name: str = field(compare=False)

    def key(self) -> bytes:
        """16 bytes that tell its content from any other, whatever it is called."""
        digest = xxhash.xxh3_128()
        for part in (self.image, self.text.encode(errors="surrogatepass"), self.system.encode()):
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
        return digest.digest()
