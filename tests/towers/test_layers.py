# SPDX-License-Identifier: Apache-2.0
"""Layers that both transformers share: norms in float32, and blocks run by scan."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from cir_jax.towers.clip.sizes import TextSize
from cir_jax.towers.layers import Block, LayerNorm, run_blocks, stack
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

    (much, want), (little, got) = run(False), run(True)
    assert little < 0.4 * much
    for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
        assert np.any(a)
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_layer_norm_is_computed_in_float32():
    # The mean is far from zero: in bfloat16 the differences would be lost.
    x = (100 + np.random.default_rng(0).normal(size=(4, 64))).astype(np.float32)
    x = jnp.asarray(x, jnp.bfloat16)
    got = LayerNorm(64)(x)
    want = torch.nn.functional.layer_norm(torch.from_numpy(np.array(x, np.float32)), (64,))
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(jnp.float32), want.numpy(), rtol=2**-8, atol=1e-3)
