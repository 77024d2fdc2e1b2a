# SPDX-License-Identifier: Apache-2.0
"""One step of stage two against the released step, written in plain PyTorch.

Both train the CLIP ViT-B/32 text tower (random weights of its shape) against a bank: forward, bank
loss, backward, AdamW with the released settings. The PyTorch step does what the released code does:
texts of 77 tokens, and the bank copied to the device of the loss at every step (a copy within
memory on a CPU), float32. Ours cuts the padding and accumulates the gradient in one pass.
Needs the extra `torch`.
"""

import argparse
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from cir_jax import config as configs
from cir_jax import step
from cir_jax.data import tokens
from cir_jax.models import contract
from cir_jax.negatives import bank as banks
from cir_jax.runtime import mesh as meshes
from cir_jax.runtime import optim, sharding
from cir_jax.stages import contract as stages
from cir_jax.towers import clip_sizes
from tools.benchmarks import timing

HELP = "a step of stage two against the released step in PyTorch"
TEMPERATURE = 0.02


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the benchmark."""
    parser.add_argument("--tower", default="ViT-B/32", help="CLIP size whose text tower trains")
    parser.add_argument("--batch", type=int, default=32, help="queries per step")
    parser.add_argument("--rows", type=int, default=46_000, help="images in the bank")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Times both, in turns."""
    rng = np.random.default_rng(0)
    size = clip_sizes.find(args.tower)
    lengths = rng.integers(8, 23, args.batch)  # captions of 8 to 22 tokens, start and end included
    ids = np.zeros((args.batch, clip_sizes.CONTEXT), np.int32)
    for row, length in zip(ids, lengths, strict=True):
        row[:length] = [49406, *rng.integers(1, 49405, length - 2), 49407]
    rows = rng.normal(size=(args.rows, size.embedding)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    problem = (
        ids,
        rows,
        rng.integers(0, args.rows, args.batch).astype(np.int32),
        rng.integers(0, args.rows, args.batch).astype(np.int32),
    )
    cut = tokens.fit(int(lengths.max()), clip_sizes.CONTEXT, (16, 24, 32, 48))
    programs = {
        "ours": _ours(args, *problem, cut),
        "ours, 77 tokens": _ours(args, *problem, clip_sizes.CONTEXT),
        "PyTorch": _released(size, *problem),
    }
    seconds = timing.alternate(programs, args.repeats)
    timing.table(
        ("step", "median s", "PyTorch / it"),
        [
            (name, float(np.median(x)), timing.ratio(seconds, "PyTorch", name))
            for name, x in seconds.items()
        ],
    )
    return {
        "tower": args.tower,
        "batch": args.batch,
        "rows": args.rows,
        "tokens": cut,
        "times_faster": timing.ratio(seconds, "PyTorch", "ours"),
        "times_faster_77_tokens": timing.ratio(seconds, "PyTorch", "ours, 77 tokens"),
    }


def _ours(
    args: argparse.Namespace,
    ids: np.ndarray,
    rows: np.ndarray,
    reference: np.ndarray,
    label: np.ndarray,
    length: int,
) -> Callable[[], Any]:
    config = configs.load(
        "clip_sum:fashioniq,stage=2",
        [f"model.tower={args.tower}", "model.dtype=float32", f"loss.temperature={TEMPERATURE}"],
    )
    mesh = meshes.make()
    functions = contract.build(config.model)
    stage = stages.load(config.stage).Stage.from_config(config, functions, mesh)
    places = sharding.parameter_shardings(functions, mesh)
    params = sharding.place(functions.init(0), places)
    paths = stages.trainable(stage, functions)
    trained = {p: params.pop(p) for p in paths}
    optimizer = optim.build(config.optim, paths, 1000)
    kept = {"trained": trained, "state": jax.jit(optimizer.init)(trained)}
    update = step.make(stage, functions, optimizer, sources=1)
    bank = banks.place({"targets": rows[:, None], "references": rows[:, None] * 3}, mesh)
    batch = {
        "text": ids[:, :length],
        "reference_id": reference,
        "target_id": label,
        "source_id": np.zeros(len(ids), np.int32),
    }
    batch = jax.device_put(batch, meshes.batch_sharding(mesh))
    key = jax.random.key(0)

    def one() -> Any:
        kept["trained"], kept["state"], values = update(
            kept["trained"], kept["state"], params, batch, bank, key
        )
        return values["loss"]

    return one


def _released(
    size: clip_sizes.ClipSize,
    ids: np.ndarray,
    rows: np.ndarray,
    reference: np.ndarray,
    label: np.ndarray,
) -> Callable[[], Any]:
    import torch

    text = size.text
    tower = _torch_text_tower(torch, text.width, text.heads, text.layers, size.embedding)
    optimizer = torch.optim.AdamW(tower.parameters(), lr=2e-5, eps=1e-7, weight_decay=0.01)
    tokens_, targets = torch.from_numpy(ids).long(), torch.from_numpy(rows)
    references, wanted = targets * 3, torch.from_numpy(label).long()
    chosen = torch.from_numpy(reference).long()
    last = tokens_.argmax(dim=1)

    def one() -> Any:
        bank = targets.clone()
        feature = tower(tokens_)[torch.arange(len(tokens_)), last] @ tower.projection
        query = torch.nn.functional.normalize(references[chosen] + feature, dim=-1)
        loss = torch.nn.functional.cross_entropy(query @ bank.T / TEMPERATURE, wanted)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return one


def _torch_text_tower(torch: Any, width: int, heads: int, layers: int, embedding: int) -> Any:
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
            self.words = nn.Embedding(clip_sizes.VOCABULARY, width)
            self.position = nn.Parameter(torch.randn(clip_sizes.CONTEXT, width) * 0.01)
            self.blocks = nn.ModuleList(Block() for _ in range(layers))
            self.norm = nn.LayerNorm(width)
            self.projection = nn.Parameter(torch.randn(width, embedding) * width**-0.5)
            mask = torch.full((clip_sizes.CONTEXT,) * 2, float("-inf")).triu(1)
            self.register_buffer("mask", mask)

        def forward(self, ids: Any) -> Any:
            x = self.words(ids) + self.position
            for block in self.blocks:
                x = block(x, self.mask)
            return self.norm(x)

    return Tower()
