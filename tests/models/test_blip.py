# SPDX-License-Identifier: Apache-2.0
"""BLIP4CIR: vision tokens, target and query against transformers; padding, roles, size, config."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from cir_jax import config, contract
from cir_jax.convert import importing
from cir_jax.data import tokens
from cir_jax.errors import UserError
from cir_jax.runtime import mesh as meshes
from cir_jax.runtime import sharding
from cir_jax.training import stage as stages
from tests.convert import blip_files
from tools.torch_models import blip as torch_blip

PIXELS = np.random.default_rng(0).normal(size=(3, 24, 24, 3)).astype(np.float32)
TEXTS = ["is darker and has, no", "red", "a long one with sleeves"]


@pytest.fixture(scope="module")
def params(tmp_path_factory):
    """Our parameters of the shared model of transformers, by way of a stage one file."""
    path = tmp_path_factory.mktemp("blip") / "stage1.pt"
    torch.save({"BLIP_Retrieval": blip_files.state(blip_files.shared())}, path)
    return jax.device_put(importing.read(path, blip_files.functions()).query)


def ids(length):
    tokenizer = tokens.load("bert_enc")
    return tokens.table(TEXTS, tokenizer).rows(slice(None), length)


def test_every_layer_target_and_query_equal_transformers(params):
    functions, text = blip_files.functions(), ids(10)
    released = torch_blip.renamed(blip_files.as_released(blip_files.shared())["state_dict"])
    model = torch_blip.build(blip_files.SIZE, released, blip_files.CONTEXT)
    want = torch_blip.trace(model, PIXELS, text)
    got = torch_blip.ours(functions, params, PIXELS, text)
    assert want.keys() == got.keys() and len(want) == 3 + 3 + 3
    for name, value in want.items():
        assert value.any(), name
        np.testing.assert_allclose(got[name], value, atol=1e-5, err_msg=name)
    assert got["reference"].shape == (3, 10, 64) == (3, *functions.reference_shape)
    assert got["target"][:, None].shape == (3, *functions.target_shape)
    assert got["query"].dtype == jnp.float32 and (text[:, 0] == 30523).all()


def test_the_padded_length_does_not_change_the_query(params):
    functions = blip_files.functions()
    reference = jax.jit(functions.reference)(params, PIXELS, ids(8))
    compose = jax.jit(functions.compose)
    short, long = compose(params, reference, ids(8)), compose(params, reference, ids(12))
    np.testing.assert_allclose(short, long, atol=1e-6)
    one = compose(params, reference[1:2], ids(3)[1:2])  # [ENC] red [SEP], alone
    np.testing.assert_allclose(one, long[1:2], atol=1e-6)


def test_dropout_is_that_of_the_config(params):
    dropping, key = blip_files.functions(dropout=0.1), jax.random.key(1)
    reference = np.random.default_rng(0).normal(size=(2, 10, 64)).astype(np.float32)
    plain = jax.jit(blip_files.functions().compose)(params, reference, ids(10)[:2], key)
    found = jax.jit(dropping.compose)(params, reference, ids(10)[:2], key)
    assert np.abs(plain - found).max() > 1e-3
    assert "random_bits" not in str(
        jax.make_jaxpr(dropping.compose)(params, reference, ids(10)[:2])
    )


@pytest.mark.parametrize("train_image", [False, True])
def test_who_trains_when(train_image):
    changes = [f"model.train_image={train_image}", "model.name=blip", "model.tower=blip-base"]
    loaded = config.load("base", [*changes, "loss.learn_temperature=true"])
    functions = contract.build(loaded.model)
    sizes = {p: math.prod(x.shape) for p, x in functions.abstract.items()}
    # The published class counts its temperature too, which is a leaf of the stage here.
    assert sum(sizes.values()) + 1 == 223_742_721
    assert functions.reference_shape == (577, 768) and functions.target_shape == (1, 256)
    image = {p for p in sizes if p.startswith(("visual/", "vision_proj/"))}
    for name in ("one_in_batch", "two_bank"):
        stage = stages.load(name).Stage.from_config(loaded, functions, meshes.make(8))
        trained = set(stages.trainable(stage, functions)) - {stages.TEMPERATURE}
        both = train_image and name == "one_in_batch"
        assert trained == (set(sizes) if both else set(sizes) - image)
        if not both:
            assert sum(sizes[p] for p in trained) + 1 == 137_455_361
    assert set(functions.index_paths) == image and not image.intersection(functions.query_paths)


def test_no_stage_zero():
    loaded = config.load("blip:emoji", ["model.tower=tiny-blip"])
    functions = contract.build(loaded.model)
    with pytest.raises(UserError, match="'blip' has no 'logit_scale' parameter, so stage zero"):
        stages.load("zero_image_text").Stage.from_config(loaded, functions, meshes.make(8))


def test_every_matrix_is_sharded():
    functions = blip_files.functions("blip-base", context=0)
    places = sharding.parameter_shardings(functions, meshes.make(data=2, model=4))
    whole = {p for p, s in places.items() if not any(s.spec)}
    kernels = {p for p in places if p.endswith(("kernel", "words"))}
    assert not whole & kernels and len(kernels) == 20


def test_another_size_of_image():
    functions = blip_files.functions("blip-base", image=224, context=0)
    assert functions.image_size == 224 and functions.reference_shape == (197, 768)
    with pytest.raises(UserError, match=r"an image of 230 pixels does not divide into patches of"):
        blip_files.functions("blip-base", image=230)
    with pytest.raises(UserError, match=r"no tower 'blip-bas' of BLIP; .*Did you mean 'blip-base'"):
        blip_files.functions("blip-bas")
    with pytest.raises(UserError, match=r"text width 30 does not divide into 4 heads"):
        blip_files.functions("vit-24-8-w32-l2-h2_med-w30-l2-h4_d16")
    with pytest.raises(UserError, match=r"model.dtype='float16' is unknown; use auto, float32"):
        contract.build(config.load("blip:emoji", ["model.dtype=float16"]).model)


@pytest.mark.parametrize("dataset", ["fashioniq", "cirr"])
def test_the_recipe_of_stage_two(dataset):
    c = config.load(f"blip:{dataset},stage=2")
    assert (c.model.name, c.model.tower, c.data.name) == ("blip", "blip-base", dataset)
    epochs, rate, tau = {"fashioniq": (10, 5e-6, 0.03), "cirr": (3, 6e-6, 0.02)}[dataset]
    assert (c.epochs, c.batch, c.optim.learning_rate) == (epochs, 128, rate)
    assert (c.loss.temperature, c.loss.learn_temperature) == (tau, True)
    assert (c.optim.epsilon, c.optim.weight_decay, c.optim.schedule) == (1e-7, 0.01, "constant")
    assert (c.data.pad, c.data.target_ratio, c.model.dropout) == ("target", 1.25, 0.0)
    assert c.eval.reference == ("kept" if dataset == "fashioniq" else "removed")
    positives = config.load(f"blip:{dataset},stage=2,positives")
    assert [name.rpartition("extend_")[2] for name in positives.data.generated] == [
        "blip.train.json" if dataset == "fashioniq" else "blip.json"
    ]


@pytest.mark.parametrize("dataset", ["fashioniq", "cirr"])
def test_the_recipe_of_stage_one(dataset):
    c = config.load(f"blip:{dataset},stage=1")
    assert (c.batch, c.optim.learning_rate, c.optim.schedule) == (512, 2e-5, "cosine")
    assert (c.loss.temperature, c.loss.learn_temperature) == (0.07, True)
    assert (c.optim.epsilon, c.optim.weight_decay) == (1e-8, 0.05)
    assert (c.model.dropout, c.model.train_image, c.data.pad) == (0.1, False, "target")
    assert c.batch % c.loss.chunk == 0
