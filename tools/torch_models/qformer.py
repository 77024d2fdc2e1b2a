# SPDX-License-Identifier: Apache-2.0
"""The Q-Former as SPRC runs it, in PyTorch, from its formula, with the published tensor names.

What each position goes through depends on whether there is an image, see
`cir_jax.towers.blip2.qformer`. No layer drops anything: dropout is compared nowhere.
Sources: Li et al., BLIP-2, ICML 2023; Bai et al., ICLR 2024; names of the released state dicts.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cir_jax.towers.blip2.sizes import POSITIONS, VOCABULARY, QFormerSize

EPSILON = 1e-12
MASKED = -1e4  # what is added to the logit of a key that is padding


class Added(nn.Module):
    """LayerNorm(dense(y) + x), which ends every part of a layer."""

    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.dense = nn.Linear(inputs, width)
        self.LayerNorm = nn.LayerNorm(width, eps=EPSILON)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(y) + x)


class Attention(nn.Module):
    """From x [B, T, C] to source [B, U, C']; `mask` [B, U] is 0 or MASKED."""

    def __init__(self, width: int, heads: int, source: int):
        super().__init__()
        self.self = nn.ModuleDict(
            {
                "query": nn.Linear(width, width),
                "key": nn.Linear(source, width),
                "value": nn.Linear(source, width),
            }
        )
        self.output = Added(width, width)
        self.heads = heads

    def forward(self, x: Tensor, source: Tensor, mask: Tensor | None) -> Tensor:
        def split(name: str, y: Tensor) -> Tensor:
            return self.self[name](y).unflatten(2, (self.heads, -1)).transpose(1, 2)

        query, key, value = split("query", x), split("key", source), split("value", source)
        logits = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5
        if mask is not None:
            logits = logits + mask[:, None, None]
        mixed = logits.softmax(dim=-1) @ value
        return self.output(mixed.transpose(1, 2).flatten(2), x)


class Layer(nn.Module):
    """One layer; `image` is None in a pass without one."""

    def __init__(self, size: QFormerSize, image_width: int):
        super().__init__()
        width, inner = size.width, size.mlp or 4 * size.width
        self.attention = Attention(width, size.heads, width)
        if image_width:
            self.crossattention = Attention(width, size.heads, image_width)
        for end in ("", "_query"):
            self.add_module(f"intermediate{end}", nn.ModuleDict({"dense": nn.Linear(width, inner)}))
            self.add_module(f"output{end}", Added(inner, width))

    def feed(self, x: Tensor, end: str) -> Tensor:
        """One of the two MLPs."""
        inner = F.gelu(getattr(self, f"intermediate{end}")["dense"](x))
        return getattr(self, f"output{end}")(inner, x)

    def forward(self, x: Tensor, mask: Tensor, image: Tensor | None, slots: int) -> Tensor:
        x = self.attention(x, x, mask)
        if image is None:
            return self.feed(x, "")
        first, text = x[:, :slots], x[:, slots:]
        if hasattr(self, "crossattention"):
            first = self.crossattention(first, image, None)
        return torch.cat([self.feed(first, "_query"), self.feed(text, "")], dim=1)


class Bert(nn.Module):
    """Embeddings and layers."""

    def __init__(self, size: QFormerSize, image_width: int):
        super().__init__()
        self.embeddings = nn.ModuleDict(
            {
                "word_embeddings": nn.Embedding(VOCABULARY, size.width),
                "position_embeddings": nn.Embedding(POSITIONS, size.width),
                "LayerNorm": nn.LayerNorm(size.width, eps=EPSILON),
            }
        )
        self.embeddings.register_buffer("position_ids", torch.arange(POSITIONS)[None])
        layers = [Layer(size, 0 if i % 2 else image_width) for i in range(size.layers)]
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(layers)})

    def forward(
        self,
        slots: Tensor,
        text: Tensor | None = None,
        image: Tensor | None = None,
        behind_first: bool = False,
    ) -> Tensor:
        """States of slots and text.

        Args:
          slots: [B, R, C].
          text: [B, T] ids, or None.
          image: [B, P, C'], or None.
          behind_first: slots come behind the first token, and everything has a position.
        """
        x, seen = slots, torch.ones(slots.shape[:2], device=slots.device)
        if text is not None:
            words = self.embeddings["word_embeddings"](text)
            position = self.embeddings["position_embeddings"].weight
            attended = (text != 0).float()
            if behind_first:
                x = torch.cat([words[:, :1], slots, words[:, 1:]], dim=1)
                x = x + position[: x.shape[1]]
                seen = torch.cat([attended[:, :1], seen, attended[:, 1:]], dim=1)
            else:
                x = torch.cat([slots, words + position[: words.shape[1]]], dim=1)
                seen = torch.cat([seen, attended], dim=1)
        x = self.embeddings["LayerNorm"](x)
        for layer in self.encoder["layer"]:
            x = layer(x, (1 - seen) * MASKED, image, slots.shape[1])
        return x


class QFormer(nn.Module):
    """`bert`, and the head that predicts words, which composed retrieval never runs."""

    def __init__(self, size: QFormerSize, image_width: int):
        super().__init__()
        self.bert = Bert(size, image_width)
        width = size.width
        transform = nn.ModuleDict(
            {"dense": nn.Linear(width, width), "LayerNorm": nn.LayerNorm(width, eps=EPSILON)}
        )
        decoder = nn.Linear(width, VOCABULARY)
        decoder.weight = self.bert.embeddings["word_embeddings"].weight  # tied
        predictions = nn.ModuleDict({"transform": transform, "decoder": decoder})
        predictions.register_parameter("bias", decoder.bias)
        self.cls = nn.ModuleDict({"predictions": predictions})
