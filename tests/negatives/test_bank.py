# SPDX-License-Identifier: Apache-2.0
"""The bank: every image is encoded once, rows are the model's, and only its maker may use it."""

from collections import Counter
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cir_jax.data import pipeline, tokens
from cir_jax.data.pixels import Preprocess
from cir_jax.errors import UserError
from cir_jax.models import contract
from cir_jax.negatives import bank as banks
from cir_jax.positives.triplets import Triplet, TripletSet
from cir_jax.runtime import mesh as meshes
from tests import runs
from tests.negatives.problems import devices

NAMES = tuple("abcdefg")
MODELS = ("cross_attention", "sprc_shaped")


class Counting:
    """A preprocessing that counts how often it opened a file."""

    def __init__(self, size):
        self._preprocess = Preprocess(size)
        self.opened = Counter()

    def __call__(self, path):
        self.opened[path] += 1
        return self._preprocess(path)

    def fingerprint(self):
        return self._preprocess.fingerprint()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Seven images in nine triplets, so most are used several times; ten texts."""
    root = tmp_path_factory.mktemp("images")
    for i, name in enumerate(NAMES):
        runs.write_image(root / f"{name}.png", (40 * i, 200 - 20 * i, 128), i)
    pairs = ["ab", "bc", "cd", "de", "ef", "fg", "ga", "ab", "ca"]
    triplets = tuple(
        Triplet(a, b, (f"is {i}",) if i else ("is zero", "not nil"), f"is {i}", "set", str(i))
        for i, (a, b) in enumerate(pairs)
    )
    paths = {n: str(root / f"{n}.png") for n in NAMES}
    return pipeline.prepare([TripletSet("set", triplets, paths)], tokens.load("clip"))


def model(name):
    """(functions, parameters) of a stand-in model."""
    functions = contract.build(runs.tiny("unused", "unused", model=name).model)
    return functions, functions.init(0)


def built(name, data, mesh):
    functions, params = model(name)
    preprocess = Counting(functions.image_size)
    rows = banks.build(functions, params, data, preprocess, mesh, batch=3, threads=2)
    return functions, params, preprocess, rows


@pytest.mark.parametrize("name", MODELS)
def test_every_image_is_encoded_once(name, data):
    functions, params, preprocess, rows = built(name, data, devices(2))
    texts_of = Counter(data.reference_id[data.triplet_of_text()].tolist())
    # References that depend on the text need their image once more per text; targets never.
    extra = texts_of if functions.per_triplet else Counter()
    want = {path: 1 + extra[row] for row, path in enumerate(data.images.paths)}
    assert preprocess.opened == want

    pixels = np.stack([preprocess(path) for path in data.images.paths])
    np.testing.assert_allclose(rows["targets"], functions.target(params, pixels), atol=1e-5)
    text = data.tokens.rows(slice(None), int(data.tokens.lengths.max()))
    image = np.arange(7)
    if functions.per_triplet:
        image = data.reference_id[data.triplet_of_text()]
    reference = functions.reference(params, pixels[image], text[: len(image)])
    assert rows["references"].shape[0] == (10 if functions.per_triplet else 7)
    np.testing.assert_allclose(rows["references"], reference, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (8, 1), (2, 4)])
def test_rows_are_sharded_and_filled_up(shape):
    rng = np.random.default_rng(0)
    rows = {"targets": rng.random((7, 2, 4), np.float32), "references": rng.random((10, 1, 3))}
    mesh = devices(*shape)
    bank = banks.place(rows, mesh, "bfloat16")
    assert bank.rows == 7
    assert len(bank.targets) % mesh.size == 0 and len(bank.references) % mesh.size == 0
    assert bank.targets.dtype == jnp.bfloat16 and bank.references.dtype == jnp.float32
    np.testing.assert_allclose(bank.targets[:7].astype(jnp.float32), rows["targets"], atol=4e-3)
    np.testing.assert_array_equal(bank.references[:10], rows["references"].astype(np.float32))
    assert not bank.targets[7:].any()
    assert bank.targets.sharding.is_equivalent_to(meshes.row_sharding(mesh), 3)
    assert jax.jit(lambda b: b.targets.sum() * b.rows)(bank) > 0  # a pytree, `rows` static


def test_unknown_dtype():
    with pytest.raises(UserError, match=r"bank_dtype='float16' is unknown; use float32 or bfloat"):
        banks.place({"targets": np.zeros((1, 1, 1))}, devices(1), "float16")


def test_saved_bank_comes_back(data, tmp_path):
    functions, params, preprocess, rows = built("cross_attention", data, devices(1))
    made_of = banks.fingerprint(functions, params, data, preprocess)
    assert banks.load(tmp_path / "bank", made_of) is None
    banks.save(tmp_path / "bank", rows, made_of)
    again = banks.load(tmp_path / "bank", made_of)
    for name in rows:
        np.testing.assert_array_equal(rows[name], again[name])


@pytest.mark.parametrize("name", MODELS)
def test_fingerprint_is_that_of_what_was_read(name, data):
    functions, params = model(name)
    preprocess = Preprocess(functions.image_size)

    def of(params, data=data, preprocess=preprocess):
        return banks.fingerprint(functions, params, data, preprocess)

    want = of(params)
    mesh = devices(2, 4)
    assert of(jax.device_put(params, meshes.replicated(mesh))) == want
    words = jax.device_put(params["words"], jax.NamedSharding(mesh, jax.P("model", None)))
    assert of(params | {"words": words}) == want

    def differ(other):
        return [part for part in want if want[part] != other[part]]

    def shifted(path):
        return of(params | {path: params[path] + 1e-3})

    assert differ(shifted("patches/kernel")) == ["parameters"]
    assert differ(shifted("head/kernel")) == ["parameters"]
    if functions.per_triplet:
        # Query parameters that the index reads: the released code keeps a frozen copy of them.
        assert differ(shifted("former/kernel")) == ["parameters"]
        assert differ(shifted("words")) == ["parameters"]
        shorter = replace(data, tokens=replace(data.tokens, flat=data.tokens.flat[::-1].copy()))
        assert differ(of(params, data=shorter)) == ["texts"]
    else:
        assert differ(shifted("mix/kernel")) == differ(shifted("logit_scale")) == []
    assert differ(of(params, preprocess=Preprocess(32))) == ["preprocessing"]
    other = replace(data, images=type(data.images)(NAMES[::-1], NAMES, dict(data.images.row_of)))
    assert differ(of(params, data=other)) == ["images"]


def test_another_makers_bank_is_refused(tmp_path):
    rows = {"targets": np.zeros((2, 1, 3)), "references": np.zeros((2, 1, 3))}
    banks.save(tmp_path, rows, {"parameters": "aaa", "images": "bbb", "preprocessing": "size=16"})
    now = {"parameters": "aaa", "images": "ccc", "preprocessing": "size=32"}
    message = (
        r"was made of other images, preprocessing \(images: bbb there, ccc now; preprocessing: "
        r"size=16 there, size=32 now\); delete it, or set loss.bank_path to another folder"
    )
    with pytest.raises(UserError, match=message):
        banks.load(tmp_path, now)


@pytest.mark.parametrize("damage", ["bank.json", "targets.npy", "references.npy"])
def test_damaged_bank_is_named(damage, tmp_path):
    rows = {"targets": np.zeros((2, 1, 3)), "references": np.zeros((2, 1, 3))}
    banks.save(tmp_path, rows, {"parameters": "aaa"})
    (tmp_path / damage).write_bytes((tmp_path / damage).read_bytes()[:9])
    with pytest.raises(UserError, match=r"is damaged \(.*\); delete it"):
        banks.load(tmp_path, {"parameters": "aaa"})


def test_interrupted_write_is_no_bank(tmp_path):
    rows = {"targets": np.zeros((2, 1, 3)), "references": np.zeros((2, 1, 3))}
    banks.save(tmp_path, rows, {"parameters": "aaa"})
    with pytest.raises(AttributeError):
        banks.save(tmp_path, rows | {"references": _Unwritable()}, {"parameters": "bbb"})
    assert banks.load(tmp_path, {"parameters": "aaa"}) is None


class _Unwritable:
    def __array__(self, *args, **kwargs):
        raise AttributeError("the disk is full")
