# SPDX-License-Identifier: Apache-2.0
"""A model of a few products that counts what it opens, and folders of small pictures."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from cir_jax.data import tokens
from cir_jax.data.pixels import Preprocess
from cir_jax.retrieval import golden, identity, pictures
from cir_jax.retrieval.index.opened import Index
from cir_jax.retrieval.index.options import Options
from cir_jax.retrieval.index.update import update
from cir_jax.retrieval.retriever import Retriever
from cir_jax.runtime import mesh as meshes
from tests.evals.conftest import SIZE, Products, picture

PRODUCTS = {k: Products(k) for k in (1, 3)}  # long-lived: programs are compiled once for each
CONFIG = SimpleNamespace(
    model=SimpleNamespace(name="products", tower="tiny", dtype="float32"), data=SimpleNamespace()
)


class Model:
    """What an index asks of a model; `opened` counts the files that were decoded."""

    source = None
    image_size = SIZE

    def __init__(self, k=1, seed=0, query_seed=0, pad="none"):
        self.functions = PRODUCTS[k]
        self.index_params = self.functions.init(seed)
        self.query_params = {**self.index_params, "text": self.functions.init(query_seed)["text"]}
        self.functions.abstract = self.index_params
        self.functions.config = CONFIG.model
        self.preprocess = Preprocess(SIZE, pad)
        self.opened = Counter()

    def identity(self):
        return identity.of(
            CONFIG, self.functions, self.index_params, self.query_params, self.preprocess
        )

    def retriever(self, *, batch=8, threads=2, few=False):
        read = pictures.Reader(self.preprocess)

        def opening(item):
            if not isinstance(item, golden.Picture):
                self.opened[str(item)] += 1
            return read(item)

        mesh = meshes.make(8, 1, jax.devices()[:8])
        return Retriever(
            self.functions, self.index_params, self.query_params, tokens.load("clip"), opening,
            mesh, batch=batch, threads=threads, few=few,
        )  # fmt: skip


class Collection:
    """A folder of pictures and an index of it."""

    def __init__(self, root, count=20):
        self.photos, self.folder = root / "photos", root / "index"
        self.count = 0
        self.add(*(f"s{i % 3}/{i:02}.png" for i in range(count)))

    def add(self, *names):
        for name in names:
            picture(self.photos / name, self.count)
            self.count += 1

    def update(self, model=None, **options):
        asked = Options(**{"place": self.photos, "batch": 8, "threads": 2, **options})
        return update(self.folder, asked, model=model or Model())

    def open(self, **options):
        return Index(self.folder, **options)


def content(index):
    """All that two indexes of one folder have in common: the ids, and every bit of the rows."""
    lines = index.catalogue.lines.select(["id", "name", "content"]).to_pylist()
    return lines, index.rows(index.catalogue.ids).tobytes()


@pytest.fixture
def made():
    """The helpers of this file."""
    return SimpleNamespace(Model=Model, Collection=Collection, content=content, picture=picture)


@pytest.fixture
def photos(tmp_path):
    return Collection(tmp_path)


@pytest.fixture
def by_name():
    """Name of an image -> its rows."""

    def rows(index):
        found = index.rows(index.catalogue.ids)
        return dict(zip(index.catalogue.names.to_pylist(), found, strict=True))

    return rows


@pytest.fixture
def expected():
    """The rows of files as the contract gives them."""

    def rows(model, files):
        pixels = np.stack([Preprocess(SIZE, "none")(Path(file)) for file in files])
        return np.asarray(model.functions.target(model.index_params, pixels))

    return rows
