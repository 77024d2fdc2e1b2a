# SPDX-License-Identifier: Apache-2.0
"""The vision transformer against transformers' CLIP, layer by layer and end to end."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from cir_jax.errors import UserError
from cir_jax.towers.clip import sizes
from cir_jax.towers.clip.vit import VisionTransformer
from tests.towers import weights

RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.normal(size=(2, 24, 24, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def theirs():
    return weights.torch_clip()


def ours(theirs, **options):
    make = lambda: VisionTransformer(weights.VISION, weights.EMBEDDING, rngs=nnx.Rngs(0), **options)
    return weights.filled(make, weights.vision_weights(theirs))


def test_every_layer_equals_torch_within_1e5(theirs):
    tower = ours(theirs)
    pixels = torch.from_numpy(PIXELS.transpose(0, 3, 1, 2))
    with torch.no_grad():
        want = theirs.vision_model(pixels, output_hidden_states=True)
        feature = theirs.get_image_features(pixels).pooler_output.numpy()
    # The first entry of hidden_states is what enters the first block.
    x = jnp.asarray(want.hidden_states[0].numpy())
    for number in range(weights.VISION.layers):
        x = jax.jit(weights.layer(tower.blocks, number).__call__)(x)
        np.testing.assert_allclose(x, want.hidden_states[number + 1].numpy(), atol=1e-5)
    np.testing.assert_allclose(jax.jit(tower.tokens)(PIXELS), x, atol=1e-5)  # scan = loop
    np.testing.assert_allclose(jax.jit(tower.__call__)(PIXELS), feature, atol=1e-5)


def test_remat_marks_the_blocks_and_changes_no_value(theirs):
    plain, marked = ours(theirs).__call__, ours(theirs, remat="products").__call__
    np.testing.assert_allclose(jax.jit(plain)(PIXELS), jax.jit(marked)(PIXELS), atol=1e-6)
    assert "remat" in str(jax.make_jaxpr(marked)(PIXELS))
    assert "remat" not in str(jax.make_jaxpr(plain)(PIXELS))


def test_bfloat16_is_close_and_returns_float32(theirs):
    want = jax.jit(ours(theirs).__call__)(PIXELS)
    got = jax.jit(ours(theirs, dtype=jnp.bfloat16).__call__)(PIXELS)
    assert want.dtype == got.dtype == jnp.float32
    assert float(jnp.linalg.norm(want - got) / jnp.linalg.norm(want)) < 0.03
    assert float(jnp.abs(want - got).max()) > 0  # the compute type is really used


def test_larger_input_only_adds_positions():
    # Released as 427,616,513 parameters at 224 pixels: 24^2 - 16^2 = 320 more positions at 336.
    def count(name):
        size = sizes.find(name)
        tower = nnx.eval_shape(
            lambda: VisionTransformer(size.vision, size.embedding, rngs=nnx.Rngs(0))
        )
        return sum(math.prod(leaf.shape) for leaf in weights.leaves(tower).values())

    assert count("ViT-L/14") == 303_966_208
    assert count("ViT-L/14@336px") == 303_966_208 + 320 * 1024


def test_initial_deviations_are_those_of_clip():
    size = sizes.VisionTransformerSize(image=64, patch=8, width=64, layers=6, heads=2)

    def draw():
        tower = VisionTransformer(size, 48, rngs=nnx.Rngs(0))
        return {path: leaf[...] for path, leaf in weights.leaves(tower).items()}

    leaves = jax.jit(draw)()
    want = {
        "blocks/attention/query/kernel": 64**-0.5,
        "blocks/attention/key/kernel": 64**-0.5,
        "blocks/attention/value/kernel": 64**-0.5,
        "blocks/attention/out/kernel": (64 * 2 * 6) ** -0.5,
        "blocks/mlp/fc1/kernel": (2 * 64) ** -0.5,
        "blocks/mlp/fc2/kernel": (64 * 2 * 6) ** -0.5,
        "position": 64**-0.5,
        "proj": 64**-0.5,
    }
    for path, deviation in want.items():
        assert np.std(leaves[path]) == pytest.approx(deviation, rel=0.05), path
    first, second = leaves["blocks/mlp/fc1/kernel"][:2]
    assert not np.allclose(first, second)  # layers are drawn independently


def test_image_of_another_size(theirs):
    with pytest.raises(UserError, match=r"image of 32x24 pixels, but the tower takes 24x24; set "):
        ours(theirs)(jnp.zeros((1, 32, 24, 3)))
