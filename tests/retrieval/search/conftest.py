# SPDX-License-Identifier: Apache-2.0
"""An index in memory over a model of a few products: everything that a search asks of an index."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pytest
import xxhash

from cir_jax.data import tokens
from cir_jax.data.pixels import Preprocess
from cir_jax.retrieval import pictures
from cir_jax.retrieval.retriever import Retriever
from cir_jax.retrieval.search import where
from cir_jax.runtime import mesh as meshes
from cir_jax.towers.layers import unit
from tests.evals.conftest import SIZE, Products, _words, picture

IMAGES = 24


class Summed(Products):
    """A query that is the sum of an image half and a text half."""

    text_alone = sums = True
    config = SimpleNamespace(name="summed", dtype="float32")
    fsdp = None

    def compose(self, params, reference, text, key=None):
        return sum(self.halves(params, reference, text))

    def halves(self, params, reference, text):
        image, words = reference.reshape(-1, 10) @ params["mix"], 5 * _words(params, text)
        norm = jnp.linalg.norm(image + words, axis=-1, keepdims=True)
        return image / norm, words / norm


class Model:
    def __init__(self, functions, on_long="error"):
        self.functions, self.params = functions, functions.init(0)
        self.on_long, self.calls = on_long, []
        self.mesh = meshes.make(1, 1, jax.devices()[:1])

    def retriever(self, *, few=False):
        found = Retriever(
            self.functions, self.params, self.params, tokens.load("clip"),
            pictures.Reader(Preprocess(SIZE, "none")), self.mesh, batch=8, threads=2, few=few,
            on_long=self.on_long,
        )  # fmt: skip
        for name in ("encode_queries", "encode_gallery", "encode_halves"):
            setattr(found, name, self._counted(name, getattr(found, name)))
        return found

    def _counted(self, name, function):
        def call(*args, **kwargs):
            self.calls.append(name)
            return function(*args, **kwargs)

        return call


class Store:
    """Scores everything in float64, by the definition; it is the oracle of what is folded too."""

    def __init__(self, ids, rows, table):
        self.ids, self.all, self.table = ids, rows, table
        self.asked = []

    def __len__(self):
        return len(self.ids)

    def scores(self, terms):
        products = np.einsum("pd,nkd->npk", terms.vectors.astype(np.float64), self.all).max(axis=-1)
        total = np.zeros(len(self.ids))
        for group, weight in enumerate(terms.weights):
            total += weight * products[:, terms.groups == group].max(axis=1)
        return total.astype(np.float32)

    def top(self, queries, k, exact=True):
        self.asked.append((len(queries), k, exact))
        ids, scores = np.full((len(queries), k), -1), np.full((len(queries), k), -np.inf)
        for q, terms in enumerate(queries):
            found = self.scores(terms)
            keep = ~np.isin(self.ids, list(terms.leave_out))
            if terms.where is not None:
                keep &= terms.where.mask(self.table)
            order = [i for i in np.lexsort((self.ids, -found)) if keep[i]][:k]
            ids[q, : len(order)], scores[q, : len(order)] = self.ids[order], found[order]
        return ids.astype(np.int64), scores.astype(np.float32)

    def rows(self, ids):
        return self.all[np.searchsorted(self.ids, ids)]

    def count(self, clause):
        return len(self) if clause is None else int(clause.mask(self.table).sum())


class Index:
    """`files` in order; ids start at 5 and leave gaps."""

    def __init__(self, files, functions, **model):
        self.files = files
        self.model = Model(functions, **model)
        ids = 5 + 2 * np.arange(len(files), dtype=np.int64)
        hashes = [xxhash.xxh3_128_digest(file.read_bytes()) for file in files]
        table = pa.table(
            {
                "name": [file.name for file in files],
                "colour": [["red", "green", None][i % 3] for i in range(len(files))],
                "price": [None if i % 5 == 4 else 1.5 * i for i in range(len(files))],
                "count": pa.array([i % 4 for i in range(len(files))], pa.int64()),
                "sale": [i % 2 == 0 for i in range(len(files))],
            }
        )
        self.catalogue = SimpleNamespace(
            ids=ids,
            table=table,
            kinds=where.kinds(table.schema),
            contents=lambda some: [hashes[(i - 5) // 2] for i in some],
            with_content=lambda one: [int(i) for i, h in zip(ids, hashes, strict=True) if h == one],
        )
        retriever = self.model.retriever()
        rows = retriever.encode_gallery([str(file) for file in files])
        self.store = Store(ids, rows, table)
        self.model.calls.clear()

    def path_of(self, id):
        return str(self.files[(id - 5) // 2])

    def ids(self, *numbers):
        return [int(self.catalogue.ids[n]) for n in numbers]


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    found = [root / f"{i}.png" for i in range(IMAGES)]
    for i, file in enumerate(found):
        picture(file, i)
    return found


@pytest.fixture(scope="session")
def summed():
    return Summed()


@pytest.fixture(scope="session")
def several():
    """Four rows an image."""
    return Summed(k=4)


@pytest.fixture
def index(files, summed):
    return Index(files, summed)


@pytest.fixture
def rows4(files, several):
    return Index(files, several)


@pytest.fixture
def make():
    """The class of these indexes, for other files or models."""
    return SimpleNamespace(Index=Index, Summed=Summed, Products=Products, unit=unit)
