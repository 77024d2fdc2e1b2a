# SPDX-License-Identifier: Apache-2.0
"""An index of drawn shapes whose model knows what it sees: "blue" makes a red circle a blue one."""

import math
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw

from cir_jax.retrieval.search import where as wheres
from cir_jax.retrieval.search.results import Answer, Hit
from tests.serving import made

COLOURS = {
    "red": "#d64541", "orange": "#f2994a", "green": "#3a9d5d", "blue": "#3b6fd4", "violet": "#8e5bc9",
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
    return np.array([word in words for word in WORDS], np.float32) / math.sqrt(len(GROUPS))


class Model(made.Model):
    """Rows are the words that describe a shape; an upload is seen as a large red star."""

    explains, embedding_dim, rows_per_image = True, len(WORDS), 1

    def encode_images(self, images, **_):
        return np.stack([_row(("star", "red", "large"))] * len(images))[:, None]

    def words(self, text):
        """What a text asks for: each word weighs more than what the picture is."""
        return 1.6 * sum((_row((w,)) for w in text.lower().split()), _row(()))


class Index(made.Index):
    """See the contract of an index; `fold` and `why` are those of the search."""

    def __init__(self, root, words=WORDS):
        root.mkdir(exist_ok=True)
        self.known = set(words)  # of the texts; a model that knows fewer finds other images
        things = list(product(SHAPES, COLOURS, SIZES))
        things += things[:COPIES]
        names = [f"{shape}s/{colour}-{size}.png" for shape, colour, size in things]
        names[-COPIES:] = [name.replace(".", "-copy.") for name in names[:COPIES]]
        names[7] = f"circles/{LONG}.png"
        titles = [f"{size} {colour} {shape}" for shape, colour, size in things]
        titles[0], titles[7], titles[9] = ARABIC, None, EVIL
        self.path, self.places = Path(root), [root / f"{n}.png" for n in range(len(things))]
        for n, (thing, place) in enumerate(zip(things, self.places, strict=True)):
            draw(*thing, shift=4 * (n >= len(things) - COPIES)).save(place)
        columns = list(zip(*things, strict=True))
        table = pa.table(
            {
                "title": titles,
                "shape": columns[0],
                "colour": columns[1],
                "price": [5.0 + n for n in range(len(things))],
                "sold": [n % 7 == 0 for n in range(len(things))],
            }
        )
        self.catalogue, self.model = made.Catalogue(names, table), Model()
        rows = np.stack([_row(thing) for thing in things])[:, None]
        self.store = made.Store(rows, self.catalogue.ids)
        self.generation = 1

    def newer(self):
        return False

    def answer(self, questions):
        return [self._answer(q) for q in questions]

    def _halves(self, question):
        """[N] of the picture and of the text; their sum is the composed score."""
        rows, ids = self.store._rows[:, 0], self.catalogue.ids
        known = [i for i in question.images if isinstance(i, int)]
        others = [i for i in question.images if not isinstance(i, int)]
        seen = [*rows[np.searchsorted(ids, known)], *self.model.encode_images(others or [0])[:, 0]]
        seen = seen if others else seen[:-1]
        image = np.mean(seen, axis=0) if seen else 0 * rows[0]
        heard = " ".join(w for w in question.text.lower().split() if w in self.known)
        text = self.model.words(heard)
        length = np.linalg.norm(image + text) or 1
        return rows @ image / length, rows @ text / length

    def _answer(self, q):
        ids, names = self.catalogue.ids, self.catalogue.names
        image, text = self._halves(q)
        weights = q.weights
        scores = weights.query * (image + text) + weights.image * image
        if q.avoid:
            scores = scores - weights.avoid * self.store._rows[:, 0] @ self.model.words(q.avoid)
        shown = np.ones(len(ids), bool)
        if q.where:
            shown = wheres.parse(q.where, self.catalogue.kinds).mask(self.catalogue.table)
        out = tuple(i for i in q.images if isinstance(i, int) and not q.keep_reference)
        shown &= ~np.isin(ids, out)
        if q.min_score is not None:
            shown &= scores >= q.min_score
        candidates = int(shown.sum())
        same = {}
        if q.fold:
            same = {
                n: n + len(ids) - COPIES for n in range(COPIES) if shown[n] and shown[n - COPIES]
            }
            shown[list(same.values())] = False
        order = [n for n in np.lexsort((ids, -scores)) if shown[n]]
        table = self.catalogue.fields.to_pylist()
        hits = tuple(
            Hit(
                int(ids[n]), names[n], float(scores[n]), q.offset + i + 1, table[n],
                (int(ids[same[n]]),) if n in same else (),
                {"image": float(image[n]), "text": float(text[n])} if q.why else None,
            )
            for i, n in enumerate(order[q.offset : q.offset + q.k])
        )  # fmt: skip
        more = len(order) > q.offset + q.k
        formula = f"score = {weights.query:g} * query"
        return Answer(hits, candidates, formula, more, out, {"encode": 0.001, "total": 0.002})
