# SPDX-License-Identifier: Apache-2.0
"""Laws that hold for every model: a new one is tested by being in MODELS."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cir_jax import contract as models
from cir_jax.bank import bank as banks
from cir_jax.data import packing, tokens
from cir_jax.errors import UserError
from cir_jax.losses import in_bank
from cir_jax.runtime import mesh as meshes
from cir_jax.runtime import optim, sharding
from cir_jax.training import stage as stages
from cir_jax.training import step
from tests import runs

MODELS = (*runs.TOWERS, "cross_attention", "sprc_shaped")
# Of laws about blocks and chunks, which are the same code for every model: those that compile soon,
# without the weighted sum, whose rows and towers are those of the sum.
SOON = tuple(model for model in MODELS if model not in ("gemma_embedding", "clip_weighted"))
WITH_LOSSES = ("tgcir", "sprc")  # of their own, for stage one
WITHOUT_STAGE_ZERO = ("blip", "sprc", "gemma_embedding", "sprc_shaped")
STAGES = ("zero_image_text", "one_in_batch", "two_bank")
# The first law over every number of devices where an update is small; elsewhere over the batch
# alone and over both axes.
MESHES = ((2, 1), (4, 1), (8, 1), (2, 4))
FEW = ((4, 1), (2, 4))
LAST = FEW[-1:]
ON_LAST = ("gemma_embedding", "clip_weighted")  # whose parts the others have too
ON_ALL = ("clip_sum", "cross_attention", "sprc_shaped")
# Parameters split over "data" as well: (model, stage) -> mesh.
FSDP = {
    ("sprc_shaped", "two_bank"): (4, 2),
    ("clip_sum", "one_in_batch"): (4, 1),
}
ROWS = 24
BATCH = 8


@functools.cache
def built(model):
    """(functions, parameters) of a model: the same for every stage and mesh."""
    functions = models.build(runs.tiny("unused", "unused", model=model).model)
    return functions, {p: np.asarray(x) for p, x in functions.init(0).items()}


def prepared(model, stage, shape=(1, 1), *changes):
    """(functions, stage, mesh, parameters, batch, bank) of a random problem."""
    # With a small epsilon Adam's first step is a sign, and gradients that are zero but for rounding
    # (the bias of attention keys) would flip it.
    changes = ("optim.epsilon=1e-3", *changes)
    config = runs.tiny("unused", "unused", *changes, model=model, stage=STAGES.index(stage))
    mesh = meshes.make(*shape, jax.devices()[: shape[0] * shape[1]])
    functions, params = built(model)
    made = stages.load(stage).Stage.from_config(config, functions, mesh)
    rng = np.random.default_rng(3)
    side = functions.image_size
    tokenizer = functions.inputs.tokenizer
    text = np.zeros((BATCH, 16), np.int32)
    text[:, :6] = rng.integers(1, 30000, (BATCH, 6))
    text[:, 0], text[:, 5] = tokenizer.start or 1, tokenizer.end
    if mark := getattr(tokenizer.backend, "image", None):  # where the image of a text goes
        text[:, 1] = mark
    batch = {
        "text": text,
        "reference_pixels": rng.integers(0, 256, (BATCH, side, side, 3)).astype(np.uint8),
        "target_pixels": rng.integers(0, 256, (BATCH, side, side, 3)).astype(np.uint8),
        "reference_id": rng.integers(0, ROWS, BATCH).astype(np.int32),
        "target_id": rng.permutation(ROWS)[:BATCH].astype(np.int32),
        "reference_row": 2 * np.arange(BATCH, dtype=np.int32),
        "text_id": np.arange(BATCH, dtype=np.int32),
        "source_id": np.zeros(BATCH, np.int32),
    }
    (r, c), (k, d) = functions.reference_shape, functions.target_shape
    targets = rng.normal(size=(ROWS - 1, k, d)).astype(np.float32)
    targets /= np.linalg.norm(targets, axis=-1, keepdims=True)
    references = rng.normal(size=(ROWS - 1, r, c)).astype(np.float32)
    batch["target_id"] %= ROWS - 1
    batch["reference_id"] %= ROWS - 1
    bank = banks.place({"targets": targets, "references": references}, mesh)
    return functions, made, mesh, params, batch, bank, config


def placed(batch, mesh):
    return jax.device_put(batch, meshes.batch_sharding(mesh))


def one_update(model, stage, shape, fsdp=False, text=None):
    functions, made, mesh, params, batch, bank, config = prepared(model, stage, shape)
    batch |= {} if text is None else {"text": text}
    functions = dataclasses.replace(functions, fsdp=mesh if fsdp else None, mesh=mesh)
    places = sharding.parameter_shardings(functions, mesh)
    paths = stages.trainable(made, functions)
    if fsdp:
        on_data = [p for p in paths if "data" in jax.tree.leaves(tuple(places[p].spec))]
        assert len(on_data) > len(paths) / 2
    trained = sharding.place({p: params[p] for p in paths}, places)
    fixed = sharding.place(params, places)
    optimizer = optim.build(config.optim, paths, 10)
    update = step.make(made, functions, optimizer, 1)
    key = jax.random.key(1)
    trained, _, values = update(
        trained, optimizer.init(trained), fixed, placed(batch, mesh), bank, key
    )
    return {p: np.asarray(x) for p, x in trained.items()}, params, float(values["loss"])


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("model", MODELS)
def test_one_update_is_the_same_on_any_mesh(model, stage, monkeypatch):
    if stage == "zero_image_text" and model in WITHOUT_STAGE_ZERO:
        with pytest.raises(UserError, match="no 'logit_scale' parameter, so stage zero makes no"):
            prepared(model, stage)
        return
    want, start, loss = one_update(model, stage, (1, 1))
    assert max(np.abs(want[p] - start[p]).max() for p in want) > 1e-4
    shapes = MESHES if model in ON_ALL else LAST if model in ON_LAST else FEW
    # Stage zero is the same code for every model.
    cases = [(shape, False) for shape in (shapes if stage != "zero_image_text" else shapes[-1:])]
    if (model, stage) in FSDP:
        monkeypatch.setattr(sharding, "LEAST", 1)  # tiny matrices too
        cases.append((FSDP[model, stage], True))
    for shape, fsdp in cases:
        got, _, other = one_update(model, stage, shape, fsdp)
        assert other == pytest.approx(loss, rel=2e-5)
        for path in want:
            # Adam's first step is a sign: a gradient of rounding size may flip it.
            close = np.isclose(want[path], got[path], atol=2e-5, rtol=1e-4)
            assert close.mean() > 0.999, (path, shape, fsdp)


@pytest.mark.parametrize(
    "model, stage, shape, fsdp",
    [("clip_combiner", "two_bank", (2, 4), False), ("clip_sum", "one_in_batch", (4, 1), True)],
)
def test_an_update_of_packed_texts_is_that_of_padded_ones(model, stage, shape, fsdp, monkeypatch):
    """On any mesh: texts go where there is room, and their features back to their rows. Dropout of
    the Combiner is that of a row, wherever its text was encoded."""
    rng = np.random.default_rng(5)
    padded = np.zeros((BATCH, 24), np.int32)
    for row, length in zip(padded, (24, 2, 9, 5, 2, 17, 3, 11), strict=True):
        row[:length] = [49406, *rng.integers(1, 30000, length - 2), 49407]
    texts = [row[: np.argmax(row) + 1] for row in padded]
    start = np.concatenate([[0], np.cumsum([len(text) for text in texts])])
    every = tokens.TokenTable(np.concatenate(texts), start, 77, 0)
    packed = packing.pack(texts, packing.Sizes.of(every, BATCH, shape[0], (24,)), 0)
    assert packed.order.tolist() != list(range(BATCH)) and packed.tokens.size < padded.size
    monkeypatch.setattr(sharding, "LEAST", 1)
    want, _, loss = one_update(model, stage, (1, 1), text=padded)
    got, _, other = one_update(model, stage, shape, fsdp, packed)
    assert other == pytest.approx(loss, rel=2e-6)
    for path in want:
        np.testing.assert_allclose(got[path], want[path], atol=2e-5, err_msg=path)


@pytest.mark.parametrize("model", MODELS)
def test_bank_of_the_batch_gives_the_stage_one_loss(model):
    functions, one, mesh, params, batch, _, config = prepared(model, "one_in_batch", (2, 1))
    two = stages.load("two_bank").Stage.from_config(config, functions, mesh)
    targets = functions.target(params, batch["target_pixels"])
    references = functions.reference(params, batch["reference_pixels"], batch["text"])
    bank = banks.place({"targets": np.asarray(targets), "references": np.asarray(references)}, mesh)
    rows = np.arange(BATCH, dtype=np.int32)
    batch = placed(batch | {"reference_row": rows, "target_id": rows}, mesh)
    functions = without_dropout(functions)
    key = jax.random.key(0)
    want, _ = jax.jit(lambda p: one.loss(functions, p, p, batch, None, key))(params)
    got, _ = jax.jit(lambda p, b: two.loss(functions, p, p, batch, b, key))(params, bank)
    np.testing.assert_allclose(want, got, rtol=2e-5, atol=1e-5)


class without_dropout:
    """The functions of a model, with the dropout keys taken away."""

    def __init__(self, functions):
        self._functions = functions

    def __getattr__(self, name):
        return getattr(self._functions, name)

    def reference(self, params, pixels, text, key=None):
        return self._functions.reference(params, pixels, text)

    def target(self, params, pixels, key=None):
        return self._functions.target(params, pixels)

    def reference_and_target(self, params, reference_pixels, target_pixels, text, keys):
        return self._functions.reference_and_target(params, reference_pixels, target_pixels, text)

    def compose(self, params, reference, text, key=None):
        return self._functions.compose(params, reference, text)

    def training(self, params, reference_pixels, target_pixels, text, key):
        return self._functions.training(params, reference_pixels, target_pixels, text, None)


@pytest.mark.parametrize("model", MODELS)
def test_gradients_of_stage_two_reach_the_query_side_only(model):
    functions, two, mesh, params, batch, bank, _ = prepared(model, "two_bank", (2, 1))
    batch = placed(batch, mesh)

    def loss(query, index):
        return two.loss(functions, query, index, batch, bank, jax.random.key(0))[0].mean()

    by_query, by_index = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, params)
    assert all(not np.any(g) for g in by_index.values())
    moved = {p for p, g in by_query.items() if np.any(g)}
    query = {p for p, role in functions.roles.items() if role == "query"}
    assert moved & query and not any(functions.roles[p] == "index" for p in moved - query)


@pytest.mark.parametrize("model", SOON)
def test_bank_loss_by_blocks_is_the_plain_one_at_the_rows_of_each_model(model):
    functions, two, mesh, params, batch, bank, _ = prepared(model, "two_bank", (2, 1))
    batch, functions = placed(batch, mesh), without_dropout(functions)
    targets = bank.targets.reshape(-1, *functions.target_shape)
    got, _ = two.loss(functions, params, params, batch, bank, jax.random.key(0))
    reference = bank.references[batch["reference_row"]].reshape(-1, *functions.reference_shape)
    query = functions.compose(params, reference, batch["text"])
    want = in_bank.bank_loss_plain(
        query, targets, batch["target_id"], two.temperature, rows=bank.rows
    )
    np.testing.assert_allclose(got, want, rtol=2e-5)


@pytest.mark.parametrize("model", WITH_LOSSES)
def test_auxiliary_losses_come_with_the_query_and_the_targets_of_the_model(model):
    functions, _, _, params, batch, _, _ = prepared(model, "one_in_batch")
    pixels = models.normalize(batch["reference_pixels"]), models.normalize(batch["target_pixels"])
    query, targets, _ = functions.merged(params).training(*pixels, batch["text"], None)
    reference = functions.reference(params, batch["reference_pixels"], batch["text"])
    want = functions.compose(params, reference, batch["text"])
    np.testing.assert_allclose(query, want, atol=1e-5)
    np.testing.assert_allclose(targets, functions.target(params, batch["target_pixels"]), atol=1e-5)


@pytest.mark.parametrize("model", WITH_LOSSES)
def test_auxiliary_losses_are_those_of_the_whole_batch_under_gradient_caching(model):
    names = models.build(runs.tiny("unused", "unused", model=model).model).module.AUXILIARY
    change = "loss.auxiliary=" + ",".join(f"{name}:0.5" for name in names)
    functions, whole, mesh, params, batch, _, _ = prepared(model, "one_in_batch", (2, 1), change)
    cached = prepared(model, "one_in_batch", (2, 1), change, "loss.chunk=4")[1]
    batch, functions = placed(batch, mesh), without_dropout(functions)
    found = []
    for stage in (whole, cached):

        def loss(p, stage=stage):
            return stage.loss(functions, p, p, batch, None, jax.random.key(0))

        found.append(jax.jit(loss)(params))
    (want, metrics), (got, _) = found
    np.testing.assert_allclose(want, got, rtol=1e-4)
    added = sum(0.5 * float(metrics[name]) for name in names)
    assert float(want.mean()) == pytest.approx(float(metrics["contrastive"]) + added, rel=1e-4)
    assert all(float(metrics[name]) > 0 for name in names)


@pytest.mark.parametrize("model", SOON)
def test_gradient_caching_is_exact(model):
    functions, whole, mesh, params, batch, _, _ = prepared(model, "one_in_batch", (2, 1))
    cached = prepared(model, "one_in_batch", (2, 1), "loss.chunk=4")[1]
    batch, functions = placed(batch, mesh), without_dropout(functions)

    def gradient(stage):
        def loss(p):
            return stage.loss(functions, p, p, batch, None, jax.random.key(0))[0].mean()

        return jax.jit(jax.value_and_grad(loss))(params)

    want, got = gradient(whole), gradient(cached)
    for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-6)


@pytest.mark.parametrize("model", ["blip", "sprc"])
def test_one_pass_over_reference_and_target_gives_what_two_give(model):
    """Of models whose image side may train; of all, the loss of stage one is made by this pass."""
    config = runs.tiny("unused", "unused", "model.train_image=true", model=model)
    functions = models.build(config.model)
    assert functions.passes_once
    _, _, _, params, batch, _, _ = prepared(model, "one_in_batch")
    pixels, text = (batch["reference_pixels"], batch["target_pixels"]), batch["text"]
    # Models with dropout have a key for each of the two.
    keys = jax.random.key(1), jax.random.key(2)
    reference, target = jax.jit(functions.reference_and_target)(params, *pixels, text, keys)
    want = jax.jit(functions.reference)(params, pixels[0], text, keys[0])
    np.testing.assert_allclose(reference, want, atol=2e-5)
    want = jax.jit(functions.target)(params, pixels[1], keys[1])
    np.testing.assert_allclose(target, want, atol=2e-5)


def test_a_model_that_overrides_a_part_of_another_is_passed_twice(tmp_path):
    """Else it would train what it has replaced."""
    mine = """
from cir_jax.models.clip_sum import *
from cir_jax.models import clip_sum

class Model(clip_sum.Model):
    def target(self, pixels):
        return -super().target(pixels)
"""
    (tmp_path / "mine.py").write_text(mine)
    config = runs.tiny("unused", "unused", model="clip_sum").model
    with config.unlocked():
        config.name = str(tmp_path / "mine.py")
    functions = models.build(config)
    assert not functions.passes_once and models.build(built("clip_sum")[0].config).passes_once
    _, _, _, params, batch, _, _ = prepared("clip_sum", "one_in_batch")
    pixels = batch["reference_pixels"], batch["target_pixels"]
    _, target = functions.reference_and_target(params, *pixels, batch["text"])
    np.testing.assert_array_equal(target, functions.target(params, pixels[1]))


def test_learned_temperature_is_a_trained_leaf():
    functions, two, _, params, batch, bank, _ = prepared(
        "cross_attention", "two_bank", (1, 1), "loss.learn_temperature=true"
    )
    assert stages.TEMPERATURE in stages.trainable(two, functions)
    query = params | {stages.TEMPERATURE: jnp.float32(0.1)}
    grads = jax.grad(
        lambda q: two.loss(functions, q, params, batch, bank, jax.random.key(0))[0].mean()
    )(query)
    assert grads[stages.TEMPERATURE] != 0


def test_sampled_negatives_of_a_whole_bank_equal_the_bank_loss():
    change = f"loss.bank_negatives={ROWS - 2}"
    functions, some, mesh, params, batch, bank, _ = prepared(
        "cross_attention", "two_bank", (2, 1), change
    )
    whole = prepared("cross_attention", "two_bank", (2, 1))[1]
    key = jax.random.key(0)
    want = whole.loss(functions, params, params, placed(batch, mesh), bank, key)[0]
    got = some.loss(functions, params, params, placed(batch, mesh), bank, key)[0]
    np.testing.assert_allclose(want, got, rtol=2e-5)


def test_errors():
    with pytest.raises(UserError, match=r"batch 8 does not split into chunks of loss.chunk=3"):
        prepared("clip_sum", "one_in_batch", (1, 1), "loss.chunk=3")
    with pytest.raises(UserError, match=r"loss.chunk 3 does not divide over 2 devices"):
        prepared("clip_sum", "one_in_batch", (2, 1), "loss.chunk=3")
    with pytest.raises(UserError, match=r"bank_negatives=-1 is out of range"):
        prepared("clip_sum", "two_bank", (1, 1), "loss.bank_negatives=-1")
    with pytest.raises(UserError, match=r"no 'tow_bank' in stages; there are: one_in_batch, two_b"):
        stages.load("tow_bank")
