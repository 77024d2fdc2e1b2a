# SPDX-License-Identifier: Apache-2.0
"""CLIP in PyTorch, written from its formulas, with the tensor names of the published weights.

With the parts that models of open_clip have beside: layer scale, CoCa's attention pool and class
token, other pools and masks. Their EVA-02 is in `tools.torch_models.eva02`. Where open_clip has
`custom_text`, names of the text side are those without `text.` before them here.

Every network is a generator of (layer name, value): `forward` takes the last value and `trace`
keeps them all, so what is compared layer by layer is what computes the feature.
Sources: Radford et al., arXiv 2103.00020; Yu et al., "CoCa", arXiv 2205.01917; names and shapes of
the published state dicts.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cir_jax.towers.clip import sizes
from cir_jax.towers.clip.sizes import (
    PLAIN_VISION,
    ClipSize,
    EvaSize,
    ResNetSize,
    TextSize,
    VisionTransformerSize,
    VisionVariant,
)
from tools.torch_models import eva02

Layers = Iterator[tuple[str, Tensor]]
EXPANSION = 4  # output channels of a bottleneck per inner channel


class QuickGelu(nn.Module):
    """x * sigmoid(1.702 x)."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class TanhGelu(nn.GELU):
    """The GELU by its approximation."""

    def __init__(self) -> None:
        super().__init__(approximate="tanh")


ACTIVATIONS = {"quick_gelu": QuickGelu, "gelu": nn.GELU, "gelu_tanh": TanhGelu}


class FixedBatchNorm(nn.BatchNorm2d):
    """BatchNorm by its running statistics, in training as well, as in every released run."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )


class LayerScale(nn.Module):
    """x times a learned vector."""

    def __init__(self, width: int):
        super().__init__()
        self.gamma = _parameter(width)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """x + attention(ln_1(x)), then x + mlp(ln_2(x)); [B, T, C] -> [B, T, C]."""

    def __init__(
        self,
        size: VisionTransformerSize | TextSize,
        activation: str,
        causal: bool,
        scale: bool = False,
        epsilon: float = 1e-5,
    ):
        super().__init__()
        width, inner = size.width, size.mlp or 4 * size.width
        self.ln_1, self.ln_2 = (nn.LayerNorm(width, eps=epsilon) for _ in range(2))
        self.attn = nn.MultiheadAttention(width, size.heads, batch_first=True)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, inner))
        self.mlp.add_module("activation", ACTIVATIONS[activation]())
        self.mlp.add_module("c_proj", nn.Linear(inner, width))
        self.ls_1 = LayerScale(width) if scale else nn.Identity()
        self.ls_2 = LayerScale(width) if scale else nn.Identity()
        self.causal = causal
        self.heads = size.heads

    def forward(self, x: Tensor, unseen: Tensor | None = None) -> Tensor:
        """`unseen` [B, U] bool: keys that nobody looks at."""
        length, mask = x.shape[1], None
        if self.causal:  # True where a token must not look: behind itself
            mask = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        if unseen is not None:
            assert mask is not None
            mask = (mask[None] | unseen[:, None]).repeat_interleave(self.heads, 0)
        y = self.ln_1(x)
        x = x + self.ls_1(self.attn(y, y, y, attn_mask=mask, need_weights=False)[0])
        return x + self.ls_2(self.mlp(self.ln_2(x)))


def _blocks(
    size: VisionTransformerSize | TextSize, activation: str, **options: Any
) -> nn.ModuleDict:
    blocks = [Block(size, activation, **options) for _ in range(size.layers)]
    return nn.ModuleDict({"resblocks": nn.ModuleList(blocks)})


def _parameter(*shape: int) -> nn.Parameter:
    """Zeros: the values come from a state dict."""
    return nn.Parameter(torch.zeros(shape))


class QueryPool(nn.Module):
    """CoCa's attention pool: [B, T, C] -> [B, queries, D]."""

    def __init__(self, width: int, embedding: int, queries: int, heads: int):
        super().__init__()
        self.query = _parameter(queries, embedding)
        self.attn = nn.MultiheadAttention(
            embedding, heads, kdim=width, vdim=width, batch_first=True
        )
        self.ln_q, self.ln_k = nn.LayerNorm(embedding), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        keys = self.ln_k(x)
        queries = self.ln_q(self.query).expand(len(x), -1, -1)
        return self.attn(queries, keys, keys, need_weights=False)[0]


class VisionTransformer(nn.Module):
    """[B, 3, S, S] normalised -> [B, D], not unit length."""

    def __init__(
        self,
        size: VisionTransformerSize,
        embedding: int,
        activation: str,
        variant: VisionVariant = PLAIN_VISION,
    ):
        super().__init__()
        width, patch, eps = size.width, size.patch, variant.epsilon
        self.conv1 = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.class_embedding = _parameter(width)
        self.positional_embedding = _parameter((size.image // patch) ** 2 + 1, width)
        self.ln_pre = nn.LayerNorm(width, eps=eps) if variant.norm_in else nn.Identity()
        read = embedding if variant.queries else width
        self.ln_post = nn.LayerNorm(read, eps=eps)
        self.transformer = _blocks(size, activation, causal=False, scale=variant.scale, epsilon=eps)
        if variant.queries:
            pool = embedding, variant.queries, variant.query_heads
            self.attn_pool = QueryPool(width, *pool)
        self.proj = _parameter(read, embedding)
        self.variant = variant

    def layers(self, pixels: Tensor) -> Layers:
        """(name, value) of each layer, in order of execution; the last is the feature."""
        x = self.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1)
        x = self.ln_pre(x + self.positional_embedding)
        yield "stem", x
        for number, block in enumerate(self.transformer["resblocks"]):
            x = block(x)
            yield f"block {number}", x
        yield "feature", self._pooled(x) @ self.proj

    def _pooled(self, x: Tensor) -> Tensor:
        if self.variant.queries:
            return self.ln_post(self.attn_pool(x))[:, 0]
        if self.variant.pool == "class":
            return self.ln_post(x[:, 0])
        if self.variant.pool == "mean":
            return self.ln_post(x[:, 1:].mean(dim=1))
        return self.ln_post(x)[:, 1:].mean(dim=1)

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
      context: text positions, without that of a class token.
    """

    def __init__(self, size: ClipSize, context: int):
        super().__init__()
        vision, text, variant = size.vision, size.text, size.text_variant
        self.visual: nn.Module
        if isinstance(vision, ResNetSize):
            self.visual = ModifiedResNet(vision, size.embedding)
        elif isinstance(vision, EvaSize):
            self.visual = eva02.ImageEncoder(vision, size.embedding)
        else:
            kind = size.activation, size.vision_variant
            self.visual = VisionTransformer(vision, size.embedding, *kind)
        self.transformer = _blocks(
            text, size.activation, causal=variant.causal, scale=variant.scale,
            epsilon=variant.epsilon,
        )  # fmt: skip
        self.token_embedding = nn.Embedding(variant.vocabulary, text.width)
        self.positional_embedding = _parameter(context + variant.class_token, text.width)
        if variant.class_token:
            self.cls_emb = _parameter(text.width)
        self.ln_final = nn.LayerNorm(text.width, eps=variant.epsilon)
        self.text_projection: nn.Module | nn.Parameter
        if variant.bias:
            self.text_projection = nn.Linear(text.width, size.embedding)
        else:
            self.text_projection = _parameter(text.width, size.embedding)
        self.logit_scale = _parameter()
        self.context = context
        self.variant = variant

    def encode_image(self, pixels: Tensor) -> Tensor:
        """[B, 3, S, S] normalised -> [B, D], not unit length."""
        return self.visual(pixels)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """[B, T] ids, T up to the context -> [B, D], not unit length."""
        return _last(self.text_layers(tokens))

    def text_layers(self, tokens: Tensor) -> Layers:
        """(name, value) of each layer of the text side; the last is the feature.

        Of a text that is not causal, is read at a fixed place or has a class token, T must be the
        context.
        """
        x, unseen = self.token_embedding(tokens), None
        if self.variant.class_token:
            assert tokens.shape[1] == self.context
            x = torch.cat([x, self.cls_emb.expand(len(x), 1, -1)], dim=1)
            # The mask of open_clip's trained weights: that of the padding, one place to the right.
            first = torch.zeros(len(x), 1, dtype=torch.bool, device=x.device)
            unseen = torch.cat([first, tokens == 0], dim=1)
        x = x + self.positional_embedding[: x.shape[1]]
        yield "embedding", x
        for number, block in enumerate(self.transformer["resblocks"]):
            x = block(x, unseen)
            yield f"block {number}", x
        x = self.ln_final(x)
        yield "norm", x
        read = x[torch.arange(len(x), device=x.device), self._place(tokens)]
        if isinstance(self.text_projection, nn.Linear):
            yield "feature", self.text_projection(read)
        else:
            yield "feature", read @ self.text_projection

    def _place(self, tokens: Tensor) -> Tensor:
        """[B] where each text is read."""
        if self.variant.class_token or self.variant.pool == "last":
            return torch.full((len(tokens),), -1, device=tokens.device)
        if self.variant.pool == "first":
            return torch.zeros(len(tokens), dtype=torch.int64, device=tokens.device)
        if self.variant.end:
            return (tokens == self.variant.end).int().argmax(dim=1)
        return tokens.argmax(dim=1)  # end-of-text has the largest id


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
