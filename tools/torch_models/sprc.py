# SPDX-License-Identifier: Apache-2.0
"""SPRC in PyTorch, with the tensor names, the losses and the optimizer of the released runs: what
`sprc` and its two stages must agree with.

Sources: Bai et al., "Sentence-level Prompts Benefit Composed Image Retrieval", ICLR 2024, and its
released code for stage one; Feng et al., arXiv 2404.11317, and its released runs for stage two.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cir_jax.towers.blip2.sizes import Blip2Size
from tools.torch_models import eva, qformer

TEMPERATURE = 0.07  # of stage one, where it is trained


class Sprc(nn.Module):
    """The network of both stages; `begin_stage_two` adds what the second one trains."""

    def __init__(self, size: Blip2Size):
        super().__init__()
        former, vision = size.former, size.vision
        self.visual_encoder = eva.VisionTransformer(vision)
        self.ln_vision = nn.LayerNorm(vision.width)
        self.Qformer = qformer.QFormer(former, vision.width)
        tokens = (1, former.queries, former.width)
        self.query_tokens = nn.Parameter(torch.zeros(tokens))
        self.prompt_tokens = nn.Parameter(torch.zeros(tokens))
        self.vision_proj = nn.Linear(former.width, size.embedding)
        self.text_proj = nn.Linear(former.width, size.embedding)
        self.itm_head = nn.Linear(former.width, 2)
        self.temp = nn.Parameter(torch.tensor(TEMPERATURE))
        self.visual_encoder.requires_grad_(False)

    def begin_stage_two(self, temperature: float) -> None:
        """The query side becomes a copy, which alone trains, with a new temperature."""
        self.requires_grad_(False)
        self.Qformer_query = copy.deepcopy(self.Qformer).requires_grad_(True)
        self.text_proj_q = copy.deepcopy(self.text_proj).requires_grad_(True)
        self.temp = nn.Parameter(torch.tensor(temperature))

    def see(self, pixels: Tensor) -> Tensor:
        """[B, 3, S, S] normalised -> [B, P, C'] image tokens."""
        return self.ln_vision(self.visual_encoder(pixels))

    def target(self, pixels: Tensor) -> Tensor:
        """[B, 3, S, S] normalised -> [B, K, D] unit rows."""
        states = self.Qformer.bert(self._queries(pixels), None, self.see(pixels))
        return F.normalize(self.vision_proj(states), dim=-1)

    def reference(self, pixels: Tensor, text: Tensor) -> Tensor:
        """[B, 3, S, S] and [B, T] -> [B, R, C]."""
        states = self.Qformer.bert(self._queries(pixels), text, self.see(pixels))
        return states[:, : self.query_tokens.shape[1]]

    def query(self, reference: Tensor, text: Tensor) -> Tensor:
        """[B, R, C] and [B, T] -> [B, D] unit rows, by the copy if there is one."""
        second = hasattr(self, "Qformer_query")
        former = self.Qformer_query if second else self.Qformer
        project = self.text_proj_q if second else self.text_proj
        return F.normalize(project(former.bert(reference, text)[:, reference.shape[1]]), dim=-1)

    def stage_one(self, references: Tensor, targets: Tensor, text: Tensor) -> dict[str, Tensor]:
        """The three losses of stage one, each a mean over the batch; images are pixels."""
        prompts, rows = self.reference(references, text), self.target(targets)
        label = torch.arange(len(text), device=text.device)
        learned = self.prompt_tokens.expand(len(text), -1, -1)
        alone = self.Qformer.bert(learned, text, behind_first=True)[:, 0]
        alone = F.normalize(self.text_proj(alone), dim=-1)
        aim = learned.detach().mean(dim=1)
        return {
            "itc": F.cross_entropy(self._logits(self.query(prompts, text), rows), label),
            "rtc": F.cross_entropy(self._logits(alone, rows), label),
            "align": F.mse_loss(prompts.mean(dim=1), aim),
        }

    def stage_two(self, references: Tensor, text: Tensor, bank: Tensor, label: Tensor) -> Tensor:
        """Mean loss over a bank [N, K, D] of rows; references [B, R, C] come from a bank too."""
        return F.cross_entropy(self._logits(self.query(references, text), bank), label)

    def _logits(self, query: Tensor, rows: Tensor) -> Tensor:
        return torch.einsum("bd,nkd->bnk", query, rows).amax(dim=-1) / self.temp

    def _queries(self, pixels: Tensor) -> Tensor:
        return self.query_tokens.expand(len(pixels), -1, -1)


def optimizer(model: Sprc, learning_rate: float = 1e-5) -> torch.optim.AdamW:
    """AdamW of the released runs, over all that is not frozen, the temperature included."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(
        trained, lr=learning_rate, betas=(0.9, 0.98), eps=1e-7, weight_decay=0.05
    )
