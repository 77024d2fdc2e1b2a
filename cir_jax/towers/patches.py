# SPDX-License-Identifier: Apache-2.0
"""The first layer of every Vision Transformer: patches of an image, each times one kernel."""

import jax
import jax.numpy as jnp
from flax import nnx

from cir_jax.errors import UserError
from cir_jax.runtime.sharding import keep_rows


def patches(
    pixels: jax.Array,
    side: int,
    kernel: nnx.Param | jax.Array,
    dtype: jnp.dtype,
    bias: nnx.Param | None = None,
) -> jax.Array:
    """Every whole patch of an image times `kernel`, and `bias` added.

    Args:
      pixels: [B, S, S, 3] normalised.
      side: S, of the tower.
      kernel: [patch, patch, 3, C].
      dtype: compute type.
      bias: [C]; None for none.

    Returns:
      [B, (S / patch)^2, C], row by row.

    Raises:
      UserError: the image is not of the tower's size.
    """
    batch, height, width, _ = pixels.shape
    if (height, width) != (side, side):
        raise UserError(
            f"image of {height}x{width} pixels, but the tower takes {side}x{side}; "
            "set model.image_size to that of the images, or to 0 for the tower's own"
        )
    # A convolution whose stride is its size is one product per patch; written so, its gradient is a
    # product as well, where a CPU would otherwise run a 16 x 16 convolution.
    patch = kernel.shape[0]
    across = side // patch
    x = pixels[:, : across * patch, : across * patch].astype(dtype)
    x = x.reshape(batch, across, patch, across, patch, 3).transpose(0, 1, 3, 2, 4, 5)
    flat = kernel[...].astype(dtype).reshape(-1, kernel.shape[-1])
    x = keep_rows(x.reshape(batch, across * across, -1) @ flat)
    return x if bias is None else x + bias[...].astype(x.dtype)[None, None]
