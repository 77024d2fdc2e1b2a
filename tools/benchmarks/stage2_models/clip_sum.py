# SPDX-License-Identifier: Apache-2.0
"""CLIP4CIR's step of stage two: the CLIP text tower, as released, in plain PyTorch."""

from collections.abc import Callable
from typing import Any

from cir_jax.towers.clip import sizes
from tools.benchmarks.stage2_models.contract import EAGER, Problem, Way

CONFIG = "clip_sum:fashioniq,stage=2"
TOWER = "ViT-B/32"
ROWS = 46_000  # images of the FashionIQ training split
TEMPERATURE = 0.02
PADDED = sizes.CONTEXT  # the released step pads every text to this
FIRST, LAST, WORDS = 49406, 49407, 49405  # ids of start and end, and one above those of words
REFERENCE_SCALE = 3.0  # raw features are longer than 1


def released(
    tower: str, problem: Problem, device: str = "cpu", way: Way = EAGER
) -> Callable[[], Any]:
    """The released step: texts of 77 tokens, the bank copied at every step, the released AdamW."""
    import torch

    size = sizes.find(tower)
    text = size.text
    with torch.device(device):
        network = _text_tower(torch, text.width, text.heads, text.layers, size.embedding)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-5, eps=1e-7, weight_decay=0.01)
    tokens = torch.from_numpy(problem.ids).long().to(device)
    bank_of = way.bank(torch.from_numpy(problem.targets[:, 0]), device)
    references = torch.from_numpy(problem.references[:, 0]).to(device)
    wanted = torch.from_numpy(problem.label).long().to(device)
    last = tokens.argmax(dim=1)
    each = torch.arange(len(tokens), device=device)

    def loss_of(bank: Any) -> Any:
        feature = network(tokens)[each, last] @ network.projection
        query = torch.nn.functional.normalize(references + feature, dim=-1)
        return torch.nn.functional.cross_entropy(query @ bank.T / TEMPERATURE, wanted)

    run = torch.compile(loss_of) if way.compiled else loss_of

    def one() -> Any:
        bank = bank_of()
        with way.casting(device):
            loss = run(bank)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return one


def _text_tower(torch: Any, width: int, heads: int, layers: int, embedding: int) -> Any:
    """A causal pre-norm transformer of CLIP's sizes; all 77 positions are computed."""
    nn = torch.nn

    class QuickGelu(nn.Module):
        def forward(self, x: Any) -> Any:
            return x * torch.sigmoid(1.702 * x)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
            wide = nn.Linear(width, 4 * width)
            self.mlp = nn.Sequential(wide, QuickGelu(), nn.Linear(4 * width, width))

        def forward(self, x: Any, mask: Any) -> Any:
            y = self.norm1(x)
            x = x + self.attention(y, y, y, need_weights=False, attn_mask=mask)[0]
            return x + self.mlp(self.norm2(x))

    class Tower(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(sizes.VOCABULARY, width)
            self.position = nn.Parameter(torch.randn(sizes.CONTEXT, width) * 0.01)
            self.blocks = nn.ModuleList(Block() for _ in range(layers))
            self.norm = nn.LayerNorm(width)
            self.projection = nn.Parameter(torch.randn(width, embedding) * width**-0.5)
            mask = torch.full((sizes.CONTEXT,) * 2, float("-inf")).triu(1)
            self.register_buffer("mask", mask)

        def forward(self, ids: Any) -> Any:
            x = self.words(ids) + self.position
            for block in self.blocks:
                x = block(x, self.mask)
            return self.norm(x)

    return Tower()
