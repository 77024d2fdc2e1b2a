# SPDX-License-Identifier: Apache-2.0
"""An index of drawn shapes whose model knows what it sees: "blue" makes a red circle a blue one."""

import math
from itertools import product

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw

from tests.retrieval.search.conftest import Store
from tests.serving import made

COLOURS = {
    "red": "#d64541", "orange": "#f2994a", "green": "#3a9d5d", "blue": "#3b6fd4",
    "violet": "#8e5bc9",
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "star", "ring")
SIZES = ("small", "large")
GROUPS = (SHAPES, tuple(COLOURS), SIZES)
WORDS = [word for group in GROUPS for word in group]
LONG = "a-very-long-name-without-a-single-space-that-goes-on-and-on-" + "x" * 60
EVIL = '<b onmouseover=alert(1)>large</b> "blue" \' ring'
ARABIC = "دائرة حمراء صغيرة"
COPIES = 3  # pictures of which there is a second one, nearly the same


def _corners(shape, middle, radius):
    """The outline of a shape of straight lines."""
    count, turn = {"triangle": (3, -0.5), "square": (4, -0.25), "star": (10, -0.5)}[shape]
    for n in range(count):
        far = radius * (0.42 if shape == "star" and n % 2 else 1)
        angle = math.pi * (turn + 2 * n / count)
        yield middle[0] + far * math.cos(angle), middle[1] + far * math.sin(angle)


def draw(shape, colour, size, shift=0):
    """A shape on paper, 192 x 192."""
    image = Image.new("RGB", (384, 384), "#fbfaf7")
    pen, radius = ImageDraw.Draw(image), 150 if size == "large" else 80
    middle = (192 + shift, 192 + shift + (radius // 5 if shape == "triangle" else 0))
    if shape in ("circle", "ring"):
        pen.circle(middle, radius * 0.9, fill=COLOURS[colour])
        if shape == "ring":
            pen.circle(middle, radius * 0.5, fill="#fbfaf7")
    else:
        pen.polygon(list(_corners(shape, middle, radius)), fill=COLOURS[colour])
    return image.resize((192, 192), Image.Resampling.LANCZOS)


def _row(words):
    """[D] of length 1: the words that say what a picture shows."""
    return np.array([word in words for word in WORDS], np.float32) / math.sqrt(len(GROUPS))


class Model(made.Model):
    """Knows a picture by the name of its file; any other is a large red star.

    A query is the sum of what the picture is and of what the text says, if it knows the words.
    """

    explains, embedding_dim, rows_per_image = True, len(WORDS), 1

    def __init__(self, words):
        self.words = set(words)

    def encode_images(self, images, **_):
        return np.stack([self._row(image) for image in images])[:, None]

    def encode_halves(self, images, texts, **_):
        """[Q, 2, D]."""
        own = self.encode_images(images)[:, 0] if images else np.zeros((len(texts), len(WORDS)))
        heard = np.stack([self._words(text) for text in texts])
        length = np.linalg.norm(own + heard, axis=1, keepdims=True)
        both = np.stack([own, heard], axis=1) / np.maximum(length, 1e-6)[:, None]
        return both.astype(np.float32)

    def encode_queries(self, images=None, texts=None, **_):
        return self.encode_halves(images, texts).sum(axis=1)

    def retriever(self, *, few=False):
        found = super().retriever(few=few)
        found.functions.sums, found.encode_halves = True, self.encode_halves
        found.tokenizer.context = 2_000
        return found

    def _row(self, image):
        place = str(image) if not hasattr(image, "image") else "star-red-large"
        return _row(place.rpartition("/")[2].removesuffix(".png").split("-"))

    def _words(self, text):
        heard = [word for word in text.lower().split() if word in self.words]
        return 1.6 * sum((_row((word,)) for word in heard), _row(()))


class Catalogue(made.Catalogue):
    """Names as of a folder with folders in it."""

    def __init__(self, places, names, fields):
        super().__init__(places, fields)
        self.names = names
        self.table = fields.add_column(0, "name", pa.array(names))


class Index(made.Index):
    """Each shape in each colour and size, and three of them once more; their ids start at 3.

    Args:
      root: folder for the pictures.
      words: the words that its model knows in a text.
      queries: of a benchmark.
    """

    def __init__(self, root, words=WORDS, queries=()):
        things = list(product(SHAPES, COLOURS, SIZES))
        things += things[:COPIES]
        self.folder = root
        self.places = [root / f"{n}-{'-'.join(thing)}.png" for n, thing in enumerate(things)]
        root.mkdir(exist_ok=True)
        for n, (thing, place) in enumerate(zip(things, self.places, strict=True)):
            draw(*thing, shift=4 * (n >= len(things) - COPIES)).save(place)
        names = [f"{shape}s/{colour}-{size}.png" for shape, colour, size in things]
        names[-COPIES:] = [name.replace(".", "-copy.") for name in names[:COPIES]]
        titles = [f"{size} {colour} {shape}" for shape, colour, size in things]
        names[7] = f"circles/{LONG}.png"
        titles[0], titles[7], titles[9] = ARABIC, None, EVIL
        shapes, colours, _ = zip(*things, strict=True)
        columns = {"title": titles, "shape": shapes, "colour": colours}
        columns["price"] = [5.0 + n for n in range(len(things))]
        columns["sold"] = [n % 7 == 0 for n in range(len(things))]
        self.catalogue = Catalogue(self.places, names, pa.table(columns))
        self.model, self.queries = Model(words), list(queries)
        self.generation, self.next = 1, None
        rows = self.model.encode_images(self.places)
        self.store = Store(self.catalogue.ids, rows, self.catalogue.table)
