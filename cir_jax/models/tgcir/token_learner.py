# SPDX-License-Identifier: Apache-2.0
"""The token learner of TG-CIR: many positions -> a few tokens, each an average it has learned.

    attention a_s(x) = sigmoid(<w_s, x_l> + b_s)      for token s at position l
    token s          = mean over l of a_s(x)_l x_l

The mean divides by the number of positions, not by the sum of the weights. Source:
Wen et al., "Target-Guided Composed Image Retrieval", ACM MM 2023, after TokenLearner of
Ryoo et al. (arXiv 2106.11297).
"""

import jax
import jax.numpy as jnp
from flax import nnx

from cir_jax.towers.layers import normal


class TokenLearner(nnx.Module):
    """[B, L, D] -> [B, tokens, D] float32.

    Args:
      tokens: how many it makes.
      width: D.
    """

    def __init__(self, tokens: int, width: int, *, rngs: nnx.Rngs):
        # The variance of PyTorch's default for convolutions.
        self.kernel = normal(rngs, (tokens, width), (3 * width) ** -0.5)
        self.bias = nnx.Param(jnp.zeros((tokens,), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Products in the type of `x`, sums in float32."""
        wide = {"preferred_element_type": jnp.float32}
        scores = jnp.einsum("bld,sd->bls", x, self.kernel[...].astype(x.dtype), **wide)
        weights = jax.nn.sigmoid(scores + self.bias[...][None, None]).astype(x.dtype)
        return jnp.einsum("bls,bld->bsd", weights, x, **wide) / x.shape[1]
