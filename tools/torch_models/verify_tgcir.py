# SPDX-License-Identifier: Apache-2.0
"""TG-CIR in PyTorch against ours on the same random inputs, both trees, layer by layer."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import Tensor

from cir_jax import weights
from cir_jax.contract import Functions
from cir_jax.convert import identify, sources
from cir_jax.errors import UserError
from cir_jax.models.tgcir import layouts
from cir_jax.params import Params
from cir_jax.towers.clip import sizes
from tools.torch_models import clip, ours, random_values, state_dicts, tgcir

STAGES = {"tgcir": 1, "tgcir_spn": 2}  # layout -> stage
UNREAD = r"loss_T|backbone\.image_backbone\..*"  # the second is `clip.visual` again


def both(
    places: list[str], functions: Functions, index: Params, query: Params, batch: int, seed: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], str]:
    """(PyTorch's trace, ours, where PyTorch's tensors come from) on random images and texts.

    Args:
      places: what the weights were read from; a run gives what an export of it writes.
      functions: the model, computing in float32.
      index, query: its two trees.
      batch: number of images and texts.
      seed: of those.

    Raises:
      UserError: the weights are no TG-CIR but a CLIP to start one from.
    """
    context = functions.abstract["text/position"].shape[0]
    pixels, tokens = random_values.inputs(functions.image_size, context, batch, seed)
    state, stage, whose = _state(places, functions, index, query)
    with torch.device("meta"):
        model = tgcir.TgCir(sizes.find(functions.config.tower), context, stage=stage)
    state_dicts.filled(model, state, UNREAD)
    want = trace(model, pixels, tokens)
    return want, _ours(functions, index, query, pixels, tokens), f"TG-CIR with {whose}"


@torch.no_grad()
def trace(model: tgcir.TgCir, pixels: np.ndarray, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """`clip.trace`, then "text/tokens", "reference" [B, 12, D], "target" and "query" [B, D]."""
    images, texts = clip.inputs(pixels, tokens)
    reference = model.image_tokens(images)
    found = {
        "text/tokens": model.text_tokens(texts),
        "reference": reference,
        "target": model.target(images),
        "query": model.query(reference, texts),
    }
    layers = clip.trace(model.backbone.clip, pixels, tokens)
    return layers | {name: x.numpy() for name, x in found.items()}


def _ours(
    functions: Functions, index: Params, query: Params, pixels: np.ndarray, tokens: np.ndarray
) -> dict[str, np.ndarray]:
    """The same of our model: images go through the index tree, texts through the query tree."""
    visual, text = functions.merged(index).visual, functions.merged(query).text
    found = ours.encoders(visual, text, pixels, tokens)
    features = jax.jit(functions.text_features)(query, jnp.asarray(tokens), None)
    reference, target, composed = ours.embed(functions, index, query, pixels, tokens)
    return found | {
        "text/tokens": np.asarray(features, np.float32),
        "reference": reference,
        "target": target[:, 0],
        "query": composed,
    }


def _state(
    places: list[str], functions: Functions, index: Params, query: Params
) -> tuple[dict[str, Tensor], int, str]:
    """(tensors in their names, stage, where they come from)."""
    (place,) = places
    if not weights.is_run(place):
        source = sources.open_source(place)
        layout, held = identify.find(source, functions.config.name)
        if layout.name in STAGES:
            tensors = state_dicts.of_file(source, held.group)
            return tensors, STAGES[layout.name], f"the tensors of {place}"
        if layout.name != "safetensors":
            raise UserError(
                f"{place} ({layout.about}) is a CLIP to start a TG-CIR from, and the rest would be "
                "random; give a run of TG-CIR, or compare the CLIP, --model clip_sum"
            )
    written = state_dicts.of_export(functions, index, query, "tgcir_spn", layouts.KEY)
    return written, 2, "the tensors that an export writes"
