# SPDX-License-Identifier: Apache-2.0
"""The recipe of clip_sum with another learning rate."""

from cir_jax.config import sibling


def get_config(arg="fashioniq"):
    """`arg`: as of clip_sum."""
    config = sibling(__file__, "clip_sum").get_config(arg)
    config.optim.learning_rate = 5e-6
    return config
