# SPDX-License-Identifier: Apache-2.0
"""The text transformer against transformers' CLIP, and the laws that cutting the padding needs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from cir_jax.data import packing, tokens
from cir_jax.errors import UserError
from cir_jax.towers.clip.sizes import TextSize
from cir_jax.towers.clip.text import TextTransformer
from tests.towers import weights

SOT, EOT = 49406, 49407


def captions(lengths, width, seed=0):
    """[B, width] ids: start of text, `lengths` words, end of text, padding."""
    rng = np.random.default_rng(seed)
    text = np.zeros((len(lengths), width), np.int32)
    for row, words in zip(text, lengths, strict=True):
        row[0], row[1 : words + 1], row[words + 1] = SOT, rng.integers(1, SOT, words), EOT
    return text


@pytest.fixture(scope="module")
def theirs():
    return weights.torch_clip()


def ours(theirs, **options):
    make = lambda: TextTransformer(
        weights.TEXT, weights.EMBEDDING, context=weights.CONTEXT, rngs=nnx.Rngs(0), **options
    )
    return weights.filled(make, weights.text_weights(theirs))


def test_every_layer_equals_torch_within_1e5(theirs):
    tower = ours(theirs)
    text = captions([0, 3, 18], weights.CONTEXT)
    with torch.no_grad():
        ids = torch.from_numpy(text.astype(np.int64))
        want = theirs.text_model(ids, output_hidden_states=True)
        feature = theirs.get_text_features(ids).pooler_output.numpy()
    x = jnp.asarray(want.hidden_states[0].numpy())
    for number in range(weights.TEXT.layers):
        x = jax.jit(weights.layer(tower.blocks, number).__call__)(x)
        np.testing.assert_allclose(x, want.hidden_states[number + 1].numpy(), atol=1e-5)
    every = jax.jit(tower.tokens)(text)
    np.testing.assert_allclose(jax.jit(tower.norm_out.__call__)(x), every, atol=1e-5)  # scan = loop
    np.testing.assert_allclose(every, want.last_hidden_state.numpy(), atol=1e-5)
    np.testing.assert_allclose(jax.jit(tower.__call__)(text), feature, atol=1e-5)


def test_padding_does_not_change_the_feature(theirs):
    tower = jax.jit(ours(theirs).__call__)
    lengths = [0, 1, 4, 7]
    want = tower(captions(lengths, weights.CONTEXT))
    for width in (9, 13):
        got = tower(captions(lengths, weights.CONTEXT)[:, :width])
        np.testing.assert_allclose(got, want, atol=2e-6)
    # Neither does anything else behind the end of text: the tower is causal.
    text = captions(lengths, weights.CONTEXT)
    behind = np.arange(weights.CONTEXT)[None] > np.argmax(text, axis=1)[:, None]
    text[behind] = 1234
    np.testing.assert_allclose(tower(text), want, atol=2e-6)


# Words between start and end: at the limit of the context, none at all, all alike, and a share of
# the devices with one long text and another with short ones.
PACKED = {
    "some": ([0, 3, 18, 7, 5, 1, 12, 9], 1),
    "at the limit": ([weights.CONTEXT - 2] * 4, 1),
    "all alike": ([6] * 8, 2),
    "uneven shares": ([18, 0, 0, 0, 0, 0, 0, 0], 4),
}


def pack(lengths, shares):
    ids = captions(lengths, weights.CONTEXT)
    texts = [row[: words + 2] for row, words in zip(ids, lengths, strict=True)]
    start = np.concatenate([[0], np.cumsum([len(text) for text in texts])])
    table = tokens.TokenTable(np.concatenate(texts), start, weights.CONTEXT, 0)
    return ids, packing.pack(texts, packing.Sizes.of(table, len(texts), shares, ()), 0)


@pytest.mark.parametrize("lengths, shares", PACKED.values(), ids=PACKED)
def test_packed_texts_have_the_features_and_gradients_of_padded_ones(lengths, shares, theirs):
    graph, state = nnx.split(ours(theirs))

    @jax.jit
    def gradient(state, text):
        def loss(state):
            features = nnx.merge(graph, state)(text)
            # The mean over the texts, of something of each in its own row.
            each = jnp.sin(features + jnp.arange(len(lengths))[:, None]).sum(axis=-1)
            return each.mean(), each

        return jax.grad(loss, has_aux=True)(state)

    padded, packed = pack(lengths, shares)
    want, got = gradient(state, padded), gradient(state, packed)
    for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
        np.testing.assert_allclose(b, a, atol=1e-6, rtol=2e-6)


def test_remat_marks_the_blocks_and_changes_no_value(theirs):
    text = captions([2, 5], 9)
    plain, marked = ours(theirs).__call__, ours(theirs, remat="products").__call__
    np.testing.assert_allclose(jax.jit(plain)(text), jax.jit(marked)(text), atol=1e-6)
    assert "remat" in str(jax.make_jaxpr(marked)(text))
    assert "remat" not in str(jax.make_jaxpr(plain)(text))


def test_bfloat16_is_close_and_returns_float32(theirs):
    text = jnp.asarray(captions([2, 5], 9))
    want = jax.jit(ours(theirs).__call__)(text)
    got = jax.jit(ours(theirs, dtype=jnp.bfloat16).__call__)(text)
    assert want.dtype == got.dtype == jnp.float32
    assert float(jnp.linalg.norm(want - got) / jnp.linalg.norm(want)) < 0.03
    assert float(jnp.abs(want - got).max()) > 0  # the compute type is really used


def test_initial_deviations_and_default_context():
    def draw():
        tower = TextTransformer(TextSize(64, 2, 2), 48, rngs=nnx.Rngs(0))
        return tower.token_embedding[...], tower.position[...], tower.proj[...]

    words, position, proj = jax.jit(draw)()
    assert position.shape == (77, 64)
    assert np.std(words) == pytest.approx(0.02, rel=0.05)
    assert np.std(position) == pytest.approx(0.01, rel=0.05)
    assert np.std(proj) == pytest.approx(64**-0.5, rel=0.05)


def test_text_over_the_context(theirs):
    with pytest.raises(UserError, match=r"text of 21 tokens is over the context of 20; cut it"):
        ours(theirs)(jnp.zeros((1, 21), jnp.int32))
