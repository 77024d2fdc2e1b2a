# SPDX-License-Identifier: Apache-2.0
"""Adapters of any model: the same vectors as merged, the gradients of the formula, small
checkpoints, and a base that nothing else may take the place of."""

import dataclasses
import functools
import hashlib
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.interpreters.partial_eval import dce_jaxpr

from cir_jax import contract, weights
from cir_jax.errors import UserError
from cir_jax.params import LORA_A, LORA_B
from cir_jax.runtime import checkpoint, frozen, interrupts, metrics, optim, sharding
from cir_jax.runtime import mesh as meshes
from cir_jax.towers import layers, lora
from cir_jax.towers.clip import sizes
from cir_jax.training import adapters, setup, step, train
from cir_jax.training import stage as stages
from tests import runs
from tests.training import test_full_size_costs as costs
from tests.training import test_laws as laws

ALL = ("lora.rank=3", "lora.alpha=6", "lora.modules=all")
RUN = ("steps=4", "checkpoint.every_steps=2", "eval.every=0", *ALL)
CROSS = {"model": "cross_attention"}


def adapted(model, stage="one_in_batch", shape=(1, 1), *changes, fsdp=False):
    """(functions with adapters, stage, mesh, parameters, factors that are not zero, batch, bank,
    config)."""
    problem = laws.prepared(model, stage, shape, *(changes or ALL))
    functions, made, mesh, params, batch, bank, config = problem
    if fsdp:
        functions = dataclasses.replace(functions, fsdp=mesh)
    functions = adapters.added(config, functions, made)
    rng = np.random.default_rng(4)
    factors = functions.adapters.start(5)
    for path in functions.factors:
        if path.endswith(LORA_B):
            factors[path] = rng.normal(0, 0.05, factors[path].shape).astype(np.float32)
    return functions, made, mesh, params, factors, batch, bank, config


@functools.cache
def built(name, tower):
    """A model without any values."""
    changes = (f"model.name={name}", f"model.tower={tower}")
    return contract.build(runs.tiny("unused", "unused", *changes).model)


def described(config):
    """(functions with adapters, stage) of a config of stage one, without any values."""
    functions = built(config.model.name, config.model.tower)
    made = stages.load("one_in_batch").Stage.from_config(config, functions, meshes.make())
    return adapters.added(config, functions, made), made


def vectors(functions, batch):
    """Parameters -> (targets, queries)."""
    shape = (len(batch["text"]), *functions.reference_shape)
    reference = np.random.default_rng(6).normal(size=shape).astype(np.float32)

    def compute(params):
        pixels, text = batch["reference_pixels"], batch["text"]
        return functions.target(params, pixels), functions.compose(params, reference, text)

    return jax.jit(compute)


def check_matrices(functions):
    """That all matrices have factors which train here, but those that train whole."""
    read = {*functions.index_paths, *functions.query_paths}
    kernels = {path for path in read if re.fullmatch(r"(.*/)?(kernel|\w*proj)", path)}
    assert kernels and set(functions.adapters.matrices) == kernels - functions.adapters.whole


# Also what a stage leaves frozen: the CLIP of a Combiner, the image encoder of BLIP.
EVERY = (*ALL, "lora.modules=.*")


@pytest.mark.parametrize("model", ["clip_sum", "sprc", "cross_attention", "sprc_shaped"])
def test_vectors_are_those_of_the_merged_model_and_at_first_those_of_the_base(model):
    functions, _, _, params, factors, batch, _, _ = adapted(model, "one_in_batch", (1, 1), *EVERY)
    check_matrices(functions)
    compute = vectors(functions, batch)
    start = functions.adapters.start(0)
    merged = lora.merged(params | factors, functions.adapters.scale)
    assert merged.keys() == params.keys()
    base, far = compute(params | start), 0.0
    got, want = compute(params | factors), compute(merged | start)
    for one, other, before in zip(got, want, base, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6 * max(1, np.abs(other).max()))
        far = max(far, np.abs(np.asarray(other) - before).max())
    assert far > 1e-3
    if model in ("clip_sum", "sprc_shaped"):
        plain = vectors(dataclasses.replace(functions, adapters=None), batch)
        for one, other in ((params, base), (merged, want)):
            for x, y in zip(plain(one), other, strict=True):
                np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("model", ["clip_combiner", "tgcir", "blip"])
def test_of_other_models_each_factor_is_a_part_of_what_is_computed(model):
    """Whose dense layers are those of the others."""
    functions, _ = described(runs.tiny("unused", "unused", *EVERY, model=model))
    check_matrices(functions)
    pixels = jnp.zeros((1, functions.image_size, functions.image_size, 3))
    text = jnp.full((1, 16), 49407)

    def compute(params):
        reference = functions.reference(params, pixels, text)
        return functions.compose(params, reference, text), functions.target(params, pixels)

    tree = functions.abstract | functions.factors
    program = jax.make_jaxpr(compute)(tree).jaxpr
    _, used = dce_jaxpr(program, [True] * len(program.outvars))
    unused = {path for path, one in zip(sorted(tree), used, strict=True) if not one}
    assert functions.factors and not unused & functions.factors.keys()


def test_gradients_are_those_of_the_formula():
    functions, _, _, params, factors, batch, _, _ = adapted("clip_sum")
    plain = dataclasses.replace(functions, adapters=None)
    weights = np.random.default_rng(7).normal(size=(laws.BATCH, *functions.target_shape))

    def total(trained, fixed, functions):
        return (functions.target({**fixed, **trained}, batch["target_pixels"]) * weights).sum()

    by_factors = jax.jit(jax.grad(lambda f: total(f, params, functions)))(factors)
    merged = lora.merged(params | factors, functions.adapters.scale)
    matrices = {path: merged[path] for path in functions.adapters.matrices}
    by_matrix = jax.jit(jax.grad(lambda m: total(m, merged, plain)))(matrices)
    assert {path + end for path in matrices for end in (LORA_A, LORA_B)} == by_factors.keys()
    images = [path for path in matrices if path.startswith("visual/")]
    assert len(images) == 7
    for path in images:
        gradient, a, b = by_matrix[path], factors[path + LORA_A], factors[path + LORA_B]
        want = 2 * gradient @ b.swapaxes(-1, -2), 2 * a.swapaxes(-1, -2) @ gradient
        for end, expected in zip((LORA_A, LORA_B), want, strict=True):
            largest = np.abs(expected).max()
            np.testing.assert_allclose(by_factors[path + end], expected, atol=1e-4 * largest)
            assert largest > 1e-4


def updated(model, stage, shape, *changes, fsdp=False):
    """(loss, what was trained, start, places) of one update of the factors."""
    functions, made, mesh, params, factors, batch, bank, config = adapted(
        model, stage, shape, *ALL, *changes, fsdp=fsdp
    )
    places = sharding.parameter_shardings(functions, mesh) | adapters.shardings(functions, mesh)
    paths = stages.trainable(made, functions)
    start = {p: factors[p] if p in factors else params[p] for p in paths}
    trained = sharding.place(start, places)
    optimizer = optim.build(config.optim, paths, 10)
    update = step.make(made, functions, optimizer, 1)
    state = optimizer.init(trained)
    assert optim.size(state) < 3 * optim.size(trained)
    fixed = {p: x for p, x in params.items() if p not in paths or not made.index_is_query}
    arguments = trained, state, sharding.place(fixed, places), laws.placed(batch, mesh), bank
    trained, _, values = update(*arguments, jax.random.key(1))
    return float(values["loss"]), {p: np.asarray(x) for p, x in trained.items()}, start, places


def test_an_update_is_the_same_on_a_mesh(monkeypatch):
    """Rows, columns and the devices of the batch: a matrix is split over all of them."""
    monkeypatch.setattr(sharding, "LEAST", 1)
    loss, want, start, _ = updated("clip_sum", "two_bank", (1, 1), "lora.rank=4")
    other, got, _, places = updated("clip_sum", "two_bank", (2, 4), "lora.rank=4", fsdp=True)
    assert want and all(map(lora.is_factor, want))
    assert other == pytest.approx(loss, rel=2e-5)
    for path, expected in want.items():
        np.testing.assert_allclose(got[path], expected, atol=3e-5, err_msg=path)
        assert not np.array_equal(expected, start[path])
    text = "text/blocks/mlp/fc1/kernel"
    there = [set(jax.tree.leaves(tuple(places[text + end].spec))) for end in (LORA_A, LORA_B)]
    assert there[0] | there[1] == {"data", "model"}


def test_stage_zero_trains_factors_and_what_is_named_beside_them():
    change = "lora.trained=logit_scale"
    _, got, start, _ = updated("cross_attention", "zero_image_text", (1, 1), change)
    matrices = {path.removesuffix(LORA_A).removesuffix(LORA_B) for path in got}
    assert matrices == {"patches/kernel", "head/kernel", "mix/kernel", "logit_scale"}
    assert not any(np.array_equal(got[path], start[path]) for path in got)


def test_a_layer_that_is_read_and_not_called_is_read_with_its_adapter(tmp_path):
    """As a matrix that no dense layer holds: the sum is made there."""
    (tmp_path / "mine.py").write_text('''
import jax.numpy as jnp
from flax import nnx
from cir_jax.towers.layers import Dense, unit
TOKENIZER, CUT_PADDING, REFERENCE_ROWS = "clip", True, "per_image"

class Model(nnx.Module):
    def __init__(self, config, *, rngs):
        self.layers = nnx.List([Dense(48, 8, 0.2, rngs=rngs), nnx.Linear(8, 8, rngs=rngs)])
        self.tied = self.layers[1]
        self.proj = nnx.Param(jnp.eye(8))

    def reference(self, pixels, text):
        tiles = pixels.reshape(-1, 16, 48)
        first = self.layers[0]
        return jnp.tanh(self.tied(tiles @ first.kernel[...] + first.bias[...][None, None]))

    def target(self, pixels):
        return unit(self.layers[1](self.reference(pixels, None).mean(axis=1)))[:, None]

    def compose(self, reference, text, key=None):
        return unit(reference.mean(axis=1) @ self.proj[...])

def image_size(config):
    return 16

def roles(config):
    return [("proj", "query"), (".*", "index")]

def sharding(config):
    return [(".*", ())]
''')  # fmt: skip
    config = runs.tiny("unused", "unused", *ALL, **CROSS)
    with config.unlocked():
        config.model.name = str(tmp_path / "mine.py")
    functions, _ = described(config)
    assert set(functions.adapters.matrices) == {"layers/0/kernel", "layers/1/kernel", "proj"}
    rng = np.random.default_rng(0)
    factors = {p: rng.normal(size=x.shape).astype("f4") for p, x in functions.factors.items()}
    params = {p: np.asarray(x) for p, x in functions.init(0).items()}
    batch = {"reference_pixels": rng.integers(0, 256, (2, 16, 16, 3), np.uint8),
             "text": np.ones((2, 8), np.int32)}  # fmt: skip
    got = vectors(functions, batch)(params | factors)
    want = vectors(functions, batch)(lora.merged(params | factors, 2.0))
    for one, other, before in zip(got, want, vectors(functions, batch)(params), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)
        assert np.abs(np.asarray(one) - before).max() > 0.1


def test_what_a_step_keeps_of_an_adapter_is_small():
    """Of the two products of an adapter only what the first gives, which is r wide, and of no
    matrix a gradient as large as it is."""
    functions, _, _, params, factors, batch, _, _ = adapted("clip_sum")
    config = functions.config.copy_and_resolve_references()
    config.unlock()
    config.remat = "products"
    built = contract.build(config.lock())

    def traced(functions, trained):
        def total(trained, fixed):
            return functions.target({**fixed, **trained}, batch["target_pixels"]).sum()

        program = jax.make_jaxpr(jax.grad(total))(trained, params).jaxpr
        (each,) = costs.kept(program).values()
        return each, costs.flop(program)

    whole, most = traced(built, {path: params[path] for path in functions.adapters.matrices})
    each, less = traced(dataclasses.replace(built, adapters=functions.adapters), factors)
    width = sizes.find(functions.config.tower).vision.width
    assert whole < each <= whole + 6 * 3 * 4 / width
    assert less < 0.85 * most


def test_few_values_are_summed_over_in_a_product_that_is_made_again():
    def saved(inputs, values, outputs):
        x, y = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((inputs, values), (values, outputs)))
        jaxpr = jax.make_jaxpr(jnp.matmul)(x, y)
        (equation,) = [e for e in jaxpr.jaxpr.eqns if e.primitive is jax.lax.dot_general_p]
        return layers.weights_times_values(
            equation.primitive, *(v.aval for v in equation.invars), **equation.params
        )

    assert not saved(400, 8, 768) and saved(400, 768, 8) and saved(400, 768, 3072)


REFUSED = [
    (("lora.modules=atention",), r"'atention' matches nothing .* Did you mean 'attention'"),
    (("lora.modules=text/no.*",), r"there are: text/blocks/attention/key/kernel, .* and 2 more"),
    (("lora.modules=()",), "names no matrix"),
    (
        ("lora.rank=97",),
        r"lora.rank=97 is over 96, the rank of the matrix text/blocks/attention/key",
    ),
    (("lora.trained=norm",), r"lora.trained: 'norm' matches nothing .* Did you mean 'norms'"),
    (("lora.trained=.*",), r"lora.modules: 'attention' matches nothing here"),
]


@pytest.mark.parametrize("changes, message", REFUSED)
def test_what_cannot_be_adapted_is_said(changes, message):
    config = runs.tiny("unused", "unused", "lora.rank=2", *changes, model="clip_sum")
    with pytest.raises(UserError, match=message):
        described(config)


@pytest.mark.parametrize(
    "change, message",
    [
        ("lora.alpha=0", r"lora.alpha=0.0 is out of range; it must be above 0"),
        ("lora.rank=-1", "lora.rank=-1 is out of range"),
        ("lora.modules=(", "is no regular expression"),
        ("lora.alpha=4", r"lora.alpha would do nothing, since lora.rank=0"),
    ],
)
def test_values_that_mean_nothing_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        setup.resolve(runs.tiny("unused", "unused", change))


def test_groups_and_what_trains_beside():
    def chosen(modules, trained, model="clip_sum"):
        changes = ("lora.rank=1", f"lora.modules={modules}", f"lora.trained={trained}")
        functions, made = described(runs.tiny("unused", "unused", *changes, model=model))
        paths = stages.trainable(made, functions)
        return functions.adapters.matrices, [p for p in paths if not lora.is_factor(p)]

    names = {"query", "key", "value", "out", "fc1", "fc2"}
    matrices, whole = chosen("attention,mlp", "new")
    assert {p.split("/")[-2] for p in matrices} == names and whole == []
    assert len(matrices) == 12
    matrices, whole = chosen("text/.*", "biases,norms")
    assert all(p.startswith("text/") for p in matrices) and "text/proj" in matrices
    assert "text/token_embedding" not in matrices  # a table, unless it is named
    assert "visual/norm_in/scale" in whole and "visual/blocks/mlp/fc1/bias" in whole
    assert chosen("text/token_embedding", "()")[0] == ["text/token_embedding"]
    with pytest.raises(
        UserError, match=r"'mlp' matches nothing here. The groups .* stage would tr"
    ):
        chosen("mlp", "new", "clip_combiner")  # whose CLIP is frozen
    _, whole = chosen("text/.*", "new", "clip_combiner")
    assert whole and all(p.startswith("combiner/") for p in whole)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return runs.write_fashioniq(tmp_path_factory.mktemp("fashioniq"))


@pytest.fixture(scope="module")
def one(root, tmp_path_factory):
    """A run of stage one that was never stopped."""
    workdir = tmp_path_factory.mktemp("one")
    changes = ("lora.trained=.*bias", "eval.benchmark=none")
    train.train(runs.tiny(workdir, root, *RUN, *changes, **CROSS))
    return workdir


def losses(workdir):
    return [line["loss"] for line in metrics.read(workdir / metrics.FILE) if "loss" in line]


def arrays(workdir, which="last"):
    functions = contract.build(weights.config_of(workdir).model)
    return functions, *weights.trees_of_run(workdir, functions, which)


def test_a_run_keeps_its_base_once_and_resumes_exactly(root, one, tmp_path, monkeypatch):
    changes = (*RUN, "lora.trained=.*bias", "eval.benchmark=none")
    asked = interrupts.StopRequest.now
    monkeypatch.setattr(interrupts.StopRequest, "now", lambda self, step: step == 2)
    assert not train.train(runs.tiny(tmp_path, root, *changes, **CROSS))["finished"]
    monkeypatch.setattr(interrupts.StopRequest, "now", asked)
    with pytest.raises(UserError, match=r"another config .lora.alpha: 6.0 -> 3.0"):
        train.train(runs.tiny(tmp_path, root, *changes, "lora.alpha=3", **CROSS))
    assert train.train(runs.tiny(tmp_path, root, *changes, **CROSS))["finished"]
    assert losses(tmp_path) == losses(one)
    functions, fixed, trained, record = arrays(tmp_path)
    other = arrays(one)
    for mine, theirs in ((fixed, other[1]), (trained, other[2])):
        assert mine.keys() == theirs.keys()
        assert all(np.array_equal(mine[p], theirs[p]) for p in mine)
    start = functions.init(42)
    assert all(np.array_equal(fixed[p], start[p]) for p in fixed)
    assert any(trained[p].any() for p in trained if p.endswith(LORA_B))
    assert any(not np.array_equal(trained[p], start[p]) for p in trained if p.endswith("bias"))
    assert record["lora"]["rank"] == 3 and json.loads(record["config"])["lora"]["alpha"] == 6
    size = {
        part: sum(f.stat().st_size for f in (tmp_path / place / step).rglob("*") if f.is_file())
        for part, place, step in (("base", frozen.BASE, "0"), ("last", checkpoint.LAST, "4"))
    }
    assert size["last"] < size["base"] / 5


def test_what_reads_a_run_reads_the_merged_model(one):
    functions, fixed, trained, _ = arrays(one)
    index, query, _ = weights.of_run(one, functions, "last")
    assert index is query and query.keys() == functions.abstract.keys()
    path = "mix/kernel"
    want = fixed[path] + 2 * trained[path + LORA_A] @ trained[path + LORA_B]
    np.testing.assert_allclose(query[path], want, atol=1e-7)
    assert not np.array_equal(query[path], fixed[path])
    np.testing.assert_array_equal(query["mix/bias"], trained["mix/bias"])


def test_adapters_without_their_base_or_on_another_are_refused(root, one, tmp_path):
    functions = arrays(one)[0]
    copy = shutil.copytree(one, tmp_path / "copy")
    shutil.rmtree(copy / frozen.BASE)
    with pytest.raises(UserError, match=r"differences to a base, .* missing or incomplete"):
        weights.of_run(copy, functions)
    changes = (*RUN, "lora.trained=.*bias", "steps=6")
    with pytest.raises(UserError, match=r"differences to a base, .* missing or incomplete"):
        train.train(runs.tiny(copy, root, *changes, **CROSS))
    frozen.write(copy, {p: jnp.asarray(x) for p, x in arrays(one)[1].items()}, "of another")
    with pytest.raises(UserError, match=r"not the base of the adapters .* of another, and they"):
        weights.of_run(copy, functions)


def test_stage_two_adapts_the_query_alone_and_its_bank_is_that_of_the_index(root, one, tmp_path):
    two = {"stage": 2, **CROSS}
    train.train(runs.tiny(tmp_path / "two", root, *RUN, f"init_from={one}", **two))
    functions, _, trained, _ = arrays(tmp_path / "two")
    assert set(trained) == {"mix/kernel" + LORA_A, "mix/kernel" + LORA_B}
    index, query, _ = weights.of_run(tmp_path / "two", functions)
    merged = weights.of_run(one, functions)[1]
    assert all(np.array_equal(index[p], merged[p]) for p in index)
    digest = hashlib.sha256()  # of what makes the bank, which is no factor
    for path in functions.index_paths:
        digest.update(f"{path} float32 {merged[path].shape}\n".encode() + merged[path].tobytes())
    bank = json.loads((tmp_path / "two" / "bank" / "bank.json").read_text())
    assert bank["parameters"] == digest.hexdigest()
    assert {p for p in query if not np.array_equal(query[p], index[p])} == {"mix/kernel"}
    again = runs.tiny(tmp_path / "three", root, *RUN, f"init_from={tmp_path / 'two'}", **two)
    with pytest.raises(UserError, match=r"holds mix/kernel .1 leaves in all. twice"):
        train.train(again)
