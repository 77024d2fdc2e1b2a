# SPDX-License-Identifier: Apache-2.0
"""The image encoder of EVA-02-CLIP in PyTorch, written from its formulas, with the tensor names of
its weights in open_clip, below `visual.`.

Rotary positions: channels 2 i and 2 i + 1 of a head are turned by row * w_i, and those of the
second half of the head by column * w_i, w_i = 10000^(-i / (width / 4)); rows and columns are in
steps of a 16 x 16 grid. Sources: Fang et al., arXiv 2303.11331; Sun et al., arXiv 2303.15389.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cir_jax.towers.clip.sizes import EvaSize

EPSILON = 1e-6


class Turned(nn.Module):
    """Multi-head attention of turned queries and keys, with a norm before the last product."""

    def __init__(self, size: EvaSize):
        super().__init__()
        width = size.width
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=EPSILON)
        self.proj = nn.Linear(width, width)
        self.heads, self.across = size.heads, size.image // size.patch

    def forward(self, x: Tensor) -> Tensor:
        def split(y: Tensor) -> Tensor:
            return y.unflatten(2, (self.heads, -1)).transpose(1, 2)

        query, key, value = (split(part(x)) for part in (self.q_proj, self.k_proj, self.v_proj))
        mixed = F.scaled_dot_product_attention(self._turn(query), self._turn(key), value)
        return self.proj(self.norm(mixed.transpose(1, 2).flatten(2)))

    def _turn(self, x: Tensor) -> Tensor:
        """[B, H, 1 + patches, width of a head], as complex numbers; the class token is left."""
        half = x.shape[-1] // 4
        waves = 10_000.0 ** (-torch.arange(half) / half)
        steps = torch.arange(self.across) * 16 / self.across
        rows = (steps[:, None, None] * waves).expand(-1, self.across, -1)
        columns = (steps[None, :, None] * waves).expand(self.across, -1, -1)
        angle = torch.cat([rows, columns], dim=-1).flatten(0, 1)
        pairs = torch.view_as_complex(x[:, :, 1:].unflatten(-1, (-1, 2)).contiguous())
        turned = torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle))
        return torch.cat([x[:, :, :1], turned.flatten(-2)], dim=2)


class Gated(nn.Module):
    """fc2(norm(silu(fc1_g x) * fc1_x x))."""

    def __init__(self, size: EvaSize):
        super().__init__()
        width, inner = size.width, size.mlp or 4 * size.width
        self.fc1_g, self.fc1_x = nn.Linear(width, inner), nn.Linear(width, inner)
        self.norm = nn.LayerNorm(inner, eps=EPSILON)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.norm(F.silu(self.fc1_g(x)) * self.fc1_x(x)))


class Layer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, size: EvaSize):
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(size.width, eps=EPSILON) for _ in range(2))
        self.attn, self.mlp = Turned(size), Gated(size)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Trunk(nn.Module):
    """What timm has of it."""

    def __init__(self, size: EvaSize, embedding: int):
        super().__init__()
        width, patch = size.width, size.patch
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, (size.image // patch) ** 2 + 1, width))
        projection = nn.Conv2d(3, width, patch, stride=patch)
        self.patch_embed = nn.ModuleDict({"proj": projection})
        self.blocks = nn.ModuleList([Layer(size) for _ in range(size.layers)])
        self.norm = nn.LayerNorm(width, eps=EPSILON)
        self.head = nn.Linear(width, embedding)


class ImageEncoder(nn.Module):
    """[B, 3, S, S] normalised -> [B, D], not unit length.

    Args:
      size: see `cir_jax.towers.clip.sizes`.
      embedding: D.
    """

    def __init__(self, size: EvaSize, embedding: int):
        super().__init__()
        self.trunk = Trunk(size, embedding)

    def layers(self, pixels: Tensor) -> Iterator[tuple[str, Tensor]]:
        """(name, value) of each layer, in order of execution; the last is the feature."""
        trunk = self.trunk
        x = trunk.patch_embed["proj"](pixels).flatten(2).transpose(1, 2)
        x = torch.cat([trunk.cls_token.expand(len(x), -1, -1), x], dim=1) + trunk.pos_embed
        yield "stem", x
        for number, block in enumerate(trunk.blocks):
            x = block(x)
            yield f"block {number}", x
        yield "feature", trunk.head(trunk.norm(x)[:, 0])

    def forward(self, pixels: Tensor) -> Tensor:
        return list(self.layers(pixels))[-1][1]
