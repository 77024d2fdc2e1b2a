# SPDX-License-Identifier: Apache-2.0
"""PyTorch's model against ours on the same random inputs, layer by layer.

PyTorch is given the tensors of the file, by PyTorch's own readers where they can (an archive of
TorchScript would have to be run). A run of ours has no such file: it gets what an export writes.
Models whose stage two holds a part of the network twice are compared as two trees.
"""

from typing import Any

import jax
import numpy as np
import torch
from torch import Tensor
from transformers import CLIPModel, MetaClip2Model

from cir_jax import weights
from cir_jax.contract import Functions
from cir_jax.convert import identify, sources, tables
from cir_jax.errors import UserError
from cir_jax.models.clip_combiner import layouts as clip_combiner
from cir_jax.params import Params
from cir_jax.towers.clip import sizes
from cir_jax.towers.clip import weight_rules as clip_rules
from tools.torch_models import (
    blip,
    clip,
    clip4cir,
    combiner,
    ours,
    random_values,
    state_dicts,
    transformers_clip,
    verify_sprc,
    verify_tgcir,
)

MODELS = ("clip_sum", "clip_combiner", "blip", "tgcir", "sprc")
TWO_TREES = {"tgcir": verify_tgcir.both, "sprc": verify_sprc.both}


def compare(
    places: list[str], functions: Functions, found: weights.Weights, batch: int = 2, seed: int = 0
) -> float:
    """Prints the largest difference of each layer, and returns the largest of all.

    Differences are divided by the largest value of the layer where that is over 1.

    Args:
      places: what the weights were read from.
      functions: the model, computing in float32.
      found: its parameters.
      batch: random images and texts.
      seed: of those.

    Raises:
      UserError: there is no such model in PyTorch here.
    """
    name = functions.config.name
    if name not in MODELS:
        raise UserError(f"verify has no PyTorch model of {name}; there are: {', '.join(MODELS)}")
    with jax.default_matmul_precision("highest"):  # a GPU would round the factors
        if name in TWO_TREES:
            trees = found.index, found.query
            want, got, whose = TWO_TREES[name](places, functions, *trees, batch, seed)
        else:
            one = clip_models if name != "blip" else blip.both
            want, got, whose = one(places, functions, _retrieval(functions, found), batch, seed)
    print(f"PyTorch: {whose}; {batch} random images of {functions.image_size} pixels and texts")
    far = ours.differences(want, got)
    for layer, difference in far.items():
        print(f"  {layer:24} {difference:.2e}")
    worst = max(far.values())
    print(f"largest difference: {worst:.2e}")
    return worst


def _retrieval(functions: Functions, found: weights.Weights) -> Params:
    """The one tree that retrieves: what `reference` and `target` read is the index's."""
    shared = set(functions.index_paths)
    return {p: (found.index if p in shared else found.query)[p] for p in functions.abstract}


def clip_models(
    places: list[str], functions: Functions, params: Params, batch: int, seed: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], str]:
    """(PyTorch's trace, ours, where PyTorch's tensors come from) of CLIP, with or without Combiner.

    Arguments are those of `blip.both`.
    """
    size, context = _size(functions)
    words = (0, range(4, size.text_variant.vocabulary), size.text_variant.end)
    text = words if size.text_variant.end else random_values.CLIP_TEXT
    pixels, tokens = random_values.inputs(functions.image_size, context, batch, seed, text)
    got = ours.trace(functions, params, pixels, tokens)
    want, whose = _published(places, functions, params, pixels, tokens)
    return want, got, whose


def _published(
    places: list[str], functions: Functions, params: Params, pixels: np.ndarray, tokens: np.ndarray
) -> tuple[dict[str, np.ndarray], str]:
    """(PyTorch's trace, where its tensors come from)."""
    size, context = _size(functions)
    clip_state, combiner_state, whose = None, None, []
    for place in [p for p in places if not weights.is_run(p)]:
        source = sources.open_source(place)
        layout, held = identify.find(source, functions.config.name)
        if layout.name in ("huggingface", "metaclip2"):
            kind = CLIPModel if layout.name == "huggingface" else MetaClip2Model
            whose.append(f"transformers' {kind.__name__} of {place}")
            model = kind.from_pretrained(place, dtype=torch.float32).eval()
            layers = transformers_clip.trace(model, pixels, tokens)
        elif layout.name == "combiner":
            combiner_state = state_dicts.of_file(source, held.group)
            whose.append(f"the Combiner of {place}")
        elif layout.name != "safetensors":
            prefix = "clip." if layout.name == "spn" else ""
            state = state_dicts.of_file(source, held.group)
            state = {n.removeprefix(prefix).removeprefix("text."): x for n, x in state.items()}
            ignored = [n for n in state if tables.ignored_reason(layout.ignored, n)]
            clip_state = {n: x for n, x in state.items() if n not in ignored}
            whose.append(f"the tensors of {place}")
    if not any(text.startswith("transformers'") for text in whose):
        if clip_state is None:
            clip_state = state_dicts.of_rules(clip_rules.openai(size), params)
            whose.append("CLIP by the tensors that an export writes")
        layers = clip4cir.trace(_filled(size, context, clip_state), pixels, tokens)
    if functions.config.name == "clip_combiner":
        if combiner_state is None:
            combiner_state = state_dicts.of_rules(clip_combiner.rules(), params)
            whose.append("the Combiner by those that an export writes")
        raw = (torch.from_numpy(layers[n]) for n in ("reference", "text/feature"))
        layers["query"] = combiner.query(combiner_state, *raw).numpy()
    return layers, ", ".join(whose)


def _size(functions: Functions) -> tuple[sizes.ClipSize, int]:
    """(size, text positions, without that of a class token)."""
    size = sizes.find(functions.config.tower)
    return size, functions.config.context or size.context


def _filled(size: Any, context: int, state: dict[str, Tensor]) -> clip4cir.Clip4Cir:
    """The network with these tensors; counters of steps, which no value depends on, are zero."""
    with torch.device("meta"):
        names = clip.build(size, context).state_dict()
    counters = {n: torch.tensor(0) for n in names if n.endswith("num_batches_tracked")}
    return clip4cir.Clip4Cir(clip.filled(size, context, counters | state))
