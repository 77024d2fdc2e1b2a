# SPDX-License-Identifier: Apache-2.0
"""A model of a few products instead of a real one, and tiny data sets on disk."""

import json
from collections import Counter
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from cir_jax.data import tokens
from cir_jax.data.pixels import Preprocess
from cir_jax.retrieval.retriever import Retriever
from cir_jax.runtime import mesh as meshes
from cir_jax.towers.layers import unit

SIZE = 8


class Products:
    """The contract with linear maps: target [B, K, 6], reference [B, 2, 5], compose [B, 6]."""

    def __init__(self, k=1, per_triplet=False, cut_padding=True):
        self.per_triplet = per_triplet
        self.module = SimpleNamespace(REFERENCE_ROWS="per_triplet" if per_triplet else "per_image")
        self.inputs = SimpleNamespace(cut_padding=cut_padding)
        self.reference_shape, self.target_shape = (2, 5), (k, 6)
        self.index_paths = ["start", "visual", *(["text"] if per_triplet else [])]
        self.traced = Counter()  # "compose 16": traced once with texts of 16 tokens
        self.factors = ()

    def input_keys(self, side):
        return {}

    def init(self, seed):
        rng = np.random.default_rng(seed)
        draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
        return {
            "visual": draw(SIZE * SIZE * 3, self.target_shape[0] * 6),
            "start": draw(SIZE * SIZE * 3, 10),
            "text": draw(49408, 6),
            "mix": draw(10, 6),
        }

    def target(self, params, pixels):
        rows = _flat(pixels) @ params["visual"]
        return unit(rows.reshape(-1, *self.target_shape))

    def reference(self, params, pixels, text):
        rows = _flat(pixels) @ params["start"]
        if self.per_triplet:
            rows = rows + _words(params, text).sum(axis=1, keepdims=True)
        return rows.reshape(-1, *self.reference_shape)

    def compose(self, params, reference, text, key=None):
        self.traced[f"compose {text.shape[1]}"] += 1
        return unit(reference.reshape(-1, 10) @ params["mix"] + _words(params, text))


def _flat(pixels):
    return pixels.reshape(pixels.shape[0], -1).astype(jnp.float32) / 255 - 0.5


def _words(params, text):
    """Sum over the tokens that are no padding, so that padding does not matter."""
    return jnp.sum(params["text"][text] * (text != 0)[..., None], axis=1) * 0.1


class Opened:
    """Preprocessing that counts how often each file was opened."""

    def __init__(self):
        self.counts = Counter()
        self._preprocess = Preprocess(SIZE, "none")

    def __call__(self, path):
        self.counts[str(path)] += 1
        return self._preprocess(path)


def retriever(functions, index=None, query=None, devices=8, **options):
    index = functions.init(0) if index is None else index
    options = {"batch": 8, "threads": 2, **options}
    mesh = meshes.make(devices, 1, jax.devices()[:devices])
    query = index if query is None else query
    return Retriever(functions, index, query, tokens.load("clip"), Opened(), mesh, **options)


def picture(path, number):
    """A small image that differs from every other number's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(number).integers(0, 256, (12, 10, 3), np.uint8)
    Image.fromarray(noise).save(path)


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.fixture
def tiny():
    """The helpers of this file."""
    return SimpleNamespace(
        Products=Products, retriever=retriever, picture=picture, write_json=write_json, SIZE=SIZE
    )


@pytest.fixture
def fashion(tmp_path):
    """FashionIQ layout: two categories, 14 and 12 images in the galleries, 6 queries each."""
    for shift, category in enumerate(("dress", "shirt")):
        names = [f"{category}{i}" for i in range(14 - 2 * shift)]
        for i, name in enumerate(names):
            picture(tmp_path / "images" / f"{name}.png", 100 * shift + i)
        write_json(tmp_path / "image_splits" / f"split.{category}.val.json", names)
        records = [
            {"candidate": names[i], "target": names[i + 3], "captions": [f"is {i}.", "more red"]}
            for i in range(6)
        ]
        write_json(tmp_path / "captions" / f"cap.{category}.val.json", records)
    return tmp_path


@pytest.fixture
def cirr_root(tmp_path):
    """CIRR layout: val and test1, 60 images each, 9 queries, subsets of six."""
    for split, folder in (("val", "dev"), ("test1", "test1")):
        names = [f"{folder}-{i}" for i in range(60)]
        for i, name in enumerate(names):
            picture(tmp_path / folder / f"{name}.png", i)
        paths = {name: f"./{folder}/{name}.png" for name in names}
        write_json(tmp_path / "cirr" / "image_splits" / f"split.rc2.{split}.json", paths)
        records = []
        for i in range(9):
            record = {
                "pairid": 40 + i,
                "reference": names[i],
                "target_hard": names[i + 20],
                "caption": f"with {i} dogs",
                "img_set": {"members": [names[j] for j in (i, i + 20, 30, 31, 32, 33)]},
            }
            if split == "test1":
                del record["target_hard"]
            records.append(record)
        write_json(tmp_path / "cirr" / "captions" / f"cap.rc2.{split}.json", records)
    return tmp_path
