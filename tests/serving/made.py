# SPDX-License-Identifier: Apache-2.0
"""An index that is made of nothing in a moment, for tests of what stands before it."""

import hashlib
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import xxhash
from PIL import Image

from cir_jax.errors import UserError
from cir_jax.retrieval.search import where as wheres
from tests.retrieval.search.conftest import Store

D = 12
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220), "grey": (128,) * 3}


def folder(root, count=12):
    """A folder of `count` small pictures; their files."""
    found = []
    for number in range(count):
        name, colour = list(COLOURS.items())[number % len(COLOURS)]
        place = Path(root) / f"{name}-{number}.png"
        image = Image.new("RGB", (40 + number, 32), colour)
        image.paste((255, 255, 255), (0, 0, 2 + number, 16))  # no two are the same
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

    def retriever(self, *, few=False):
        """What a search asks of the retriever of a model."""
        return SimpleNamespace(
            functions=SimpleNamespace(
                text_alone=self.text_alone, sums=False, target_shape=(1, D),
                config=SimpleNamespace(name=self.name),
            ),
            tokenizer=SimpleNamespace(
                context=77,
                cuts=False,
                lengths=self.count_tokens,
            ),
            on_long="error",
            encode_gallery=self.encode_images,
            encode_queries=self.encode_queries,
        )  # fmt: skip

    def _row(self, image):
        image = getattr(image, "image", image)  # of a picture that is no file
        image = image if isinstance(image, Image.Image) else Image.open(image)
        values = np.asarray(image.convert("RGB").resize((2, 2)), np.float32).reshape(-1)
        return _unit(values / 255 - 0.45).astype(np.float32)

    def _words(self, text):
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
        return np.random.default_rng(seed).normal(size=D).astype(np.float32)


class Catalogue:
    """See the contract of a catalogue."""

    def __init__(self, places, fields):
        self.ids = np.arange(3, 3 + len(places), dtype=np.int64)
        self.names = [place.name for place in places]
        self._contents = [xxhash.xxh3_128_digest(place.read_bytes()) for place in places]
        self.table = fields.add_column(0, "name", pa.array(self.names))
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

    def contents(self, ids):
        return [self._contents[self.position(id)] for id in ids]

    def with_content(self, content):
        return [i for i, c in zip(self.ids.tolist(), self._contents, strict=True) if c == content]


class Slow(Store):
    """Ranks as it should, after a while."""

    seconds = 0.0

    def top(self, queries, k, exact=True):
        time.sleep(self.seconds)
        return super().top(queries, k, exact)


class Index:
    """`count` pictures of four colours; their ids start at 3."""

    def __init__(self, root, generation=1, count=12, seconds=0.0):
        self.places, self.folder, self.root = folder(root, count), Path(root), Path(root)
        fields = pa.table(
            {
                "colour": [place.name.partition("-")[0] for place in self.places],
                "price": [10.0 * number for number in range(count)],
                "broken": pa.array([None] * count, pa.float64()),
            }
        )
        self.catalogue, self.model = Catalogue(self.places, fields), Model()
        self.generation, self.next, self.queries = generation, None, []
        rows = self.model.encode_images(self.places)
        self.store = Slow(self.catalogue.ids, rows, self.catalogue.table)
        self.store.seconds = seconds

    def newer(self):
        return self.next

    def path_of(self, id):
        return str(self.places[self.catalogue.position(id)])
