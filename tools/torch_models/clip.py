# SPDX-License-Identifier: Apache-2.0
"""CLIP in PyTorch, written from its formulas, with the tensor names of the published weights.

Every network is a generator of (layer name, value): `forward` takes the last value and `trace`
keeps them all, so what is compared layer by layer is what computes the feature.
Source: Radford et al., arXiv 2103.00020; names and shapes of the published state dicts.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cir_jax.towers.clip import sizes
from cir_jax.towers.clip.sizes import ClipSize, ResNetSize, TextSize, VisionTransformerSize

Layers = Iterator[tuple[str, Tensor]]
EXPANSION = 4  # output channels of a bottleneck per inner channel


class QuickGelu(nn.Module):
    """x * sigmoid(1.702 x)."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


ACTIVATIONS = {"quick_gelu": QuickGelu, "gelu": nn.GELU}


class FixedBatchNorm(nn.BatchNorm2d):
    """BatchNorm by its running statistics, in training as well, as in every released run."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )


class Block(nn.Module):
    """x + attention(ln_1(x)), then x + mlp(ln_2(x)); [B, T, C] -> [B, T, C]."""

    def __init__(self, size: VisionTransformerSize | TextSize, activation: str, causal: bool):
        super().__init__()
        width, inner = size.width, size.mlp or 4 * size.width
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, size.heads, batch_first=True)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, inner))
        self.mlp.add_module("activation", ACTIVATIONS[activation]())
        self.mlp.add_module("c_proj", nn.Linear(inner, width))
        self.causal = causal

    def forward(self, x: Tensor) -> Tensor:
        length, mask = x.shape[1], None
        if self.causal:  # True where a token must not look: behind itself
            mask = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, attn_mask=mask, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


def _blocks(
    size: VisionTransformerSize | TextSize, activation: str, *, causal: bool
) -> nn.ModuleDict:
    blocks = [Block(size, activation, causal) for _ in range(size.layers)]
    return nn.ModuleDict({"resblocks": nn.ModuleList(blocks)})


def _parameter(*shape: int) -> nn.Parameter:
    """Zeros: the values come from a state dict."""
    return nn.Parameter(torch.zeros(shape))


class VisionTransformer(nn.Module):
    """[B, 3, S, S] normalised -> [B, D], not unit length."""

    def __init__(self, size: VisionTransformerSize, embedding: int, activation: str):
        super().__init__()
        width, patch = size.width, size.patch
        self.conv1 = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.class_embedding = _parameter(width)
        self.positional_embedding = _parameter((size.image // patch) ** 2 + 1, width)
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = _blocks(size, activation, causal=False)
        self.proj = _parameter(width, embedding)

    def layers(self, pixels: Tensor) -> Layers:
        """(name, value) of each layer, in order of execution; the last is the feature."""
        x = self.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1)
        x = self.ln_pre(x + self.positional_embedding)
        yield "stem", x
        for number, block in enumerate(self.transformer["resblocks"]):
            x = block(x)
            yield f"block {number}", x
        yield "feature", self.ln_post(x[:, 0]) @ self.proj

    def forward(self, pixels: Tensor) -> Tensor:
        return _last(self.layers(pixels))


class Bottleneck(nn.Module):
    """1x1, 3x3, pool, 1x1, plus the shortcut, pooled and projected where shapes differ."""

    def __init__(self, inputs: int, planes: int, stride: int):
        super().__init__()
        outputs = planes * EXPANSION
        self.conv1 = nn.Conv2d(inputs, planes, 1, bias=False)
        self.bn1 = FixedBatchNorm(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = FixedBatchNorm(planes)
        self.conv3 = nn.Conv2d(planes, outputs, 1, bias=False)
        self.bn3 = FixedBatchNorm(outputs)
        self.pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.downsample = nn.Sequential()
        if stride > 1 or inputs != outputs:
            self.downsample.add_module("0", nn.Conv2d(inputs, outputs, 1, bias=False))
            self.downsample.add_module("1", FixedBatchNorm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.pool(torch.relu(self.bn2(self.conv2(y))))
        y = self.bn3(self.conv3(y))
        return torch.relu(y + self.downsample(self.pool(x)))


class AttentionPool(nn.Module):
    """Attention whose one query is the mean over positions: [B, C, H, W] -> [B, D]."""

    def __init__(self, positions: int, width: int, heads: int, embedding: int):
        super().__init__()
        self.positional_embedding = _parameter(positions + 1, width)
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.c_proj = nn.Linear(width, embedding)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1) + self.positional_embedding

        def split(y: Tensor) -> Tensor:
            return y.unflatten(2, (self.heads, -1)).transpose(1, 2)

        query, key, value = self.q_proj(x[:, :1]), self.k_proj(x), self.v_proj(x)
        mixed = F.scaled_dot_product_attention(split(query), split(key), split(value))
        return self.c_proj(mixed.transpose(1, 2).flatten(1))


class ModifiedResNet(nn.Module):
    """[B, 3, S, S] normalised -> [B, D], not unit length."""

    def __init__(self, size: ResNetSize, embedding: int):
        super().__init__()
        width = size.width
        for number, (inputs, outputs, stride) in enumerate(
            [(3, width // 2, 2), (width // 2, width // 2, 1), (width // 2, width, 1)], start=1
        ):
            conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
            self.add_module(f"conv{number}", conv)
            self.add_module(f"bn{number}", FixedBatchNorm(outputs))
        inputs = width
        for number, blocks in enumerate(size.blocks, start=1):
            planes = width * 2 ** (number - 1)
            stage = nn.Sequential()
            for i in range(blocks):
                stage.append(Bottleneck(inputs, planes, 2 if number > 1 and i == 0 else 1))
                inputs = planes * EXPANSION
            self.add_module(f"layer{number}", stage)
        self.attnpool = AttentionPool((size.image // 32) ** 2, inputs, size.heads, embedding)

    def layers(self, pixels: Tensor) -> Layers:
        """(name, value) of each layer, in order of execution; maps are [B, C, H, W]."""
        x = pixels
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = torch.relu(norm(conv(x)))
        x = F.avg_pool2d(x, 2)
        yield "stem", x
        for number in (1, 2, 3, 4):
            for i, block in enumerate(getattr(self, f"layer{number}")):
                x = block(x)
                yield f"stage {number}/{i}", x
        yield "feature", self.attnpool(x)

    def forward(self, pixels: Tensor) -> Tensor:
        return _last(self.layers(pixels))


class Clip(nn.Module):
    """Both encoders; the tensors of the text side have no prefix.

    Args:
      size: see `cir_jax.towers.clip.sizes`.
      context: text positions.
    """

    def __init__(self, size: ClipSize, context: int):
        super().__init__()
        if isinstance(size.vision, ResNetSize):
            self.visual = ModifiedResNet(size.vision, size.embedding)
        else:
            self.visual = VisionTransformer(size.vision, size.embedding, size.activation)
        self.transformer = _blocks(size.text, size.activation, causal=True)
        self.token_embedding = nn.Embedding(sizes.VOCABULARY, size.text.width)
        self.positional_embedding = _parameter(context, size.text.width)
        self.ln_final = nn.LayerNorm(size.text.width)
        self.text_projection = _parameter(size.text.width, size.embedding)
        self.logit_scale = _parameter()

    def encode_image(self, pixels: Tensor) -> Tensor:
        """[B, 3, S, S] normalised -> [B, D], not unit length."""
        return self.visual(pixels)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """[B, T] ids, T up to the context -> [B, D], not unit length."""
        return _last(self.text_layers(tokens))

    def text_layers(self, tokens: Tensor) -> Layers:
        """(name, value) of each layer of the text side; the last is the feature."""
        x = self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]]
        yield "embedding", x
        for number, block in enumerate(self.transformer["resblocks"]):
            x = block(x)
            yield f"block {number}", x
        x = self.ln_final(x)
        yield "norm", x
        end = tokens.argmax(dim=1)  # end-of-text has the largest id
        yield "feature", x[torch.arange(len(x), device=x.device), end] @ self.text_projection


def build(size: ClipSize, context: int = sizes.CONTEXT) -> Clip:
    """A network without useful values: `load_state_dict(state, strict=True)` brings them."""
    return Clip(size, context)


def filled(size: ClipSize, context: int, state: Mapping[str, Tensor]) -> Clip:
    """A network of exactly these tensors, float32 and in evaluation mode.

    Nothing is drawn and float32 tensors are not copied: they are shared with `state`.

    Raises:
      RuntimeError: names or shapes that are not those of the network; all are named.
    """
    with torch.device("meta"):
        model = build(size, context)
    wide = {n: x.float() if x.is_floating_point() else x for n, x in state.items()}
    model.load_state_dict(wide, strict=True, assign=True)
    return model.eval()


def inputs(pixels: np.ndarray, tokens: np.ndarray) -> tuple[Tensor, Tensor]:
    """[B, S, S, 3] and [B, T] as this project has them -> what `Clip` takes."""
    channels_first = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), np.float32)
    return torch.from_numpy(channels_first), torch.from_numpy(tokens.astype(np.int64))


def trace(model: Clip, pixels: np.ndarray, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """Layer name -> output of the layer, in order of execution, e.g. "visual/block 0".

    Args:
      model: the network.
      pixels: [B, S, S, 3] normalised, float32, channels last as in this project.
      tokens: [B, T] ids.

    Returns:
      Tokens [B, T, C], maps [B, H, W, C] (channels last) and features [B, D], float32.
    """
    images, texts = inputs(pixels, tokens)
    with torch.no_grad():
        found: dict[str, Any] = {f"visual/{n}": x for n, x in model.visual.layers(images)}
        found |= {f"text/{n}": x for n, x in model.text_layers(texts)}
    return {n: (x.movedim(1, -1) if x.ndim == 4 else x).numpy() for n, x in found.items()}


def _last(layers: Layers) -> Tensor:
    for _, x in layers:
        feature = x
    return feature
