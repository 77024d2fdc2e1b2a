# SPDX-License-Identifier: Apache-2.0
"""CLIP4CIR (Combiner): its formula against PyTorch, dropout, who trains when, and its config."""

import functools
import math

import jax
import numpy as np
import pytest
import torch
from flax import nnx

from cir_jax import config, contract
from cir_jax.models import clip_combiner, clip_sum
from cir_jax.models.clip_combiner.model import Combiner
from cir_jax.runtime import mesh as meshes
from cir_jax.runtime import sharding
from cir_jax.training import stage as stages
from tests.towers.weights import random_values

BATCH = 4
WIDTH = 96  # D of tiny-vit
LAYERS = ("text_projection", "image_projection", "combine", "output", "gate1", "gate2")


@functools.cache
def build(tower="tiny-vit", name="clip_combiner"):
    overrides = [f"model.tower={tower}", "model.dtype=float32", f"model.name={name}"]
    return contract.build(config.load("base", overrides).model)


@functools.cache
def problem():
    """(parameters, raw image features, raw text features, text) of random triplets."""
    functions, rng = build(), np.random.default_rng(0)
    text = np.zeros((BATCH, 12), np.int32)
    text[:, :5] = rng.integers(1, 49405, (BATCH, 5))
    text[:, 0], text[:, 5] = 49406, 49407
    params = random_values({path: x.shape for path, x in functions.abstract.items()})
    image = rng.normal(size=(BATCH, WIDTH)).astype(np.float32)
    read = jax.jit(lambda params, text: functions.merged(params).text(text))
    return jax.device_put(params), image, np.asarray(read(params, text)), text


def in_torch(params, image, text, masks=(1, 1, 1, 1)):
    """(query, gate) by the published formula; a mask is 0 where a value is dropped, else 2."""
    masks = [torch.as_tensor(np.array(mask, np.float32)) for mask in masks]
    image, text = torch.tensor(np.array(image)), torch.tensor(np.array(text))

    def layer(name, x):
        weight = torch.tensor(np.array(params[f"combiner/{name}/kernel"]).T)
        bias = torch.tensor(np.array(params[f"combiner/{name}/bias"]))
        return torch.nn.functional.linear(x, weight, bias)

    both = torch.cat(
        (
            layer("text_projection", text).relu() * masks[0],
            layer("image_projection", image).relu() * masks[1],
        ),
        dim=-1,
    )
    gate = layer("gate2", layer("gate1", both).relu() * masks[3]).sigmoid()
    raw = layer("output", layer("combine", both).relu() * masks[2])
    raw = raw + gate * text + (1 - gate) * image
    return torch.nn.functional.normalize(raw, dim=-1).numpy(), gate.numpy()


def test_the_formula_is_the_published_one():
    params, image, text, ids = problem()
    want, gate = in_torch(params, image, text)
    assert np.abs(gate - 0.5).min() > 0.02 and gate.max() < 0.98  # the two sides weigh unlike
    query = jax.jit(build().compose)(params, image[:, None], ids)
    assert query.shape == (BATCH, WIDTH) and query.dtype == np.float32
    np.testing.assert_allclose(query, want, atol=1e-5)
    # The comparison sees the order: image first, or the gate on the image, is another query.
    swapped, _ = in_torch(params, text, image)
    assert np.abs(swapped - want).max() > 0.05


def test_dropout_needs_a_key_and_follows_it():
    params, image, _, ids = problem()
    compose = jax.jit(build().compose)
    plain = compose(params, image[:, None], ids)
    np.testing.assert_array_equal(plain, compose(params, image[:, None], ids))
    first, again, other = (
        compose(params, image[:, None], ids, jax.random.key(seed)) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.01 and np.abs(first - plain).max() > 0.01


def test_dropout_is_behind_each_relu_and_keeps_the_mean(monkeypatch):
    params, image, text, _ = problem()
    masks, draw = [], jax.random.bernoulli

    def noted(key, p, shape, **options):
        masks.append((p, draw(key, p, shape, **options)))
        return masks[-1][1]

    monkeypatch.setattr(jax.random, "bernoulli", noted)
    combiner = build().merged(params).combiner
    got = combiner(image, text, jax.random.key(3))
    assert [kept for kept, _ in masks] == [0.5] * 4
    masks = [2.0 * np.asarray(mask) for _, mask in masks]
    # All differ: four keys, not one used four times.
    assert all(0.9 < mask.mean() < 1.1 for mask in masks)
    assert 0.4 < (masks[0] == masks[1]).mean() < 0.6
    assert 0.4 < (masks[2] == masks[3]).mean() < 0.6
    np.testing.assert_allclose(got, in_torch(params, image, text, masks)[0], atol=1e-5)


def test_image_side_and_parameters_are_those_of_clip_sum():
    functions, plain = build(), build(name="clip_sum")
    params = problem()[0]
    towers = {path: params[path] for path in plain.abstract}  # the same paths
    pixels = np.random.default_rng(1).normal(size=(2, 64, 64, 3)).astype(np.float32)
    for side in ("target", "reference"):
        text = () if side == "target" else (np.zeros((2, 4), np.int32),)
        want = jax.jit(getattr(plain, side))(towers, pixels, *text)
        got = jax.jit(getattr(functions, side))(params, pixels, *text)
        np.testing.assert_array_equal(got, want)
    new = functions.abstract.keys() - plain.abstract.keys()
    assert new == {f"combiner/{layer}/{leaf}" for layer in LAYERS for leaf in ("kernel", "bias")}
    assert clip_combiner.image_size is clip_sum.image_size


def test_parameter_count_of_the_published_one():
    abstract = build("RN50x4").abstract
    counts = {path: math.prod(x.shape) for path, x in abstract.items()}
    combiner = {path: count for path, count in counts.items() if path.startswith("combiner/")}
    assert sum(combiner.values()) == 59_003_521
    assert abstract["combiner/text_projection/kernel"].shape == (640, 2560)
    assert abstract["combiner/combine/kernel"].shape == (5120, 5120)
    assert abstract["combiner/gate2/kernel"].shape == (5120, 1)


def test_kernels_start_with_the_variance_of_torch():
    combiner = Combiner(32, dtype=np.float32, rngs=nnx.Rngs(0))
    for layer in (getattr(combiner, name) for name in LAYERS):
        kernel = np.asarray(layer.kernel[...])
        assert kernel.std() == pytest.approx((3 * len(kernel)) ** -0.5, rel=0.1)
        assert not layer.bias[...].any()


@pytest.mark.parametrize("tower", ["tiny-vit", "tiny-resnet", "RN50x4"])
def test_only_the_combiner_trains_after_stage_zero(tower):
    functions = build(tower)
    for number, name in enumerate(("zero_image_text", "one_in_batch", "two_bank")):
        loaded = config.load(f"clip_combiner:emoji,stage={number}")
        stage = stages.load(name).Stage.from_config(loaded, functions, meshes.make(8))
        trained = set(stages.trainable(stage, functions))
        combiner = {path for path in functions.abstract if path.startswith("combiner/")}
        moving = {p for p, role in functions.roles.items() if role != "statistic"}
        assert trained == (combiner if number else moving)
    statistics = {p for p, role in functions.roles.items() if role == "statistic"}
    assert bool(statistics) == (tower != "tiny-vit")
    assert all(path.endswith(("/mean", "/var")) for path in statistics)


def test_every_matrix_is_sharded_and_the_query_is_the_same():
    params, image, text, _ = problem()
    functions, mesh = build(), meshes.make(data=2, model=4)
    places = sharding.parameter_shardings(functions, mesh)
    whole = {p for p, s in places.items() if p.startswith("combiner/") and not any(s.spec)}
    assert whole == {"combiner/output/bias", "combiner/gate2/bias"}

    @jax.jit
    def combine(params, image, text):
        return functions.merged(params).combiner(image, text, jax.random.key(0))

    want = combine(params, image, text)
    rows = jax.device_put((image, text), meshes.batch_sharding(mesh))
    np.testing.assert_allclose(combine(sharding.place(params, places), *rows), want, atol=2e-6)


def test_the_compute_type_is_that_of_the_config():
    overrides = ["model.tower=tiny-vit", "model.dtype=bfloat16", "model.name=clip_combiner"]
    functions = contract.build(config.load("base", overrides).model)
    params, image, text, _ = problem()
    got = functions.merged(params).combiner(image, text, None)
    assert got.dtype == np.float32
    difference = np.abs(np.asarray(got) - in_torch(params, image, text)[0]).max()
    assert 1e-5 < difference < 0.03


@pytest.mark.parametrize("dataset", ["fashioniq", "cirr"])
@pytest.mark.parametrize("stage", [1, 2])
def test_the_recipe(dataset, stage):
    c = config.load(f"clip_combiner:{dataset},stage={stage}")
    assert (c.model.name, c.model.tower, c.data.name) == ("clip_combiner", "RN50x4", dataset)
    assert (c.epochs, c.batch, c.optim.learning_rate) == (300, 4096, 2e-5)
    assert (c.loss.temperature, c.optim.epsilon, c.optim.weight_decay) == (0.01, 1e-8, 0.0)
    assert (c.optim.beta1, c.optim.beta2, c.optim.schedule) == (0.9, 0.999, "constant")
    assert (c.data.pad, c.data.target_ratio) == ("target", 1.25)
    with_positives = config.load(f"clip_combiner:{dataset},stage={stage},positives")
    sums = config.load(f"clip_sum:{dataset},stage={stage},positives")
    assert with_positives.data.generated == sums.data.generated != ()
