# SPDX-License-Identifier: Apache-2.0
"""AdamW of a config is AdamW of PyTorch, where the gradients of a whole network hide a difference.

Gradients go from far below epsilon to 1. The second setting makes the decay large, which float32
nearly rounds away in the released one.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from cir_jax import config as configs
from cir_jax.runtime import optim
from tools.torch_models import clip4cir


@pytest.mark.parametrize("rate, decay", [(2e-5, 0.01), (1e-2, 0.5)])
def test_twenty_steps(rate, decay):
    config = configs.load(
        "clip_sum:fashioniq,stage=2",
        [f"optim.learning_rate={rate}", f"optim.weight_decay={decay}"],
    )
    rng = np.random.default_rng(0)
    start = np.repeat(np.float32([0, 1e-2, 1]), 300)
    parameter = torch.nn.Parameter(torch.from_numpy(start.copy()))
    theirs = clip4cir.optimizer(torch.nn.ParameterList([parameter]), rate)
    for group in theirs.param_groups:
        assert group["weight_decay"] == 0.01
        group["weight_decay"] = decay
    optimizer = optim.build(config.optim, ["x"], 20)
    ours = {"x": jnp.asarray(start)}
    state = optimizer.init(ours)
    size = 10.0 ** rng.uniform(-10, 0, len(start))
    for done in range(1, 21):
        gradient = (size * rng.normal(size=len(start))).astype(np.float32)
        gradient[::7] = 0
        updates, state = optimizer.update({"x": jnp.asarray(gradient)}, state, ours)
        ours = jax.tree.map(lambda x, u: x + u, ours, updates)
        parameter.grad = torch.from_numpy(gradient)
        theirs.step()
        want = parameter.detach().numpy()
        # Two roundings to the grid of the values at every step, one on each side.
        grid = 2 * done * np.spacing(np.maximum(np.abs(start), np.abs(want)))
        far = np.abs(np.asarray(ours["x"]) - want) - grid
        assert (far < 1e-5 * rate * done).all()
    assert np.abs(want - start).max() > 5 * rate
