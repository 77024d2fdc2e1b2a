# SPDX-License-Identifier: Apache-2.0
"""What a config leaves to the devices: the compute type, and what attention is computed by."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from cir_jax.towers import attention


def resolved(config: Any, model: Callable[..., Any]) -> tuple[Any, Any]:
    """A config with nothing left open, and the module of it, without values.

    Args:
      config: the `model` section of a run's config; it stays as it is.
      model: makes the module: model(config, rngs=...).

    Raises:
      UserError: `model.attention` cannot be had here.
    """

    def make() -> Any:
        return nnx.eval_shape(lambda: model(config, rngs=nnx.Rngs(0)))

    config, asked = config.copy_and_resolve_references(), config.attention
    config.unlock()
    if config.dtype == "auto":  # bfloat16 is emulated, and slower, on a CPU
        config.dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    config.attention = attention.XLA
    made = make()
    parts = (getattr(part, "attend", None) for _, part in nnx.iter_graph(made))
    found = [part for part in parts if isinstance(part, attention.Attend)]
    config.attention = attention.resolve(asked, config.dtype, found)
    if config.attention != attention.XLA:
        made = make()
    return config.lock(), made
