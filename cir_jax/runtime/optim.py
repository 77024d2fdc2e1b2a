# SPDX-License-Identifier: Apache-2.0
"""The optimizer: AdamW over the trained leaves only, with the schedules of a config.

The released runs decay every trained parameter, biases and temperature included, with epsilon 1e-7;
those are the defaults of configs/base.py. Leaves that do not train are not in the tree at all.
"""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from cir_jax import rules
from cir_jax.errors import UserError

DROP = 0.1  # factor of every drop


def schedule(config: ConfigDict, steps: int) -> optax.Schedule:
    """Step -> learning rate: linear warm-up, then constant or falling to zero at `steps`; after
    each share of the run in `drops` it is a tenth.

    Raises:
      UserError: a warm-up that is not shorter than the run.
    """
    after = _schedule(config, steps)
    if not config.drops:
        return after
    first = [round(share * steps) for share in config.drops]
    return lambda step: after(step) * DROP ** sum(jnp.where(step < n, 0, 1) for n in first)


def rate(config: ConfigDict, steps: int, step: int) -> float:
    """The learning rate of step number `step`, 1 being the first; without multipliers."""
    return float(schedule(config, steps)(jnp.int32(step - 1)))


def _schedule(config: ConfigDict, steps: int) -> optax.Schedule:
    rate, warmup = config.learning_rate, config.warmup_steps
    if warmup and warmup >= steps:
        raise UserError(f"optim.warmup_steps={warmup} is not below the {steps} steps of the run")
    rest = max(steps - warmup, 1)
    after = {
        "constant": optax.constant_schedule(rate),
        "cosine": optax.cosine_decay_schedule(rate, rest),
        "linear": optax.linear_schedule(rate, 0.0, rest),
    }[config.schedule]
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, rate, warmup), after], [warmup])


def build(config: ConfigDict, paths: Iterable[str], steps: int) -> optax.GradientTransformation:
    """The optimizer for a flat dict of trained leaves with these `paths`.

    Args:
      config: the `optim` section.
      paths: paths of the trained leaves.
      steps: length of the run, for schedules.

    Raises:
      UserError: an idle rule in `multipliers` or `no_decay`, or what `schedule` finds.
    """
    paths = list(paths)
    decay = _decayed(config.no_decay, paths)
    parts = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm > 0 else []
    parts.append(
        optax.adamw(
            schedule(config, steps),
            b1=config.beta1,
            b2=config.beta2,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            mask=(lambda tree: {p: decay[p] for p in tree}) if config.no_decay else None,
        )
    )
    if config.multipliers:
        chosen: dict[str, float] = rules.match(
            [*map(tuple, config.multipliers), (".*", 1.0)], paths, "optim.multipliers"
        )
        parts.append(
            optax.stateless(lambda updates, _: {p: u * chosen[p] for p, u in updates.items()})
        )
    return optax.chain(*parts)


def _decayed(no_decay: Iterable[str], paths: list[str]) -> dict[str, bool]:
    if not no_decay:
        return dict.fromkeys(paths, True)
    pairs = [(regex, False) for regex in no_decay]
    return rules.match([*pairs, (".*", True)], paths, "optim.no_decay")


def size(tree: Any) -> int:
    """Number of values in a tree of arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
