# SPDX-License-Identifier: Apache-2.0
"""SPRC: its three functions and stage-one losses against PyTorch, what trains when, its config."""

import math

import jax
import numpy as np
import pytest
import torch

from cir_jax import config, contract
from cir_jax.errors import UserError
from cir_jax.losses import in_batch
from cir_jax.models import sprc
from cir_jax.runtime import mesh as meshes
from cir_jax.runtime import sharding
from cir_jax.training import stage as stages
from tests.convert import published_sprc as published

WEIGHT = 0.4  # of both auxiliary losses


def quick(function):
    """The same program, compiled in half the time: machine code is optimised less."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture(scope="module")
def problem():
    """(PyTorch's model, index tree, query tree, reference pixels, target pixels, text)."""
    model = published.network(second=True)
    return model, *jax.device_put(published.ours(model)), *published.examples()


@pytest.fixture(scope="module")
def compiled():
    functions = published.functions()
    return {name: quick(getattr(functions, name)) for name in ("reference", "target", "compose")}


def test_the_three_functions_are_the_published_ones(problem, compiled):
    model, index, query, first, second, text = problem
    images, targets, ids = published.in_torch(first, second, text)
    with torch.no_grad():
        prompts, rows = model.reference(images, ids), model.target(targets)
        composed = model.query(prompts, ids)
    got = compiled["reference"](index, first, text)
    assert got.shape == (4, 3, 24) and got.dtype == np.float32
    np.testing.assert_allclose(got, prompts, atol=1e-5)
    np.testing.assert_allclose(compiled["target"](index, second), rows, atol=1e-5)
    np.testing.assert_allclose(compiled["compose"](query, got, text), composed, atol=1e-5)
    # Prompts depend on the text, and what makes the query is not what made the prompts.
    assert np.abs(compiled["reference"](index, first, text[::-1]) - got).max() > 0.1
    assert np.abs(compiled["compose"](index, got, text) - composed.numpy()).max() > 0.05


def test_padding_changes_neither_prompts_nor_query(problem, compiled):
    _, index, query, first, _, text = problem

    def run(text):
        prompts = compiled["reference"](index, first, text)
        return prompts, compiled["compose"](query, prompts, text)

    longer = np.pad(text, ((0, 0), (0, 7)))
    for want, got in zip(run(text), run(longer), strict=True):
        np.testing.assert_allclose(got, want, atol=2e-6)


def test_stage_one_losses_and_gradients_are_the_published_ones(compiled):
    model = published.network(seed=1)
    first, second, text = published.examples(seed=1)
    losses = model.stage_one(*published.in_torch(first, second, text))
    total = losses["itc"] + WEIGHT * (losses["rtc"] + losses["align"])
    total.backward()
    grads = {n: p.grad for n, p in model.named_parameters()}
    idle = ("visual_encoder", "itm_head", "Qformer.cls.predictions.transform")
    assert all(grads[name] is None for name in grads if name.startswith(idle))
    held = {n: torch.zeros_like(p) if p.grad is None else p.grad
            for n, p in model.named_parameters(remove_duplicate=False)}  # fmt: skip
    params, functions = jax.device_put(published.ours(model)[0]), published.functions()

    def loss(params):
        query, targets, extras = functions.training(params, first, second, text, None)
        added = functions.auxiliary(params, query, targets, extras, 0.07)
        main = in_batch.in_batch_loss(query, targets, 0.07)
        parts = {"itc": main, **added}
        parts = {name: values.mean() for name, values in parts.items()}
        return parts["itc"] + WEIGHT * (parts["rtc"] + parts["align"]), (parts, query, targets)

    (_, (parts, query, targets)), got = quick(jax.value_and_grad(loss, has_aux=True))(params)
    # Without a key nothing is dropped, and training is the three functions.
    prompts = compiled["reference"](params, first, text)
    np.testing.assert_allclose(query, compiled["compose"](params, prompts, text), atol=2e-6)
    np.testing.assert_allclose(targets, compiled["target"](params, second), atol=2e-6)
    assert set(parts) == {"itc", *sprc.AUXILIARY}
    for name, want in losses.items():
        assert float(parts[name]) == pytest.approx(float(want.detach()), rel=1e-5)
    with torch.no_grad():
        for name, parameter in model.named_parameters(remove_duplicate=False):
            parameter.copy_(held[name])
    for path, want in published.ours(model)[0].items():
        if not path.startswith("visual/"):
            np.testing.assert_allclose(got[path], want, atol=2e-5 * max(1, np.abs(want).max()))
    assert np.abs(got["prompt_tokens"]).max() > 1e-4 and np.abs(got["query_tokens"]).max() > 1e-4


def test_dropout_needs_a_key_and_follows_it(problem):
    _, index, _, first, second, text = problem
    training = quick(published.functions().training)
    one, same, other = (training(index, first, second, text, jax.random.key(s)) for s in (0, 0, 1))
    for a, b, c in zip(*map(jax.tree.leaves, (one, same, other)), strict=True):
        np.testing.assert_array_equal(a, b)
        assert np.abs(a - c).max() > 1e-3


def test_parameter_counts_are_the_published_ones():
    functions = published.functions("blip2-vit-g")
    assert functions.reference_shape == (32, 768) and functions.target_shape == (32, 256)
    count = {path: math.prod(x.shape) for path, x in functions.abstract.items()}

    def total(*starts):
        return sum(n for path, n in count.items() if path.startswith(starts))

    assert total("visual/") == 985_894_528 == 25_248_768 * 39 + 1_192_576
    assert (total("norm_image"), total("query_tokens"), total("former/")) == (
        2_816, 24_576, 185_660_160
    )  # fmt: skip
    assert total("prompt_tokens") == 24_576
    assert total("image_projection") == total("text_projection") == 196_864
    # Released files also have the head that predicts words (but for its matrix, which is the word
    # table), the one that matches image and text, and the temperature.
    words, match, temperature = 622_651, 2 * 768 + 2, 1
    assert words == 768 * 768 + 768 + 2 * 768 + 30_523
    assert total("") + words + match + temperature == 1_172_624_574
    # What stage two trains: the text side of the Q-Former, its projection, the temperature.
    query = {path for path, role in functions.roles.items() if role == "query"}
    text_side = sum(count[path] for path in query if path.startswith("former/"))
    assert text_side == 108_890_880
    assert text_side + total("text_projection") + temperature == 109_087_745
    # The released optimizer holds more, without gradient: cross-attention, the MLPs for slots and
    # the head of the copied Q-Former.
    unused = sum(n for path, n in count.items() if "/cross/" in path or "/slot_mlp/" in path)
    assert text_side + unused + words + 196_864 + temperature == 186_479_676
    assert query == set(functions.query_paths)


@pytest.mark.parametrize("number, name", [(1, "one_in_batch"), (2, "two_bank")])
def test_what_trains_in_each_stage(number, name):
    loaded = config.load(f"sprc:cirr,stage={number}")
    functions = contract.build(loaded.model)
    stage = stages.load(name).Stage.from_config(loaded, functions, meshes.make(8))
    trained = set(stages.trainable(stage, functions))
    images = {path for path in functions.abstract if path.startswith("visual/")}
    assert stages.TEMPERATURE in trained and not trained & images
    rest = functions.abstract.keys() - images
    assert trained - {stages.TEMPERATURE} == (rest if number == 1 else set(functions.query_paths))
    assert ("prompt_tokens" in trained) == (number == 1)


def test_every_matrix_is_sharded():
    functions, mesh = published.functions("blip2-vit-g"), meshes.make(data=2, model=4)
    places = sharding.parameter_shardings(functions, mesh)
    whole = {path for path, place in places.items() if not any(place.spec)}
    large = {path for path in whole if math.prod(functions.abstract[path].shape) > 1e6}
    assert not large


@pytest.mark.parametrize("dataset, epochs, rate", [("fashioniq", 30, 2e-5), ("cirr", 50, 1e-5)])
def test_the_recipes(dataset, epochs, rate):
    one, two = (config.load(f"sprc:{dataset},stage={n},positives") for n in (1, 2))
    for c in (one, two):
        assert (c.model.tower, c.data.name, c.data.pad) == ("blip2-vit-g", dataset, "target")
        found = (c.optim.beta1, c.optim.beta2, c.optim.epsilon, c.optim.weight_decay)
        assert found == (0.9, 0.98, 1e-7, 0.05) and c.loss.learn_temperature
        assert c.eval.reference == "kept" and "blip2" in c.data.generated[0]
    assert (one.epochs, one.batch, one.optim.learning_rate) == (epochs, 128, rate)
    assert (one.loss.temperature, one.optim.schedule) == (0.07, "cosine")
    weight = {"fashioniq": "1", "cirr": "0.4"}[dataset]
    assert one.loss.auxiliary == (f"rtc:{weight}", f"align:{weight}")
    assert (two.epochs, two.batch, two.optim.learning_rate) == (3, 32, 1e-5)
    assert (two.loss.temperature, two.optim.schedule) == (0.05, "constant")
    assert (two.loss.references, two.loss.reference_text) == ("disk", "per_triplet")


def test_an_encoder_that_starts_at_random_can_train():
    changed = config.load("sprc:cirr,stage=1", ["model.train_image=true"]).model
    roles = contract.build(changed).roles
    assert {role for path, role in roles.items() if path.startswith("visual/")} == {"index"}


def test_errors():
    with pytest.raises(UserError, match=r"sprc has no stage 0: before its stage one comes the pre"):
        config.load("sprc:cirr,stage=0")
    with pytest.raises(UserError, match=r"model.image_size=32, but tower 'tiny-blip2' takes 64"):
        contract.build(config.load("sprc:quicktest", ["model.image_size=32"]).model)
    with pytest.raises(UserError, match=r"model.dtype='float16' is unknown; use auto"):
        contract.build(config.load("sprc:quicktest", ["model.dtype=float16"]).model)
