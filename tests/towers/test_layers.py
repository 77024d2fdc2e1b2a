# SPDX-License-Identifier: Apache-2.0
"""Layers that all transformers share: norms in float32, stacks of layers, blocks run by scan."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from cir_jax.errors import UserError
from cir_jax.towers.clip.sizes import TextSize
from cir_jax.towers.layers import (
    REMAT,
    Block,
    Dense,
    LayerNorm,
    Mlp,
    rematerialised,
    run_blocks,
    run_stack,
    stack,
)
from tests.towers import weights


def test_remat_keeps_less_and_changes_no_gradient():
    layers = 8
    size = TextSize(32, layers, 2)
    block = lambda rngs: Block(size, causal=True, activation="gelu", rngs=rngs)
    make = lambda: stack(block, layers, nnx.Rngs(0))
    graph, params = nnx.split(weights.scrambled(make))
    x = np.random.default_rng(0).normal(size=(16, 32, 32)).astype(np.float32)

    def run(remat):
        def total(p, x):
            return jnp.sin(run_blocks(nnx.merge(graph, p), x, remat=remat)).mean()

        compiled = jax.jit(jax.grad(total)).lower(params, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes, compiled(params, x)

    (much, want), (half, also), (little, got) = map(run, ("none", "products", "layers"))
    assert little < 0.4 * much and half < 0.7 * much
    for a, b, c in zip(*map(jax.tree.leaves, (want, also, got)), strict=True):
        assert np.any(a)
        np.testing.assert_allclose(a, b, atol=1e-6)
        np.testing.assert_allclose(a, c, atol=1e-6)


def test_layers_of_a_stack_are_rows_of_one_draw():
    """Runs of earlier releases hold values that begin so: a seed must go on giving the same."""
    rngs, same = nnx.Rngs(7), nnx.Rngs(7)
    made = stack(lambda rngs: Mlp(4, 6, 0.5, 0.25, activation="gelu", rngs=rngs), 3, rngs)
    for dense, shape, std in ((made.fc1, (3, 4, 6), 0.5), (made.fc2, (3, 6, 4), 0.25)):
        want = std * jax.random.normal(same.params(), shape)
        np.testing.assert_array_equal(dense.kernel[...], want)
    assert made.fc1.bias.shape == (3, 6) and not made.fc1.bias[...].any()
    # It took as many keys as one layer does, so what comes next is drawn as it was.
    np.testing.assert_array_equal(*(jax.random.key_data(r.params()) for r in (rngs, same)))


def test_a_tower_without_layers():
    with pytest.raises(UserError, match="a tower of 0 layers, where it needs at least 1; name"):
        stack(lambda rngs: Dense(4, 4, 0.5, rngs=rngs), 0, nnx.Rngs(0))


def test_a_scan_runs_the_layers_in_turn_each_with_its_own_key():
    made = stack(lambda rngs: Dense(4, 4, 0.5, rngs=rngs), 3, nnx.Rngs(0))
    x, key = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32), jax.random.key(1)

    def apply(x, layer, key):
        return jnp.tanh(layer(x)) + jax.random.normal(key, x.shape)

    want = x
    for number, one in enumerate(jax.random.split(key, 3)):
        want = apply(want, weights.layer(made, number), one)
    for remat in REMAT:  # the module is not made in the function that is traced
        got = jax.jit(lambda x, remat=remat: run_stack(made, x, apply, key, remat=remat))(x)
        np.testing.assert_allclose(got, want, rtol=1e-5)


def test_what_a_backward_pass_keeps_by_its_names_of_before():
    def layer(x):
        return jnp.sin(jnp.sin(x @ x))

    def program(remat):
        run = rematerialised(layer, remat, apart=True)
        return str(jax.make_jaxpr(jax.grad(lambda x: run(x).sum()))(jnp.ones((2, 2))))

    assert rematerialised(layer, "none", apart=True) is layer
    assert program(False) == program("none") and program(True) == program("layers")
    assert program("layers").count("dot_general") > program("products").count("dot_general")
    with pytest.raises(UserError, match=r"remat='product' is unknown.*Did you mean 'products'"):
        rematerialised(layer, "product", apart=True)


def test_products_run_in_the_type_of_their_input():
    dense = Dense(64, 3, 0.1, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 64)), jnp.bfloat16)
    got = dense(x)
    assert got.dtype == jnp.bfloat16 and dense(x.astype(jnp.float32)).dtype == jnp.float32
    want = x @ dense.kernel[...].astype(jnp.bfloat16)
    np.testing.assert_array_equal(got, want)
    assert dense.kernel.dtype == jnp.float32


def test_layer_norm_is_computed_in_float32():
    # The mean is far from zero: in bfloat16 the differences would be lost.
    x = (100 + np.random.default_rng(0).normal(size=(4, 64))).astype(np.float32)
    x = jnp.asarray(x, jnp.bfloat16)
    got = LayerNorm(64)(x)
    want = torch.nn.functional.layer_norm(torch.from_numpy(np.array(x, np.float32)), (64,))
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(jnp.float32), want.numpy(), rtol=2**-8, atol=1e-3)
