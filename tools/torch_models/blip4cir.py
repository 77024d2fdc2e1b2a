# SPDX-License-Identifier: Apache-2.0
"""BLIP4CIR in PyTorch: what trains, the losses and the optimizer of both stages.

    query = unit(projected first state of a text that looks at the reference's tokens)
    loss  = cross-entropy of <query, targets> / tau; the targets are the batch's or the bank's

The encoders are transformers' BLIP, with random parameters. Sources: Liu et al., arXiv 2305.16304;
Feng et al., arXiv 2404.11317, and the settings of its released runs. Nothing drops: dropout is
compared nowhere.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BlipConfig, BlipForImageTextRetrieval
from transformers.models.blip.modeling_blip_text import BlipTextModel

from cir_jax.towers.blip import huggingface
from cir_jax.towers.blip.sizes import CONTEXT, BlipSize


class Query(nn.Module):
    """The text side, which is what trains, with the temperature.

    Args:
      encoder: transformers' text encoder.
      projection: of its first state.
      temperature: tau of the softmax, at first.
    """

    def __init__(self, encoder: Any, projection: nn.Linear, temperature: float):
        super().__init__()
        self.encoder, self.projection = encoder, projection
        self.temperature = nn.Parameter(torch.tensor(temperature))

    def forward(self, reference: Tensor, tokens: Tensor) -> Tensor:
        """[B, R, C] and [B, T] ids, 0 is padding -> [B, D] unit rows."""
        states = self.encoder(
            tokens,
            attention_mask=(tokens != 0).long(),
            encoder_hidden_states=reference,
            encoder_attention_mask=torch.ones(
                reference.shape[:2], dtype=torch.long, device=reference.device
            ),
        ).last_hidden_state
        return F.normalize(self.projection(states[:, 0]), dim=-1)

    def bank_loss(
        self, references: Tensor, tokens: Tensor, targets: Tensor, label: Tensor
    ) -> Tensor:
        """Stage two, mean over the batch.

        Args:
          references: [B, R, C], rows of the reference bank.
          tokens: [B, T].
          targets: [N, D] unit rows, the whole target bank.
          label: [B], row of each query's target.
        """
        logits = self(references, tokens) @ targets.T / self.temperature
        return F.cross_entropy(logits, label)


class Blip4Cir(nn.Module):
    """Stage one, in which the image side is frozen."""

    def __init__(self, size: BlipSize, temperature: float):
        super().__init__()
        network = BlipForImageTextRetrieval(_config(size)).eval()
        self.vision, self.projection = network.vision_model, network.vision_proj
        self.query = Query(network.text_encoder, network.text_proj, temperature)
        self.vision.requires_grad_(False)
        self.projection.requires_grad_(False)

    def batch_loss(self, references: Tensor, tokens: Tensor, targets: Tensor) -> Tensor:
        """Mean over the batch; references and targets are pixels [B, 3, S, S], normalised."""
        states = self.vision(torch.cat([references, targets])).last_hidden_state
        reference, target = states.chunk(2)
        rows = F.normalize(self.projection(target[:, 0]), dim=-1)
        label = torch.arange(len(tokens), device=tokens.device)
        return self.query.bank_loss(reference, tokens, rows, label)


def query(size: BlipSize, temperature: float) -> Query:
    """The text side alone, with random parameters."""
    config = _config(size)
    encoder = BlipTextModel(config.text_config, add_pooling_layer=False).eval()
    projection = nn.Linear(config.text_config.hidden_size, config.image_text_hidden_size)
    return Query(encoder, projection, temperature)


def optimizer(model: nn.Module, learning_rate: float = 5e-6) -> torch.optim.AdamW:
    """AdamW of the released runs, over all that is not frozen, the temperature included."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(trained, lr=learning_rate, eps=1e-7, weight_decay=0.01)


def _config(size: BlipSize) -> BlipConfig:
    return BlipConfig.from_dict(huggingface.config_of(size, CONTEXT))
