# SPDX-License-Identifier: Apache-2.0
"""The image encoder of BLIP-2 in PyTorch, from its formula, with the published tensor names.

Source: Fang et al., "EVA: Exploring the Limits of Masked Visual Representation Learning at Scale",
CVPR 2023, and the names and shapes of the state dict that BLIP-2 released.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cir_jax.towers.clip.sizes import VisionTransformerSize

EPSILON = 1e-6


class Attention(nn.Module):
    """Self-attention whose keys have no bias; [B, T, C] -> [B, T, C]."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).chunk(3, dim=-1)

        def split(y: Tensor) -> Tensor:
            return y.unflatten(2, (self.heads, -1)).transpose(1, 2)

        mixed = F.scaled_dot_product_attention(
            split(query + self.q_bias), split(key), split(value + self.v_bias)
        )
        return self.proj(mixed.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two products with the exact GELU between."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """x + attn(norm1(x)), then x + mlp(norm2(x))."""

    def __init__(self, size: VisionTransformerSize):
        super().__init__()
        width = size.width
        self.norm1 = nn.LayerNorm(width, eps=EPSILON)
        self.norm2 = nn.LayerNorm(width, eps=EPSILON)
        self.attn = Attention(width, size.heads)
        self.mlp = Mlp(width, size.mlp or 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """[B, 3, S, S] normalised -> [B, 1 + patches, C], without a norm at the end."""

    def __init__(self, size: VisionTransformerSize):
        super().__init__()
        width, patch = size.width, size.patch
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, (size.image // patch) ** 2 + 1, width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, stride=patch)})
        self.blocks = nn.ModuleList([Block(size) for _ in range(size.layers)])

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch_embed["proj"](pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return x
