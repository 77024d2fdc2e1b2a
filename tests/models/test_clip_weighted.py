# SPDX-License-Identifier: Apache-2.0
"""The weighted sum: its formula, its start as the plain sum, who trains when, and its weights."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx

from cir_jax import config, contract, keys, weights
from cir_jax.convert import exporting, importing
from cir_jax.errors import UserError
from cir_jax.models import clip_sum
from cir_jax.models.clip_weighted.model import Head
from cir_jax.runtime import mesh as meshes
from cir_jax.training import stage as stages
from cir_jax.training import train
from tests import runs
from tests.convert import published
from tests.convert.published import VIT
from tests.towers.weights import leaves, random_values

TOWER = runs.TOWERS["clip_weighted"]
HEAD = {f"head/{layer}/{leaf}" for layer in ("hidden", "output") for leaf in ("kernel", "bias")}
BATCH = 4


@functools.cache
def build(tower=TOWER, name="clip_weighted"):
    overrides = [f"model.tower={tower}", "model.dtype=float32", f"model.name={name}"]
    return contract.build(config.load("base", overrides).model)


@functools.cache
def drawn(tower=TOWER):
    """Random parameters, those of the head too."""
    return random_values({path: x.shape for path, x in build(tower).abstract.items()})


def fresh(width):
    """The parameters that a head starts with."""
    head = leaves(Head(width, rngs=nnx.Rngs(0)))
    return {f"head/{path}": np.asarray(leaf[...]) for path, leaf in head.items()}


def features(width, seed=0):
    """Raw image features as a reference, [B, 1, D], and raw text features, [B, D]."""
    rng = np.random.default_rng(seed)
    image, text = rng.normal(size=(2, BATCH, width)).astype(np.float32)
    return 2 * image[:, None], text


def tokens():
    text = np.zeros((BATCH, 12), np.int32)
    text[:, :5] = np.random.default_rng(1).integers(1, 49405, (BATCH, 5))
    text[:, 0], text[:, 5] = 49406, 49407
    return text


def in_numpy(params, image, text):
    """(weights, queries) by the formula."""

    def unit(x):
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    def layer(name, x):
        return x @ params[f"head/{name}/kernel"] + params[f"head/{name}/bias"]

    both = np.concatenate([unit(image), unit(text)], axis=-1)
    weight = 1 + layer("output", np.maximum(layer("hidden", both), 0))
    return weight, unit(weight[:, :1] * image + weight[:, 1:] * text)


def test_the_formula():
    params = drawn()
    reference, text = features(16)
    weight, want = in_numpy(params, reference[:, 0], text)
    assert np.ptp(weight, axis=0).min() > 0.01  # they are of each query
    model = build().merged(params)
    np.testing.assert_allclose(model.weights(reference, text), weight, atol=1e-5)
    got = model.fuse(reference, text)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, atol=1e-5)
    # The comparison sees which weight is whose.
    swapped = in_numpy(params, text, reference[:, 0])[1]
    assert np.abs(swapped - want).max() > 1e-3


@pytest.mark.parametrize(
    "tower",
    ["tiny-vit", "tiny-resnet", "tiny-siglip2", "tips-16-8-w32-l1-h4-r1_text-w32-l1-h4-v18"],
)
def test_it_starts_as_the_plain_sum_to_the_bit(tower):
    functions = build(tower)
    width = functions.target_shape[1]
    start = fresh(width)
    assert start.keys() == HEAD and not start["head/output/kernel"].any()
    assert {path: x.shape for path, x in start.items()} == {
        path: x.shape for path, x in functions.abstract.items() if path in HEAD
    }
    towers = {path: np.zeros(x.shape, np.float32) for path, x in functions.abstract.items()}
    reference, text = features(width)
    model = functions.merged(towers | start)
    assert (np.asarray(model.weights(reference, text)) == 1).all()
    want = clip_sum.Model.fuse(model, reference, text)
    np.testing.assert_array_equal(model.fuse(reference, text), want)
    moved = functions.merged(towers | start | {"head/output/bias": np.float32([0, 0.01])})
    assert (np.asarray(moved.fuse(reference, text)) != want).any(axis=-1).all()
    # The rest of the model is that of the sum.
    rest = {path: role for path, role in functions.roles.items() if path not in HEAD}
    assert rest == build(tower, "clip_sum").roles


def test_a_compiled_query_its_halves_and_a_text_alone():
    functions, plain = build(), build(name="clip_sum")
    towers = {path: drawn()[path] for path in plain.abstract}
    reference, _ = features(16)
    reference[1] = 0
    text = tokens()
    want = np.asarray(jax.jit(plain.compose)(towers, reference, text))

    @jax.jit
    def every(params, reference, text):
        composed = functions.compose(params, reference, text)
        raw = functions.text_features(params, text, None)
        return composed, raw, *functions.halves(params, reference, text)

    np.testing.assert_array_equal(every(towers | fresh(16), reference, text)[0], want)
    query, raw, image, words = map(np.asarray, every(drawn(), reference, text))
    np.testing.assert_allclose(image + words, query, atol=1e-6)
    weight, formula = in_numpy(drawn(), reference[[0, 2, 3], 0], raw[[0, 2, 3]])
    np.testing.assert_allclose(query[[0, 2, 3]], formula, atol=1e-5)
    share = weight[:, 1:] * raw[[0, 2, 3]]
    norm = np.linalg.norm(weight[:, :1] * reference[[0, 2, 3], 0] + share, axis=-1, keepdims=True)
    np.testing.assert_allclose(words[[0, 2, 3]], share / norm, atol=1e-5)
    # Whatever the head says, a text alone is what it is of the plain sum.
    np.testing.assert_allclose(query[1], want[1], atol=1e-6)
    assert not image[1].any()
    assert np.abs(query - want).max(axis=-1)[[0, 2, 3]].min() > 1e-4
    assert functions.sums and functions.text_alone and functions.passes_once


def test_gradients_of_the_head():
    functions = build()
    rest = {path: x for path, x in drawn().items() if path not in HEAD}
    reference, text = features(16)
    other = features(16, seed=2)[1]

    def total(head, reference):
        return (functions.merged(rest | head).fuse(reference, text) * other).sum()

    gradient = jax.jit(jax.grad(total))
    at_start = {path for path, g in gradient(fresh(16), reference).items() if np.any(g)}
    assert at_start == {"head/output/kernel", "head/output/bias"}  # the first layer comes next
    random = {path: drawn()[path] for path in HEAD}
    assert all(np.any(g) for g in gradient(random, reference).values())
    # A caption of stage zero has no image, and leaves the head as it is.
    of_captions = gradient(random, np.zeros_like(reference))
    assert all((np.asarray(g) == 0).all() for g in of_captions.values())


def test_the_head_trains_in_both_stages():
    functions = build()
    roles = {"one_in_batch": {"index", "query"}, "two_bank": {"query"}}
    for number, name in enumerate(roles, start=1):
        loaded = config.load(f"clip_weighted:emoji,stage={number}")
        stage = stages.load(name).Stage.from_config(loaded, functions, meshes.make(8))
        trained = set(stages.trainable(stage, functions))
        assert trained == {p for p, role in functions.roles.items() if role in roles[name]}
        assert trained > HEAD
    assert not any(path.startswith("visual/") for path in trained)
    assert not HEAD & set(functions.index_paths)  # an index is that of the plain sum


def test_both_stages_on_tiny_data(tmp_path):
    root = runs.write_fashioniq(tmp_path / "data", images=8, triplets=8, categories=("dress",))
    common = ("data.categories=dress", "eval.benchmark=none", "steps=1")
    one = runs.tiny(tmp_path / "one", root, *common, model="clip_weighted")
    assert train.train(one)["finished"]
    start = f"init_from={tmp_path / 'one'}"
    two = runs.tiny(tmp_path / "two", root, start, *common, model="clip_weighted", stage=2)
    assert train.train(two)["finished"]
    functions = contract.build(one.model)
    first = weights.of_run(tmp_path / "one", functions, "last")[1]
    index, query, _ = weights.of_run(tmp_path / "two", functions, "last")
    assert first["head/output/kernel"].any()
    np.testing.assert_array_equal(index["head/output/kernel"], first["head/output/kernel"])
    moved = {path for path in query if not np.array_equal(query[path], index[path])}
    assert {"head/output/kernel", "head/hidden/kernel", "text/proj"} <= moved
    assert all(functions.roles[path] == "query" for path in moved)


@pytest.mark.parametrize("layout", ["huggingface", "open_clip"])
def test_a_clip_is_enough_to_start_from(layout, tmp_path, capsys):
    place = str(published.write(layout, tmp_path, published.state()))
    functions = published.functions(VIT, "clip_weighted")
    found = weights.load(place, functions, seed=0).query
    want = weights.load(place, published.functions()).query
    assert found.keys() - want.keys() == HEAD and not found["head/output/kernel"].any()
    for path, x in want.items():
        np.testing.assert_array_equal(found[path], x)
    assert "(4 leaves in all): they start at random, seed 0" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"lacks head/.* \(4 leaves in all\) of the model"):
        weights.load(place, functions)  # to be used as it is


def test_weights_go_out_and_come_back(tmp_path, capsys):
    functions, plain = published.functions(VIT, "clip_weighted"), published.functions()
    shapes = {path: x.shape for path, x in functions.abstract.items()}
    index = {path: np.asarray(x) for path, x in random_values(shapes).items()}
    query = index | {path: index[path] + 1 for path in ("text/proj", *HEAD)}
    exporting.write(tmp_path / "a.safetensors", functions, index, query, layout="safetensors")
    found = importing.read(tmp_path / "a.safetensors", functions)
    for got, want in ((found.index, index), (found.query, query)):
        assert got.keys() == want.keys()
        for path, x in want.items():
            np.testing.assert_array_equal(got[path], x)
    capsys.readouterr()
    exporting.write(tmp_path / "b", functions, index, query, layout="huggingface")
    assert "b holds the two towers of clip_weighted without the head" in capsys.readouterr().out
    found = importing.read(tmp_path / "b", plain).query
    assert found.keys() == plain.abstract.keys()
    for path, x in found.items():
        np.testing.assert_array_equal(x, query[path])
    # A file of a whole model would be taken for the plain sum.
    with pytest.raises(UserError, match=r"--format=spn is unknown; there are: safetensors, hugg"):
        exporting.write(tmp_path / "c.pt", functions, index, query, layout="spn")
    assert not (tmp_path / "c.pt").exists()
    # The plain sum is another model, whose file has no head.
    exporting.write(tmp_path / "d.safetensors", plain, index, index, layout="safetensors")
    with pytest.raises(UserError, match=r"is of model.name=clip_sum, but the config says"):
        importing.read(tmp_path / "d.safetensors", functions)


@pytest.mark.parametrize("argument", ["fashioniq,stage=1", "cirr,stage=2", "quicktest,stage=0"])
def test_the_recipes_are_those_of_the_sum(argument):
    ours, theirs = (
        keys.flat(config.load(f"{name}:{argument}")) for name in ("clip_weighted", "clip_sum")
    )
    other = {key for key, value in theirs.items() if ours[key] != value}
    assert other == {"model.name", "workdir"} and ours["model.name"] == "clip_weighted"
