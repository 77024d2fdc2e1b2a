# SPDX-License-Identifier: Apache-2.0
"""The bank: every image is encoded once, rows are the model's, and only its maker may use it."""

from collections import Counter
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cir_jax import contract
from cir_jax.bank import bank as banks
from cir_jax.bank import build, files, folders, references
from cir_jax.data import pipeline, tokens
from cir_jax.data.pixels import Preprocess
from cir_jax.data.triplets import Triplet, TripletSet
from cir_jax.errors import UserError
from cir_jax.runtime import mesh as meshes
from tests import runs
from tests.losses.problems import devices

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


def inputs_of(name, data, place="device", preprocess=None):
    functions, params = model(name)
    plan = references.plan(data, functions.per_triplet)
    preprocess = preprocess or Counting(functions.image_size)
    return banks.Inputs(functions, params, data, plan, preprocess, place)


def test_a_bank_says_if_another_kernel_has_attended(data):
    """One that XLA has made says nothing, as all of earlier versions do."""
    inputs = inputs_of(MODELS[0], data)
    config = inputs.functions.config.copy_and_resolve_references()
    assert config.attention == "xla"
    with config.unlocked():
        config.attention = "cudnn"
    made_of = inputs.fingerprint()
    assert "model.attention" not in made_of
    other = replace(inputs, functions=replace(inputs.functions, config=config))
    assert other.fingerprint() == made_of | {"model.attention": "cudnn"}


@pytest.mark.parametrize("name", MODELS)
def test_every_image_is_opened_once(name, data, tmp_path):
    inputs = inputs_of(name, data)
    functions, plan, preprocess = inputs.functions, inputs.plan, inputs.preprocess
    rows = build.load_or_build(tmp_path, inputs, devices(2), batch=3, threads=2)
    assert preprocess.opened == dict.fromkeys(data.images.paths, 1)

    pixels = np.stack([preprocess(path) for path in data.images.paths])
    np.testing.assert_allclose(rows["targets"], functions.target(inputs.index, pixels), atol=1e-5)
    text = data.tokens.rows(plan.text, int(data.tokens.lengths.max()))
    want = functions.reference(inputs.index, pixels[plan.image], text)
    assert len(rows["references"]) == (10 if functions.per_triplet else 7)
    np.testing.assert_allclose(rows["references"], want, atol=1e-5)
    again = build.load_or_build(tmp_path, inputs, devices(1))
    np.testing.assert_array_equal(again["references"], rows["references"])
    assert sum(preprocess.opened.values()) == 14  # the bank that is there is read


def test_runs_that_share_a_folder(data, tmp_path, monkeypatch):
    """One builds at a time, and one that comes to the lock late takes what the other has built."""
    inputs = inputs_of(MODELS[0], data)

    def ready(folder):
        return build.load_or_build(folder, inputs, devices(2), batch=3, threads=2)

    held = folders.lock(tmp_path)
    with pytest.raises(UserError, match="another run is building the bank in"):
        ready(tmp_path)
    held.release()
    assert not inputs.preprocess.opened and not (tmp_path / files.PARTIAL).exists()
    real = folders.lock

    def late(folder):
        monkeypatch.setattr(folders, "lock", real)
        ready(folder)
        return real(folder)

    monkeypatch.setattr(folders, "lock", late)
    rows = ready(tmp_path)
    assert folders.lock is real and len(rows["targets"]) == 7
    assert inputs.preprocess.opened == dict.fromkeys(data.images.paths, 1)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"the bank cannot be in .*file/disk \(Not a directory\)"):
        ready(tmp_path / "file" / "disk")


@pytest.mark.parametrize("shape", [(1, 1), (8, 1), (2, 4)])
def test_rows_are_sharded_and_filled_up(shape):
    rng = np.random.default_rng(0)
    rows = {"targets": rng.random((7, 2, 4), np.float32), "references": rng.random((10, 1, 3))}
    mesh = devices(*shape)
    bank = banks.place(rows, mesh, "bfloat16")
    assert bank.rows == 7
    targets, references = rows["targets"].reshape(14, 4), rows["references"].reshape(10, 3)
    assert len(bank.targets) % (2 * mesh.size) == 0 and len(bank.references) % mesh.size == 0
    assert bank.targets.dtype == jnp.bfloat16 and bank.references.dtype == jnp.float32
    np.testing.assert_allclose(bank.targets[:14].astype(jnp.float32), targets, atol=4e-3)
    np.testing.assert_array_equal(bank.references[:10], references.astype(np.float32))
    assert not bank.targets[14:].any() and not bank.references[10:].any()
    assert bank.targets.sharding.is_equivalent_to(meshes.row_sharding(mesh), 2)
    assert jax.jit(lambda b: b.targets.sum() * b.rows)(bank) > 0  # a pytree, `rows` static


def test_unknown_dtype():
    with pytest.raises(UserError, match=r"bank_dtype='float16' is unknown; use float32 or bfloat"):
        banks.place({"targets": np.zeros((1, 1, 1))}, devices(1), "float16")


@pytest.mark.parametrize("name", MODELS)
def test_fingerprint_is_that_of_what_was_read(name, data):
    inputs = inputs_of(name, data)
    functions, params = inputs.functions, inputs.index

    def of(params, **changes):
        return replace(inputs, index=params, **changes).fingerprint()

    want = of(params)
    assert want["model"] == name  # and not what a process calls the module of a file
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
    assert differ(of(params, place="disk")) == ["references"]
    fewer = references.Plan(*(x[1:] for x in (inputs.plan.image, inputs.plan.text)), None, False)
    assert differ(of(params, plan=fewer)) == ["references"]


def write(folder, made_of):
    """A bank of two images, without encoding any."""
    shape = ((2, 1, 3), np.dtype("float32"))
    arrays = {"targets": shape} | ({"references": shape} if "references" in made_of else {})
    with files.Writer(folder, arrays, made_of) as writer:
        writer.start(0, dict.fromkeys(arrays, 0))
        for name in arrays:
            writer.add(name, np.zeros((2, 1, 3)))
        writer.finish(2)


def test_another_makers_bank_is_refused(tmp_path):
    write(tmp_path, {"parameters": "aaa", "images": "bbb", "preprocessing": "size=16"})
    now = {"parameters": "aaa", "images": "ccc", "preprocessing": "size=32"}
    message = (
        r"was made of other images, preprocessing \(images: bbb there, ccc now; preprocessing: "
        r"size=16 there, size=32 now\); delete it, or set loss.bank_path to another folder"
    )
    with pytest.raises(UserError, match=message):
        files.load(tmp_path, now)


@pytest.mark.parametrize("damage", ["bank.json", "targets.npy", "references.npy"])
def test_damaged_bank_is_named(damage, tmp_path):
    made_of = {"parameters": "aaa", "references": "bbb"}
    write(tmp_path, made_of)
    (tmp_path / damage).write_bytes((tmp_path / damage).read_bytes()[:9])
    with pytest.raises(UserError, match=r"is damaged \(.*\); delete it"):
        files.load(tmp_path, made_of)


def test_a_build_that_was_not_finished_is_no_bank(tmp_path):
    with files.Writer(tmp_path, {"targets": ((2, 1, 3), np.dtype("float32"))}, {}) as writer:
        writer.start(0, {"targets": 0})
        writer.add("targets", np.zeros((1, 1, 3)))
        with pytest.raises(ValueError, match=r"rows written and wanted differ: .*\(1, 2\)"):
            writer.finish(2)
    assert files.load(tmp_path, {}) is None
