# SPDX-License-Identifier: Apache-2.0
"""Random values for a PyTorch network, everywhere: norms, biases and statistics too; and random
images and texts to run it on.

With values as they are after initialisation, ones and zeros, a conversion could swap or drop half
of the tensors unseen. Embeddings and some variances are small, as trained ones are: there the
epsilon of a norm is seen.
"""

import re

import numpy as np
import torch
from torch import Tensor, nn

# (first id, the ids between, last id) of a text.
CLIP_TEXT = (49406, range(1, 49405), 49407)


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


def inputs(
    side: int, longest: int, batch: int, seed: int, text: tuple[int, range, int] = CLIP_TEXT
) -> tuple[np.ndarray, np.ndarray]:
    """Normalised pixels [B, S, S, 3] and tokens [B, T] of texts of different lengths.

    Args:
      side: S.
      longest: T; behind a shorter text is padding, which is 0.
      batch: B.
      seed: of all of them.
      text: which ids there are.
    """
    rng, (first, between, last) = np.random.default_rng(seed), text
    pixels = rng.normal(size=(batch, side, side, 3)).astype(np.float32)
    tokens = np.zeros((batch, longest), np.int32)
    for row in tokens:
        length = int(rng.integers(3, longest + 1))
        words = rng.integers(between.start, between.stop, length - 2)
        row[:length] = [first, *words, last]
    return pixels, tokens


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
