# SPDX-License-Identifier: Apache-2.0
"""(stage, model, optimizer) -> the jitted update: the one place of gradients and of `tx.update`.

Freezing is not differentiating: the tree is split into trained and fixed leaves, the gradient is
taken with respect to the trained ones, and the two are joined inside the program. A mask over the
optimizer would not do: `optax.masked` hands the raw gradient of a "frozen" leaf on as its update.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from cir_jax.contract import Functions
from cir_jax.params import Params
from cir_jax.training.stage import StageProtocol


def make(
    stage: StageProtocol,
    functions: Functions,
    tx: optax.GradientTransformation,
    sources: int,
    shardings: tuple[Any, Any] | None = None,
) -> jax.stages.Wrapped:
    """The update of one step.

    Args:
      stage: see `cir_jax.training.stage`.
      functions: the model.
      tx: the optimizer, over the flat dict of trained leaves.
      sources: number of triplet sources, for their separate losses.
      shardings: of (trained, optimizer state); outputs keep them. None lets the compiler choose.

    Returns:
      update(trained, state, fixed, batch, bank, key, step=None) -> (trained, state, metrics).
      `trained` and `state` are donated; `fixed` and `bank` are not. With `step`, a number, the key
      of the step is `jax.random.fold_in(key, step)`; without it, `key` itself. metrics: "loss"
      (mean over the batch), "gradient_norm", "source_loss" and "source_count" [sources], and the
      stage's own. Where loss or gradient_norm is not finite, `trained` and `state` come back as
      they were.
    """

    def objective(trained, fixed, batch, bank, key):
        query: Params = {**fixed, **trained}
        index = query if stage.index_is_query else fixed
        losses, metrics = stage.loss(functions, query, index, batch, bank, key)
        return jnp.mean(losses), (losses, metrics)

    def update(trained, state, fixed, batch, bank, key, step=None):
        if step is not None:  # in here, so that a step is one program
            key = jax.random.fold_in(key, step)
        gradient = jax.value_and_grad(objective, has_aux=True)
        (loss, (losses, metrics)), grads = gradient(trained, fixed, batch, bank, key)
        norm = optax.tree.norm(grads)
        updates, new_state = tx.update(grads, state, trained)
        new = optax.apply_updates(trained, updates), new_state
        # A step that is not finite changes nothing: its parameters would be lost beyond repair.
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        trained, state = optax.tree.where(finite, new, (trained, state))
        one_hot = jax.nn.one_hot(batch["source_id"], sources, dtype=jnp.float32)
        metrics = {
            "loss": loss,
            "gradient_norm": norm,
            "source_count": one_hot.sum(axis=0),
            "source_loss": jnp.einsum("bs,b->s", one_hot, jax.lax.stop_gradient(losses)),
            **metrics,
        }
        return trained, state, metrics

    out = None if shardings is None else (*shardings, None)
    return jax.jit(update, donate_argnums=(0, 1), out_shardings=out)
