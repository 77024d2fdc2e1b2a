# SPDX-License-Identifier: Apache-2.0
"""A server whose vectors can be computed by hand: colours of images, and words of colours."""

import base64
import io

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from cir_jax.models import served
from tests.generation.scripted import Scripted

WIDTH = 5  # red, green, blue, one, and how long the text is
WORDS = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1)}


def vector(content, text):
    """float32 [5] of the bytes of an image, or None, and a text."""
    found = np.zeros(WIDTH, np.float32)
    if content is not None:
        pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), np.float64)
        found[:3] = pixels.mean((0, 1)) / 255
    for word in text.split():
        found[:3] += np.asarray(WORDS.get(word, (0, 0, 0)), np.float32)
    found[3:] = 0.1, len(text) / 1000
    return found


def inputs(body):
    """(bytes of the image or None, text, words of the system) of each input of a request."""
    if "messages" in body:
        return [_parts(body["messages"])]
    given = body["input"]
    if "modality" in body:
        image = body["modality"] == "image"
        return [(_bytes(x), "", "") if image else (None, x, "") for x in given]
    return [
        _parts([{"role": "user", **x}]) if "content" in x
        else (_bytes(x["image"]) if "image" in x else None, x.get("text", ""), "")
        for x in given
    ]  # fmt: skip


def _parts(messages):
    image, text, system = None, "", ""
    for message in messages:
        for part in message["content"]:
            if part["type"] == "image_url":
                image = _bytes(part["image_url"]["url"])
            elif message["role"] == "system":
                system += part["text"]
            else:
                text += part["text"]
    return image, text, system


def _bytes(url):
    return base64.b64decode(url.partition(",")[2] if url.startswith("data:") else url)


def reply(body, coded=False):
    """A good answer to a request, its vectors in the opposite order."""
    rows = [vector(image, text) for image, text, _ in inputs(body)]
    written = [
        base64.b64encode(row.astype("<f4").tobytes()).decode() if coded else row.tolist()
        for row in rows
    ]
    data = [{"index": i, "embedding": one} for i, one in enumerate(written)]
    return {"data": data[::-1], "usage": {"total_tokens": 7 * len(rows)}}


class Colours(Scripted):
    """The server; `change(number, body, reply)` may spoil a reply."""

    def __init__(self, change=None, **options):
        change = change or (lambda number, body, answer: answer)
        super().__init__(lambda n, body: (200, change(n, body, reply(body)), {}), **options)

    def count(self):
        """Inputs that were asked for, but for probes."""
        return sum(
            (image is not None) or "chair" not in text
            for body in self.bodies
            for image, text, _ in inputs(body)
        )


def section(url="", **changes):
    """The section `model` of a config of a served model."""
    defaults = {key: row[0] for key, row in served.KEYS.items()}
    plain = {"name": "served", "tower": "tiny", "dtype": "float32", "attention": "auto"}
    plain |= {"key_variable": "", "wait": 1.0, "timeout": 20.0, "concurrency": 4, "url": url}
    return ConfigDict(defaults | plain | changes)
