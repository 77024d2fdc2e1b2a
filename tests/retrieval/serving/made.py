# SPDX-License-Identifier: Apache-2.0
"""An index that is made of nothing in a moment, for tests of what stands before it."""

import hashlib
import json
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from cir_jax.errors import UserError
from cir_jax.retrieval.search import where as wheres
from cir_jax.retrieval.search.asking import FORMULA
from cir_jax.retrieval.search.results import Answer, Hit

D = 12
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220), "grey": (128,) * 3}


def folder(root, count=12):
    """A folder of `count` small pictures; their files."""
    found = []
    for number in range(count):
        name, colour = list(COLOURS.items())[number % len(COLOURS)]
        place = Path(root) / f"{name}-{number}.png"
        image = Image.new("RGB", (40 + number, 32), colour)
        image.putpixel((number, 3), (255, 255, 255))
        image.save(place)
        found.append(place)
    return found


def _unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


class Model:
    """Colours are images, and a word has a direction of its own."""

    name, tower, text_alone, explains = "made", "tiny", True, False
    embedding_dim, rows_per_image, image_size = D, 1, 32

    def encode_images(self, images, **_):
        return np.stack([self._row(image) for image in images])[:, None]

    def encode_queries(self, images=None, texts=None, **_):
        words = np.stack([self._words(text) for text in texts])
        if images is None:
            return _unit(words).astype(np.float32)
        return _unit(self.encode_images(images)[:, 0] + words).astype(np.float32)

    def count_tokens(self, texts):
        return [len(text.split()) + 2 for text in texts]

    def _row(self, image):
        image = image if isinstance(image, Image.Image) else Image.open(image)
        values = np.asarray(image.convert("RGB").resize((2, 2)), np.float32).reshape(-1)
        return _unit(values / 255 - 0.45).astype(np.float32)

    def _words(self, text):
        if len(text.split()) > 75:
            raise UserError(f"{len(text.split()) + 2} tokens, the limit is 77; shorten it")
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
        return np.random.default_rng(seed).normal(size=D).astype(np.float32)


class Catalogue:
    """See the contract of a catalogue."""

    def __init__(self, names, fields):
        self.ids = np.arange(3, 3 + len(names), dtype=np.int64)
        self.names, self.fields = names, fields
        self.table = fields.add_column(0, "name", pa.array(names))
        self.kinds = wheres.kinds(self.table.schema)

    def name(self, id):
        return self.names[self.position(id)]

    def position(self, id):
        found = int(np.searchsorted(self.ids, id))
        if found == len(self.ids) or self.ids[found] != id:
            raise UserError(f"there is no image {id}")
        return found

    def number_of(self, name):
        return int(self.ids[self.names.index(name)]) if name in self.names else None


class Store:
    def __init__(self, rows, ids):
        self._rows, self._ids = rows, ids

    def rows(self, ids):
        return self._rows[np.searchsorted(self._ids, ids)]


class Index:
    """Ranks by numpy."""

    def __init__(self, root, generation=1, count=12, delay=0.0):
        self.places = folder(root, count)
        names = [place.name for place in self.places]
        fields = pa.table(
            {
                "colour": [name.partition("-")[0] for name in names],
                "price": [10.0 * number for number in range(count)],
                "broken": [float("nan")] * count,
            }
        )
        self.path = Path(root)
        self.catalogue, self.model = Catalogue(names, fields), Model()
        self.generation, self.next = generation, None
        self.store = Store(self.model.encode_images(self.places), self.catalogue.ids)
        self.sizes, self.delay = [], threading.Event()
        self._seconds = delay

    def newer(self):
        return self.next is not None

    def path_of(self, id):
        return self.places[self.catalogue.position(id)]

    def answer(self, questions):
        self.sizes.append(len(questions))
        if self._seconds:
            self.delay.wait(self._seconds)
        return [self._answer(question) for question in questions]

    def _answer(self, q):
        rows, ids = self.store._rows[:, 0], self.catalogue.ids
        places = [self.path_of(i) if isinstance(i, int) else i for i in q.images]
        scores = np.zeros(len(ids))
        if q.text or not places:
            for query in self.model.encode_queries(places or None, [q.text] * max(len(places), 1)):
                scores += rows @ query
        else:
            for row in self.model.encode_images(places)[:, 0]:
                scores += rows @ row
        if q.avoid:
            scores -= q.weights.avoid * (rows @ self.model.encode_queries(None, [q.avoid])[0])
        shown = np.ones(len(ids), bool)
        if q.where:
            shown = wheres.parse(q.where, self.catalogue.kinds).mask(self.catalogue.table)
        out = tuple(i for i in q.images if isinstance(i, int) and not q.keep_reference)
        shown &= ~np.isin(ids, out)
        order = [n for n in np.lexsort((ids, -scores)) if shown[n]]
        if q.min_score is not None:
            order = [n for n in order if scores[n] >= q.min_score]
        page = order[q.offset : q.offset + q.k]
        table = self.catalogue.fields.to_pylist()
        hits = tuple(
            Hit(int(ids[n]), self.catalogue.names[n], float(scores[n]), q.offset + i + 1, table[n])
            for i, n in enumerate(page)
        )
        more = len(order) > q.offset + q.k
        return Answer(hits, len(order), FORMULA, more, out, {"encode": 0.001, "total": 0.002})


def query_file(root, queries):
    """Writes queries of a benchmark into an index folder."""
    lines = [json.dumps(query) for query in queries]
    (Path(root) / "queries.jsonl").write_text("\n".join(lines) + "\n")
