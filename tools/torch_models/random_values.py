# SPDX-License-Identifier: Apache-2.0
"""Random values for a PyTorch network, everywhere: norms, biases and statistics too.

With values as they are after initialisation, ones and zeros, a conversion could swap or drop half
of the tensors unseen. Embeddings and some variances are small, as trained ones are: there the
epsilon of a norm is seen.
"""

import re

import torch
from torch import Tensor, nn


def state(model: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """Tensor name -> new values; variances are positive and activations stay of order one."""
    generator = torch.Generator().manual_seed(seed)
    scales = _scales(model)
    found = {}
    for name, old in model.state_dict().items():
        noise = torch.randn(old.shape, generator=generator)
        if name.endswith("num_batches_tracked"):
            found[name] = torch.tensor(1 + len(found))
        elif name.endswith("running_var"):
            found[name] = 0.05 + torch.rand(old.shape, generator=generator)
        elif name in scales:
            found[name] = scales[name] * (1 + 0.3 * noise)
        elif name.endswith(("bias", "running_mean")) or not noise.ndim:
            found[name] = 0.3 * noise
        elif name.endswith(("embedding", "embedding.weight")):
            found[name] = 0.05 * noise
        elif name.endswith("proj") or name == "text_projection":  # used as x @ W
            found[name] = noise * old.shape[0] ** -0.5
        else:
            found[name] = noise * old[0].numel() ** -0.5
    return found


def _scales(model: nn.Module) -> dict[str, float]:
    """Name of the weight of each norm -> its mean.

    Below 1 for a BatchNorm, as small variances make its output large, and smaller where a branch
    joins the shortcut: a deep ResNet would grow with every block.
    """
    found = {}
    for name, part in model.named_modules():
        if isinstance(part, nn.LayerNorm):
            found[f"{name}.weight"] = 1.0
        elif isinstance(part, nn.BatchNorm2d):
            joins = re.search(r"layer\d.*\.bn3", name)
            found[f"{name}.weight"] = 0.2 if joins else 0.6
    return found
