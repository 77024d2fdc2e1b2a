# SPDX-License-Identifier: Apache-2.0
"""CLIP4CIR (sum) in PyTorch, with the tensor names, the losses and the optimizer of the released
runs: what `clip_sum` and its two stages must agree with.

    query = unit(reference feature + text feature), target = unit(target feature)
    loss  = cross-entropy of <query, targets> / tau; the targets are the batch's or the bank's

Source: Feng et al., arXiv 2404.11317, and the settings of its released runs.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tools.torch_models import clip


class Clip4Cir(nn.Module):
    """Both stages of one model; its tensors are those of CLIP with `clip.` before their names.

    Args:
      model: the encoders.
      freeze_image: stage two, where nothing of the image side trains.
      temperature: tau of the softmax.
    """

    def __init__(self, model: clip.Clip, *, freeze_image: bool = False, temperature: float = 0.02):
        super().__init__()
        self.clip = model
        self.temperature = temperature
        if freeze_image:
            self.clip.visual.requires_grad_(False)

    def reference(self, pixels: Tensor) -> Tensor:
        """[B, 3, S, S] normalised -> [B, D], raw."""
        return self.clip.encode_image(pixels)

    def target(self, pixels: Tensor) -> Tensor:
        """[B, 3, S, S] normalised -> [B, D] unit rows."""
        return F.normalize(self.clip.encode_image(pixels), dim=-1)

    def query(self, reference: Tensor, tokens: Tensor) -> Tensor:
        """[B, D] raw and [B, T] -> [B, D] unit rows."""
        return F.normalize(reference + self.clip.encode_text(tokens), dim=-1)

    def batch_loss(self, references: Tensor, tokens: Tensor, targets: Tensor) -> Tensor:
        """Stage one, mean over the batch; references and targets are pixels [B, 3, S, S]."""
        query = self.query(self.reference(references), tokens)
        logits = query @ self.target(targets).T / self.temperature
        return F.cross_entropy(logits, torch.arange(len(query), device=query.device))

    def bank_loss(
        self, references: Tensor, tokens: Tensor, targets: Tensor, label: Tensor
    ) -> Tensor:
        """Stage two, mean over the batch.

        Args:
          references: [B, D], rows of the reference bank.
          tokens: [B, T].
          targets: [N, D] unit rows, the whole target bank.
          label: [B], row of each query's target.
        """
        logits = self.query(references, tokens) @ targets.T / self.temperature
        return F.cross_entropy(logits, label)


def optimizer(model: Clip4Cir, learning_rate: float = 2e-5) -> torch.optim.AdamW:
    """AdamW of the released runs: one group of all that is not frozen, biases and norms included.

    `logit_scale` is in the group but gets no gradient, so AdamW passes it by, decay and all.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(
        trained, lr=learning_rate, betas=(0.9, 0.999), eps=1e-7, weight_decay=0.01
    )


def trace(model: Clip4Cir, pixels: np.ndarray, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """`clip.trace`, then "reference", "target" and "query" [B, D] of these images and texts."""
    images, texts = clip.inputs(pixels, tokens)
    with torch.no_grad():
        reference = model.reference(images)
        found = {
            "reference": reference,
            "target": model.target(images),
            "query": model.query(reference, texts),
        }
    layers = clip.trace(model.clip, pixels, tokens)
    return layers | {name: x.numpy() for name, x in found.items()}
