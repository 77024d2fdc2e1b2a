# SPDX-License-Identifier: Apache-2.0
"""Stage one in PyTorch, by model: the network, the loss of a batch, and the released optimizer.

Each function takes the `model` section of a config, and returns (network, loss, optimizer), where
loss(references, tokens, targets) takes normalised pixels [B, 3, S, S] and ids [B, T].
"""

from collections.abc import Callable
from typing import Any

from cir_jax.towers.blip import sizes as blip_sizes
from cir_jax.towers.blip2 import sizes as blip2_sizes
from cir_jax.towers.clip import sizes as clip_sizes

Made = tuple[Any, Callable[[Any, Any, Any], Any], Any]
# Tokens that texts are padded to; BLIP's are to the longest.
PADDED = {"clip_sum": clip_sizes.CONTEXT, "sprc": blip2_sizes.CONTEXT, "blip": 0}


def clip_sum(model: Any) -> Made:
    """CLIP4CIR; all of it trains."""
    from tools.torch_models import clip, clip4cir

    network = clip4cir.Clip4Cir(clip.build(clip_sizes.find(model.tower)))
    return network, network.batch_loss, clip4cir.optimizer(network)


def blip(model: Any) -> Made:
    """BLIP4CIR, with a frozen image encoder."""
    from tools.torch_models import blip4cir

    network = blip4cir.Blip4Cir(blip_sizes.find(model.tower, model.image_size), 0.07)
    return network, network.batch_loss, blip4cir.optimizer(network)


def sprc(model: Any) -> Made:
    """SPRC with its three losses, and a frozen image encoder."""
    from tools.torch_models import sprc

    network = sprc.Sprc(blip2_sizes.find(model.tower))

    def loss(references: Any, tokens: Any, targets: Any) -> Any:
        return sum(network.stage_one(references, targets, tokens).values())

    return network, loss, sprc.optimizer(network)
