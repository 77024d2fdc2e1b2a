# SPDX-License-Identifier: Apache-2.0
"""The towers of SigLIP against transformers, layer by layer; their full sizes without memory."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import SiglipModel

from cir_jax import config as configs
from cir_jax import contract
from cir_jax import weights as runs
from cir_jax.convert import importing, tables
from cir_jax.errors import UserError
from cir_jax.losses.sigmoid import sigmoid_loss_plain
from cir_jax.runtime import mesh, sharding
from cir_jax.towers import encoders
from cir_jax.towers.layers import unit
from cir_jax.towers.siglip import huggingface, sizes, weight_rules
from tests import siglip_folders
from tests.towers import weights


@pytest.fixture(scope="module")
def theirs():
    return siglip_folders.model()


@pytest.fixture(scope="module")
def ours(theirs, tmp_path_factory):
    """(the model's functions, its parameters), read from a folder of transformers."""
    folder = siglip_folders.write(tmp_path_factory.mktemp("siglip"), theirs=theirs)
    changes = [f"init_from={folder}", "model.tower=auto", "model.dtype=float32"]
    config = runs.resolve(configs.load("base", changes))
    functions = contract.build(config.model)
    read = importing.read(folder, functions).query
    return functions, {path: jnp.asarray(x) for path, x in read.items()}


def batch(count=3, length=16):
    rng = np.random.default_rng(1)
    pixels = rng.normal(size=(count, 32, 32, 3)).astype(np.float32)
    return pixels, rng.integers(4, 120, (count, length)).astype(np.int32)


def close(got, want):
    np.testing.assert_allclose(got, want.numpy(), rtol=3e-6, atol=1e-5)


def test_every_layer_equals_torch_within_1e5(theirs, ours):
    functions, params = ours
    towers = functions.merged(params)
    pixels, ids = batch()
    with torch.no_grad():
        shown = torch.from_numpy(pixels.transpose(0, 3, 1, 2))
        image = theirs.vision_model(shown, output_hidden_states=True)
        text = theirs.text_model(torch.from_numpy(ids.astype(np.int64)), output_hidden_states=True)
        last = theirs.vision_model.post_layernorm(image.hidden_states[-1])
    for tower, want in ((towers.visual, image), (towers.text, text)):
        x = jnp.asarray(want.hidden_states[0].numpy())
        for number in range(2):
            x = jax.jit(weights.layer(tower.blocks, number).__call__)(x)
            close(x, want.hidden_states[number + 1])
    positions = jax.jit(towers.visual.tokens)(pixels)
    close(positions, image.hidden_states[-1])
    close(towers.visual.norm_out(positions), last)
    close(jax.jit(towers.visual.feature)(positions), image.pooler_output)
    every = jax.jit(towers.text.tokens)(ids)
    close(every, text.last_hidden_state)
    close(towers.text.feature(every, ids), text.pooler_output)


def test_a_short_text_is_filled_up_with_what_it_was_trained_with(ours):
    functions, params = ours
    text = jax.jit(functions.merged(params).text.__call__)
    ids = batch()[1][:, :7]
    full = np.pad(ids, ((0, 0), (0, 9)), constant_values=functions.inputs.encoder.rules.pad)
    np.testing.assert_allclose(text(ids), text(full), atol=1e-6)
    assert not np.allclose(text(ids), text(np.where(full == 0, 5, full)), atol=1e-3)
    with pytest.raises(UserError, match="text of 17 tokens is over the context of 16"):
        text(np.zeros((1, 17), np.int32))


def test_the_loss_of_pretraining_is_that_of_transformers(theirs, ours):
    functions, params = ours
    pixels, ids = batch()
    with torch.no_grad():
        shown = torch.from_numpy(pixels.transpose(0, 3, 1, 2))
        texts = torch.from_numpy(ids.astype(np.int64))
        want = theirs(input_ids=texts, pixel_values=shown, return_loss=True).loss

    @jax.jit
    def loss(params):
        towers = functions.merged(params)
        text, image = unit(towers.text(ids)), unit(towers.visual(pixels))
        tau = jnp.exp(-params["logit_scale"])
        return sigmoid_loss_plain(text, image[:, None], tau, params["logit_bias"]).mean()

    got = loss(params)
    assert float(got) == pytest.approx(float(want), rel=1e-5)


# Parameters of the released weights.
COUNTS = {
    "SigLIP-B/16-224": 203_155_970,
    "SigLIP-L/16-256": 652_150_786,
    "SigLIP-So400m/14-384": 877_960_498,
    "SigLIP2-B/16-224": 375_187_970,
    "SigLIP2-So400m/14-224": 1_135_463_602,
}


@pytest.mark.parametrize("tower", COUNTS)
def test_full_sizes_have_every_tensor_of_transformers(tower):
    functions = contract.build(configs.load("base", [f"model.tower={tower}"]).model)
    total = sum(math.prod(leaf.shape) for leaf in functions.abstract.values())
    with torch.device("meta"):
        theirs = SiglipModel(siglip_folders.config(tower))
    want = {n: tuple(p.shape) for n, p in theirs.named_parameters()}
    table = tables.expand(weight_rules.huggingface(), functions.abstract)
    assert tables.shapes(table, functions.abstract) == want
    assert total == sum(math.prod(shape) for shape in want.values()) == COUNTS[tower]
    size = sizes.find(tower)
    config = huggingface.config_of(size)
    with torch.device("meta"):
        again = SiglipModel(SiglipModel.config_class.from_dict(config))
    assert {n: tuple(p.shape) for n, p in again.named_parameters()} == want


@pytest.mark.parametrize("tower", sizes.SIZES)
def test_every_size_has_one_name_and_divides_over_four_devices(tower):
    size = sizes.find(tower)
    assert sizes.name_of(size) == tower
    text = dataclasses.replace(size.text, layers=3)
    written = sizes.name_of(dataclasses.replace(size, text=text))
    assert sizes.is_written(written) and sizes.name_of(sizes.find(written)) == written
    encoder = encoders.find(tower)
    assert (encoder.family, encoder.image_size) == ("siglip", size.vision.image)
    if tower in (*COUNTS, *siglip_folders.TOWERS.values()):
        functions = contract.build(configs.load("base", [f"model.tower={tower}"]).model)
        places = sharding.parameter_shardings(functions, mesh.make(model=4))
        split = [math.prod(functions.abstract[p].shape) for p, s in places.items() if any(s.spec)]
        total = sum(math.prod(leaf.shape) for leaf in functions.abstract.values())
        assert sum(split) > 0.9 * total


@pytest.mark.parametrize(
    "name, why",
    [
        ("siglip-32-8-w50-l3-h4_text-w32-l2-h2-v9-c8_d50", "vision width 50 does not divide"),
        ("siglip-32-8-w48-l3-h4_text-w32-l2-h2-v9-c8_d24", "an embedding of 24 beside an image"),
        ("siglip2-4-8-w48-l3-h4_text-w32-l2-h2-v9-c8_d48", "4 pixels has no patch of 8"),
        ("siglip-32-8-w48-l3-h4_text-w32-l2-h2-v0-c8_d48", "0 words and 8 positions"),
        ("SigLIP-B/16-225", r"no tower 'SigLIP-B/16-225'.*Did you mean 'SigLIP-B/16"),
    ],
)
def test_sizes_that_cannot_be(name, why):
    with pytest.raises(UserError, match=why):
        sizes.find(name)
