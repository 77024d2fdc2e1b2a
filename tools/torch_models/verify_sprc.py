# SPDX-License-Identifier: Apache-2.0
"""SPRC in PyTorch against ours on the same random inputs, both trees, layer by layer.

transformers has BLIP-2 but no SPRC: a folder of its is compared, by its own model, in what both
have, which is image tokens, target, and the feature of a text that comes without an image.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from torch import Tensor, nn
from transformers import Blip2ForImageTextRetrieval

from cir_jax import weights
from cir_jax.contract import Functions
from cir_jax.convert import identify, sources
from cir_jax.data import wordpiece
from cir_jax.models.sprc import layouts
from cir_jax.params import Params
from cir_jax.towers.blip2 import sizes
from cir_jax.towers.layers import unit
from tools.torch_models import clip, ours, random_values, sprc, state_dicts

TEXT = (wordpiece.START, range(1000, wordpiece.WORDS), wordpiece.END)
LONGEST = 32  # tokens of a text
# Heads and numbers that no row needs, and what stage two copied of the image side.
UNREAD = (
    r"(Qformer(_query)?\.cls|itm_head)\..*|temp|prompt_tokens|.*\.position_ids"
    r"|Qformer_query\..*\.(crossattention|intermediate_query|output_query)\..*"
)
Trace = dict[str, np.ndarray]


def both(
    places: list[str], functions: Functions, index: Params, query: Params, batch: int, seed: int
) -> tuple[Trace, Trace, str]:
    """(PyTorch's trace, ours, where PyTorch's tensors come from) on random images and texts.

    Args:
      places: what the weights were read from; a run gives what an export of it writes.
      functions: the model, computing in float32.
      index, query: its two trees.
      batch: number of images and texts.
      seed: of those.
    """
    pixels, text = random_values.inputs(functions.image_size, LONGEST, batch, seed, TEXT)
    got = _ours(functions, index, query, pixels, text)
    found = [] if weights.is_run(places[0]) else [_found(p, functions) for p in places]
    if found and found[0][1].name == "huggingface":
        (place,) = places
        want = transformers_trace(place, pixels, text)
        got["text"] = _text_alone(functions, query, text)
        whose = "transformers' BLIP-2, which has neither reference nor query of SPRC, of"
        return want, {n: got[n] for n in got if n in want}, f"{whose} {place}"
    state, whose = {}, f"SPRC with the tensors of {', '.join(map(str, places))}"
    for source, layout, group in found:
        if layout.name != "safetensors":
            prefix = "visual_encoder." if layout.name == "eva" else ""
            tensors = state_dicts.of_file(source, group)
            state |= {prefix + n.removeprefix(layouts.PREFIX): x for n, x in tensors.items()}
    if not state:
        state = state_dicts.of_export(functions, index, query, "spn", "state_dict")
        state = {n.removeprefix(layouts.PREFIX): x for n, x in state.items()}
        whose = "SPRC with the tensors that an export writes"
    with torch.device("meta"):
        model = sprc.Sprc(sizes.find(functions.config.tower))
        if any(name.startswith(layouts.COPY) for name in state):
            model.begin_stage_two(layouts.TEMPERATURE)
    state_dicts.filled(model, state, UNREAD)
    return trace(model, pixels, text), got, whose


@torch.no_grad()
def trace(model: sprc.Sprc, pixels: np.ndarray, text: np.ndarray) -> Trace:
    """Layer name -> output of the layer; last "target", "reference" and "query".

    The three passes through the Q-Former are "target/...", "reference/..." and "query/...".

    Args:
      model: the network.
      pixels: [B, S, S, 3] normalised, float32.
      text: [B, T] ids, 0 is padding.
    """
    images, texts = clip.inputs(pixels, text)
    found, ends = {}, {}
    with _kept(found, "visual/block", model.visual_encoder.blocks):
        found["visual/tokens"] = model.see(images)
    with _kept(found, "target/layer", model.Qformer.bert.encoder["layer"]):
        ends["target"] = model.target(images)
    with _kept(found, "reference/layer", model.Qformer.bert.encoder["layer"]):
        ends["reference"] = model.reference(images, texts)
    composing = getattr(model, layouts.COPY, model.Qformer)
    with _kept(found, "query/layer", composing.bert.encoder["layer"]):
        ends["query"] = model.query(ends["reference"], texts)
    return {name: x.numpy() for name, x in (found | ends).items()}


@torch.no_grad()
def transformers_trace(place: str, pixels: np.ndarray, text: np.ndarray) -> Trace:
    """What transformers' model of the folder `place` has of the same, and "text" [B, D]."""
    images, texts = clip.inputs(pixels, text)
    model = Blip2ForImageTextRetrieval.from_pretrained(place, dtype=torch.float32).eval()
    seen = model.vision_model(images, output_hidden_states=True)
    out = model(images, texts, attention_mask=(texts != 0).long())
    blocks = {f"visual/block {i}": x for i, x in enumerate(seen.hidden_states[1:])}
    ends = {
        "visual/tokens": seen.last_hidden_state,
        "target": out.image_embeds,
        "text": out.text_embeds,
    }
    return {name: x.numpy() for name, x in (blocks | ends).items()}


@contextmanager
def _kept(found: dict[str, Tensor], name: str, layers: Iterable[nn.Module]) -> Iterator[None]:
    """Whatever the layers give inside goes into `found`, by name and number."""

    def keep(number: int, module: nn.Module, inputs: Any, output: Tensor) -> None:
        found[f"{name} {number}"] = output

    hooks = [x.register_forward_hook(partial(keep, i)) for i, x in enumerate(layers)]
    yield
    for hook in hooks:
        hook.remove()


def _found(place: str, functions: Functions) -> tuple[sources.Source, Any, str]:
    source = sources.open_source(place)
    layout, found = identify.find(source, functions.config.name)
    return source, layout, found.group


def _ours(
    functions: Functions, index: Params, query: Params, pixels: np.ndarray, text: np.ndarray
) -> Trace:
    """The same of our model: layers one at a time, then its functions, which scan over all."""
    frozen, moving = functions.merged(index), functions.merged(query)
    ids, x = jnp.asarray(text, jnp.int32), frozen.visual.embed(jnp.asarray(pixels))
    found = {}
    for i, layer in enumerate(ours.layers(frozen.visual.blocks)):
        x = found[f"visual/block {i}"] = ours.run_layer(*layer, x)
    image = found["visual/tokens"] = frozen.norm_image(x)
    slots = jnp.broadcast_to(frozen.query_tokens[...], (len(text), *functions.reference_shape))
    reference, target, composed = ours.embed(functions, index, query, pixels, text)
    passes = {
        "target": (frozen.former, slots, None, image),
        "reference": (frozen.former, slots, ids, image),
        "query": (moving.former, jnp.asarray(reference), ids, None),
    }
    for name, inputs in passes.items():
        found |= {f"{name}/layer {i}": x for i, x in enumerate(_states(*inputs))}
    found |= {"target": target, "reference": reference, "query": composed}
    return {name: np.asarray(x, np.float32) for name, x in found.items()}


def _text_alone(functions: Functions, query: Params, text: np.ndarray) -> np.ndarray:
    """[B, T] -> [B, D], the unit feature of BLIP-2 of a text without slots and image."""
    model, ids = functions.merged(query), jnp.asarray(text, jnp.int32)
    none = jnp.zeros((len(text), 0, functions.reference_shape[1]), jnp.float32)
    *_, last = _states(model.former, none, ids, None)
    return np.asarray(unit(model.text_projection(last[:, 0])), np.float32)


def _states(
    former: Any, slots: jax.Array, text: jax.Array | None, image: jax.Array | None
) -> Iterator[jax.Array]:
    """The states [B, R + T, C] behind each layer of a pass."""
    x, mask, count = slots, jnp.ones(slots.shape[:2], bool), slots.shape[1]
    if text is not None:
        x = jnp.concatenate([x, former.embeddings.lookup(text)], axis=1)
        mask = jnp.concatenate([mask, text != 0], axis=1)
    x = former.embeddings.finish(x, 0.0, None)
    pairs = zip(ours.layers(former.pairs.even), ours.layers(former.pairs.odd), strict=True)
    for graph, state in (layer for pair in pairs for layer in pair):
        x = _run_layer(graph, count, state, x, mask, image)
        yield x


@partial(jax.jit, static_argnums=(0, 1))
def _run_layer(graph: Any, slots: int, state: Any, x: Any, mask: Any, image: Any) -> jax.Array:
    """Parameters are arguments: one program serves all layers of a kind and a pass."""
    return nnx.merge(graph, state)(x, mask, image, slots, None)
