# SPDX-License-Identifier: Apache-2.0
"""BLIP's text encoder against transformers', layer by layer; padding, dropout, limits."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from transformers.models.blip.configuration_blip import BlipTextConfig
from transformers.models.blip.modeling_blip_text import BlipTextModel

from cir_jax.errors import UserError
from cir_jax.towers.blip import med, sizes
from cir_jax.towers.clip.sizes import TextSize
from tests.towers import weights

SIZE = TextSize(width=32, layers=3, heads=4, mlp=72)
IMAGE_WIDTH, CONTEXT = 24, 16
RANDOM = np.random.default_rng(0)
IMAGE = RANDOM.normal(size=(2, 7, IMAGE_WIDTH)).astype(np.float32)
TEXT = np.zeros((2, 12), np.int32)
TEXT[0, :9], TEXT[1, :5] = RANDOM.integers(1, 30522, 9), RANDOM.integers(1, 30522, 5)
TEXT[:, 0] = 30523
ATTENTION = {"self.query": "query", "self.key": "key", "self.value": "value",
             "output.dense": "out", "output.LayerNorm": "norm"}  # fmt: skip
NAMES = {
    **{f"attention.{a}": f"attention/{b}" for a, b in ATTENTION.items()},
    **{f"crossattention.{a}": f"cross/{b}" for a, b in ATTENTION.items()},
    "intermediate.dense": "mlp/fc1", "output.dense": "mlp/fc2", "output.LayerNorm": "mlp/norm",
}  # fmt: skip


@pytest.fixture(scope="module")
def theirs():
    config = BlipTextConfig(
        vocab_size=30524, hidden_size=32, encoder_hidden_size=IMAGE_WIDTH, intermediate_size=72,
        num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=CONTEXT,
        attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(0)
    model = BlipTextModel(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.2)
            if "LayerNorm" in name and name.endswith("weight"):
                parameter.add_(1.0)
    return model


@pytest.fixture(scope="module")
def values(theirs):
    """Our paths -> the values of transformers' model."""
    state = {name: x.numpy() for name, x in theirs.state_dict().items()}
    found = {
        "embeddings/words": state["embeddings.word_embeddings.weight"],
        "embeddings/positions": state["embeddings.position_embeddings.weight"],
        "embeddings/norm/scale": state["embeddings.LayerNorm.weight"],
        "embeddings/norm/bias": state["embeddings.LayerNorm.bias"],
    }
    for name, ours in NAMES.items():
        names = [f"encoder.layer.{i}.{name}" for i in range(SIZE.layers)]
        kernel, norm = np.stack([state[f"{n}.weight"] for n in names]), "norm" in ours
        found[f"layers/{ours}/{'scale' if norm else 'kernel'}"] = (
            kernel if norm else kernel.transpose(0, 2, 1)
        )
        found[f"layers/{ours}/bias"] = np.stack([state[f"{n}.bias"] for n in names])
    return found


def encoder(values, **options):
    def make():
        return med.TextEncoder(SIZE, IMAGE_WIDTH, context=CONTEXT, rngs=nnx.Rngs(0), **options)

    return weights.filled(make, values)


def test_every_layer_equals_transformers(theirs, values):
    with torch.no_grad():
        want = theirs(
            torch.from_numpy(TEXT).long(),
            attention_mask=torch.from_numpy(TEXT != 0).long(),
            encoder_hidden_states=torch.from_numpy(IMAGE),
            encoder_attention_mask=torch.ones(IMAGE.shape[:2], dtype=torch.long),
            output_hidden_states=True,
        )
    ours, seen = encoder(values), TEXT != 0
    embedded = ours.embeddings.finish(ours.embeddings.lookup(jnp.asarray(TEXT)), 0.0, None)
    np.testing.assert_allclose(embedded, want.hidden_states[0].numpy(), atol=1e-5)
    x = embedded
    for number in range(SIZE.layers):
        x = jax.jit(weights.layer(ours.layers, number).__call__)(x, IMAGE, seen)
        hidden = want.hidden_states[number + 1].numpy()
        np.testing.assert_allclose(np.asarray(x)[seen], hidden[seen], atol=1e-5)
    states = jax.jit(ours.__call__)(TEXT, IMAGE)
    np.testing.assert_allclose(np.asarray(states)[seen], hidden[seen], atol=1e-5)


def test_padding_changes_no_state(values):
    run = jax.jit(encoder(values).__call__)
    short, long = run(TEXT[:, :9], IMAGE), run(np.pad(TEXT, ((0, 0), (0, 4))), IMAGE)
    np.testing.assert_allclose(short[0], long[0, :9], atol=1e-5)
    np.testing.assert_allclose(short[1, :5], long[1, :5], atol=1e-5)


def test_the_image_is_seen(values):
    run = jax.jit(encoder(values).__call__)
    other = run(TEXT, IMAGE[::-1])
    assert np.abs(np.asarray(run(TEXT, IMAGE)) - np.asarray(other))[:, 0].max() > 0.1


def test_dropout_needs_a_rate_and_a_key(values):
    run = jax.jit(encoder(values).__call__)
    plain, key = run(TEXT, IMAGE), jax.random.key(0)
    np.testing.assert_array_equal(plain, run(TEXT, IMAGE, key))
    dropping = jax.jit(encoder(values, rate=0.1).__call__)
    np.testing.assert_array_equal(plain, dropping(TEXT, IMAGE))
    first, other = (np.asarray(dropping(TEXT, IMAGE, jax.random.key(n))) for n in (0, 1))
    assert np.abs(first - plain).max() > 0.01 and np.abs(first - other).max() > 0.01


def test_bfloat16_and_remat(values):
    made = encoder(values, dtype=jnp.bfloat16, remat="products")
    assert "remat" in str(jax.make_jaxpr(made.__call__)(TEXT, IMAGE))
    want = jax.jit(encoder(values).__call__)(TEXT, IMAGE)
    got = jax.jit(made.__call__)(TEXT, IMAGE)
    assert got.dtype == jnp.bfloat16
    assert 0 < float(jnp.linalg.norm(want - got) / jnp.linalg.norm(want)) < 0.03


def test_parameter_count_of_the_published_one():
    size = sizes.find("blip-base")

    def make():
        return med.TextEncoder(size.text, size.vision.width, rngs=nnx.Rngs(0))

    leaves = weights.leaves(nnx.eval_shape(make))
    assert sum(math.prod(leaf.shape) for leaf in leaves.values()) == 137_258_496


def test_a_text_over_the_context(values):
    with pytest.raises(UserError, match=r"text of 17 tokens is over the context of 16; cut it"):
        encoder(values)(jnp.zeros((1, 17), jnp.int32), IMAGE[:1])
