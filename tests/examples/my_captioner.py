# SPDX-License-Identifier: Apache-2.0
"""The caption of an image is its file name: "red_floral-dress_12.jpg" -> "red floral dress"."""

import re
from pathlib import PurePath

from cir_jax.generation.captioner import Reply


class Captioner:
    """Reads no prompt and no pixel."""

    prompted = False

    def __init__(self):
        self.identity = {"captioner": "my_captioner", "model": "file names"}  # noted with captions

    @classmethod
    def from_config(cls, section, seed, names):
        """Takes no setting; `section` is the section `caption` of the config."""
        return cls()

    def generate(self, requests):
        """One reply per request, at once: each is on disk before the next one is asked for."""
        for request in requests:
            words = re.findall("[a-z]+", PurePath(request.key).stem.lower())
            problem = "" if words else "no word in the file name"
            yield Reply(request.key, " ".join(words), problem, final=True)
