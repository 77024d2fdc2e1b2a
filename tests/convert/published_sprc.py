# SPDX-License-Identifier: Apache-2.0
"""A tiny SPRC in PyTorch with random values, and our model of the same size and values."""

import functools

import numpy as np
import torch

from cir_jax import config, contract
from cir_jax.convert import tables
from cir_jax.convert.containers import tensors
from cir_jax.models.sprc import layouts
from cir_jax.towers.blip2 import sizes
from tools.torch_models import random_values, sprc

TOWER = "eva-16-8-w32-m48-l2-h2_qformer-w24-m40-l4-h2-q3_d8"
SIZE = sizes.find(TOWER)
FORMATS = {layout.name: layout for layout in layouts.LAYOUTS}


@functools.cache
def functions(tower=TOWER):
    """Our model."""
    changes = ["model.name=sprc", f"model.tower={tower}", "model.dtype=float32"]
    return contract.build(config.load("base", changes).model)


def randomised(network, seed=0):
    """The network with random values, but for what they may not be."""
    state = random_values.state(network, seed)
    for name, old in network.state_dict().items():
        if name.endswith("position_ids"):
            state[name] = old
        elif name.endswith("temp"):
            state[name] = torch.tensor(0.07)
        elif "word_embeddings" in name or "decoder.weight" in name:  # tied
            state[name] = 0.3 * torch.randn(old.shape, generator=torch.manual_seed(seed))
    network.load_state_dict(state)
    return network.eval()


def network(*, second=False, seed=0):
    """PyTorch's model; `second`: with the copy that stage two trains, of which values moved on."""
    model = randomised(sprc.Sprc(SIZE), seed)
    if second:
        model.begin_stage_two(0.05)
        with torch.no_grad():
            for name, value in model.named_parameters():
                unused = ("crossattention", "intermediate_query", "output_query", ".cls.")
                if name.startswith(("Qformer_query", "text_proj_q")):
                    if not any(part in name for part in unused):
                        value.add_(0.1 * torch.randn(value.shape, generator=torch.manual_seed(9)))
    return model


def ours(model, tower=TOWER):
    """(index tree, query tree) of our model, from PyTorch's."""
    second, abstract = hasattr(model, "Qformer_query"), functions(tower).abstract
    layout = FORMATS["spn" if second else "sprc"]
    prefix = layouts.PREFIX if second else ""
    held = {prefix + name: tensors.of(x.detach().numpy()) for name, x in model.state_dict().items()}
    query = tables.fill(tables.expand(layout.rules(None), abstract), abstract, held, "PyTorch")
    if not second:
        return query, query
    rules = layout.index_rules(None)
    part = tables.leaves(rules, abstract)
    return query | tables.fill(tables.expand(rules, part), part, held, "PyTorch"), query


def examples(batch=4, length=9, seed=0, size=SIZE):
    """(reference pixels, target pixels, text) as we take them; texts have different lengths."""
    rng, side = np.random.default_rng(seed), size.vision.image
    pixels = rng.normal(size=(2, batch, side, side, 3)).astype(np.float32)
    text = np.zeros((batch, length), np.int32)
    for row, used in zip(text, rng.integers(3, length + 1, batch), strict=True):
        row[:used] = [101, *rng.integers(1000, 30522, used - 2), 102]
    return *pixels, text


def in_torch(*arrays):
    """Pixels channels first, and ids, as PyTorch takes them."""
    return tuple(
        torch.from_numpy(x.astype(np.int64) if x.ndim == 2 else x.transpose(0, 3, 1, 2).copy())
        for x in arrays
    )
