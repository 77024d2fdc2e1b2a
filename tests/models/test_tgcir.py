# SPDX-License-Identifier: Apache-2.0
"""TG-CIR: tokens, query and every loss against PyTorch; who trains when; its sizes and config."""

import copy
import math
import re

import jax
import numpy as np
import pytest
import torch

from cir_jax import config, contract
from cir_jax.convert import identify, tables
from cir_jax.convert.containers import tensors
from cir_jax.errors import UserError
from cir_jax.models.tgcir import model as tgcir
from cir_jax.runtime import mesh as meshes
from cir_jax.runtime import optim, sharding
from cir_jax.training import stage as stages
from tests.models import tgcir_problem as problem

BOUND = 1e-5  # largest difference, divided by the largest value where that is over 1


def close(got, want):
    want = want.detach().numpy()
    np.testing.assert_allclose(got, want, atol=BOUND * max(1, np.abs(want).max()))


@pytest.mark.parametrize("stage", [1, 2])
def test_tokens_query_and_target_are_those_of_torch(stage):
    """PyTorch is given all positions of the text, we are not: how it is padded changes nothing."""
    found, model = problem.weights(stage), problem.theirs(stage)
    got = problem.outputs(found.index, found.query)
    images, _, texts = problem.as_torch(*problem.triplets())
    with torch.no_grad():
        reference = model.image_tokens(images)
        close(got["reference"], reference)
        close(got["features"], model.text_tokens(texts))
        close(got["target"][:, 0], model.target(images))
        query = model.query(reference, texts)
    close(got["query"], query)
    assert got["reference"].shape == (4, 12, 32) and got["target"].shape == (4, 1, 32)
    # The comparison sees order and tree: masks last, or the other tree's, are something else.
    assert np.abs(np.roll(got["reference"], 8, axis=1) - reference.numpy()).max() > 0.1
    assert (np.abs(got["query of the index"] - query.numpy()).max() > 0.01) == (stage == 2)


@pytest.mark.parametrize("name", tgcir.AUXILIARY)
def test_every_loss_is_that_of_torch(name):
    ours = problem.outputs(problem.weights().index, problem.weights().query)["losses"]
    assert ours.keys() == tgcir.AUXILIARY.keys()
    model = problem.theirs(1, 0.05 if name == "sharp_matching" else 0.1)
    images, targets, texts = problem.as_torch(*problem.triplets())
    with torch.no_grad():
        theirs = model.batch_losses(images, texts, targets)
    want = float(theirs["matching" if name == "sharp_matching" else name])
    assert ours[name].shape == (4,) and ours[name].dtype == np.float32
    assert float(ours[name].mean()) == pytest.approx(want, rel=BOUND)
    assert want > 0.01 and np.ptp(ours[name]) > 1e-3  # not solved, and one per example


def test_training_and_fuse_give_what_the_three_methods_give():
    functions, params = problem.functions(), problem.weights().query
    got = problem.outputs(params, params)
    query, rows = got["training"]
    np.testing.assert_allclose(query, got["query"], atol=1e-6)
    fused = jax.jit(lambda *x: functions.fuse(params, *x, None))(got["reference"], got["features"])
    np.testing.assert_allclose(fused, got["query"], atol=1e-6)
    _, target, text = problem.triplets()
    other = problem.theirs().target(problem.as_torch(target, target, text)[0])
    close(rows[:, 0], other)


def stage_one():
    """(our gradients of the published loss of FashionIQ, PyTorch's model after its backward)."""
    changes = [f"model.tower={problem.TOWER}", f"model.context={problem.CONTEXT}",
               "model.dtype=float32", "batch=4"]  # fmt: skip
    loaded = config.load("tgcir:fashioniq,stage=1", changes)
    functions, mesh = problem.functions(), meshes.make(1, 1, jax.devices()[:1])
    stage = stages.load(loaded.stage).Stage.from_config(loaded, functions, mesh)
    reference, target, text = problem.triplets()
    batch = {"reference_pixels": reference, "target_pixels": target, "text": text}
    start = problem.weights().query | {stages.TEMPERATURE: np.float32(problem.TEMPERATURE)}

    def loss(params):
        return stage.loss(functions, params, params, batch, None, jax.random.key(0))[0].mean()

    quick = {"xla_backend_optimization_level": 0}
    got = jax.jit(jax.grad(loss)).lower(start).compile(quick)(start)
    model = copy.deepcopy(problem.theirs())
    images, targets, texts = problem.as_torch(reference, target, text)
    weights = {"contrastive": 1, "teacher_ranking": 1, "mask_constraint": 1, "orthogonality": 0.1,
               "mask_distillation": 10, "matching": 0.5}  # fmt: skip
    terms = model.batch_losses(images, texts, targets)
    sum(weights[name] * x for name, x in terms.items()).backward()
    return got, model


def test_gradients_of_stage_one_are_those_of_torch():
    """Of the whole published loss: what a teacher must not move stands still on both sides."""
    got, model = stage_one()
    functions = problem.functions()
    layout = next(x for x in identify.layouts("tgcir") if x.name == "tgcir")
    table = tables.expand(layout.rules(functions.config), functions.abstract)
    grads = {name: x.grad for name, x in model.named_parameters() if x.grad is not None}
    assert table.keys() - grads.keys() == {"backbone.clip.logit_scale"}
    grads["backbone.clip.logit_scale"] = torch.zeros(())
    held = {name: tensors.of(grads[name].numpy()) for name in table}
    want = tables.fill(table, functions.abstract, held, "PyTorch")
    for path, x in want.items():
        if path.endswith("/key/bias"):  # zero but for rounding: attention does not change by it
            limit = 1e-4 * np.linalg.norm(want[path.replace("/key/", "/value/")])
            assert max(np.linalg.norm(side) for side in (got[path], x)) < limit, path
            continue
        size = np.linalg.norm(x)
        assert path == "logit_scale" or size > 1e-5, path
        assert np.linalg.norm(got[path] - x) <= 2e-5 * size, path
    # tau = 1 / T, so dT = -dtau / tau^2.
    scale = float(-got[stages.TEMPERATURE]) * problem.TEMPERATURE**2
    assert scale == pytest.approx(float(model.loss_T.grad), rel=1e-4)


def test_masks_start_on_their_own_quarter():
    masks = np.asarray(tgcir._masks(32))
    want = np.kron(np.eye(4), np.ones(8)) * 0.9 + 0.1
    np.testing.assert_allclose(masks, want, atol=1e-7)
    assert tgcir._masks(30).shape == (4, 30) and tgcir._masks(30)[3, 28:] == pytest.approx(0.1)


def test_gates_compute_in_the_type_of_the_config():
    params = problem.weights().query
    tokens = np.random.default_rng(0).normal(size=(2, 3, 12, 32)).astype(np.float32)
    queries = [
        problem.functions(dtype=dtype).fuse(params, *tokens, None)
        for dtype in ("float32", "bfloat16")
    ]
    assert {x.dtype for x in queries} == {np.dtype(np.float32)}
    assert 1e-5 < np.abs(queries[0] - queries[1]).max() < 0.02


def counted(functions, regex):
    return sum(math.prod(x.shape) for p, x in functions.abstract.items() if re.fullmatch(regex, p))


def test_sizes_of_the_published_one():
    functions = problem.functions("ViT-B/16", 0)
    clip = r"(visual|text)/.*|logit_scale"
    shared = r"token_learner/.*|masks"
    assert counted(functions, clip) == 149_620_737
    parts = {
        "image_projection/.*": 393_728, "text_projection/.*": 262_656, "token_weights": 12,
        "(gate|teacher_keep|teacher_replace)/.*": 3 * 525_313, "token_learner/.*": 4_104,
        "masks": 2_048,
    }  # fmt: skip
    assert {regex: counted(functions, regex) for regex in parts} == parts
    # The published network holds what images and texts share twice.
    assert counted(functions, ".*") + counted(functions, shared) == 151_865_376
    assert functions.reference_shape == (12, 512) and functions.target_shape == (1, 512)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_who_trains(number):
    functions = problem.functions("ViT-B/16", 0)
    loaded = config.load(f"tgcir:cirr,stage={number}")
    stage = stages.load(loaded.stage).Stage.from_config(loaded, functions, meshes.make(8))
    trained = {p for p in stages.trainable(stage, functions) if p in functions.abstract}
    if number < 2:
        teacher = {p for p in functions.abstract if p.startswith(("teacher_", "token_weights"))}
        assert set(functions.abstract) - trained == ({"logit_scale"} if number else teacher)
        return
    assert sum(math.prod(functions.abstract[p].shape) for p in trained) == 64_222_217
    assert trained == set(functions.query_paths)  # all of them receive a gradient
    both = trained & set(functions.index_paths)
    assert both == {"masks", "token_learner/kernel", "token_learner/bias"}


def test_every_matrix_is_sharded_and_the_query_is_the_same():
    functions, mesh = problem.functions(), meshes.make(data=2, model=4)
    places = sharding.parameter_shardings(functions, mesh)
    whole = {p for p, s in places.items() if p.endswith("kernel") and not any(s.spec)}
    assert whole == {"token_learner/kernel"}
    params = problem.weights().query
    tokens = np.random.default_rng(0).normal(size=(2, 4, 12, 32)).astype(np.float32)
    fuse = jax.jit(lambda params, a, b: functions.fuse(params, a, b, None))
    rows = jax.device_put(tuple(tokens), meshes.batch_sharding(mesh))
    got = fuse(sharding.place(params, places), *rows)
    np.testing.assert_allclose(got, fuse(params, *tokens), atol=2e-6)


def test_a_resnet_is_refused():
    with pytest.raises(UserError, match=r"model.tower='RN50' is a ResNet, but tgcir .* ViT-B/16"):
        problem.functions("RN50")


@pytest.mark.parametrize("dataset", ["fashioniq", "cirr"])
@pytest.mark.parametrize("stage", [1, 2])
def test_the_recipe(dataset, stage):
    c = config.load(f"tgcir:{dataset},stage={stage},positives")
    assert (c.model.name, c.model.tower, c.data.name) == ("tgcir", "ViT-B/16", dataset)
    assert (c.data.pad, c.eval.reference, c.optim.weight_decay) == ("none", "kept", 0.01)
    assert "extend_tgcir" in c.data.generated[0] and c.optim.schedule == "constant"
    if stage == 1:
        assert (c.epochs, c.batch, c.optim.learning_rate, c.optim.epsilon) == (30, 64, 1e-4, 1e-8)
        assert (c.loss.temperature, c.loss.learn_temperature) == (0.1, True)
        return
    assert (c.epochs, c.batch, c.optim.learning_rate, c.optim.epsilon) == (5, 256, 2e-5, 1e-7)
    assert c.loss.temperature == {"fashioniq": 0.02, "cirr": 0.01}[dataset]
    assert not (c.loss.learn_temperature or c.loss.auxiliary or c.optim.drops)


def test_rates_of_stage_one():
    c = config.load("tgcir:fashioniq,stage=1")
    per_epoch = 281
    rate = optim.schedule(c.optim, 30 * per_epoch)
    epochs = [float(rate(epoch * per_epoch)) for epoch in range(30)]
    assert epochs == pytest.approx([1e-4] * 4 + [1e-5] * 5 + [1e-6] * 21)
    assert float(rate(4 * per_epoch - 1)) == pytest.approx(1e-4)
    # A step of tau that the optimizer makes, beside those of a gate and of an encoder.
    trained = {"visual/proj": 0.5, "gate/fc2/bias": 0.5, stages.TEMPERATURE: 0.1}
    trained = {path: np.float32(x) for path, x in trained.items()}
    optimizer = optim.build(c.optim, trained, 30 * per_epoch)
    ones = jax.tree.map(np.ones_like, trained)
    updates, _ = optimizer.update(ones, optimizer.init(trained), trained)
    assert float(updates["gate/fc2/bias"]) == pytest.approx(-1e-4, rel=0.01)
    assert float(updates["visual/proj"]) == pytest.approx(-1e-5, rel=0.01)
    assert float(updates[stages.TEMPERATURE]) == pytest.approx(-1e-6, rel=0.01)
    for drops, shown in (("4", r"\(4,\)"), ("half", r"\('half',\)")):
        message = rf"optim.drops={shown} is out of range; each number must be above 0 and below 1"
        with pytest.raises(UserError, match=message):
            config.load("tgcir:cirr,stage=1", [f"optim.drops={drops}"])


def test_emoji_and_quicktest_are_tiny():
    for name in ("emoji", "quicktest"):
        c = config.load(f"tgcir:{name},stage=1")
        assert (c.model.name, c.model.tower) == ("tgcir", "tiny-vit") and c.loss.auxiliary
        assert contract.build(c.model).reference_shape == (12, 96)
