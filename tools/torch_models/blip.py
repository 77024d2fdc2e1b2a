# SPDX-License-Identifier: Apache-2.0
"""BLIP4CIR in PyTorch: transformers' BLIP with the tensors of a released file, layer by layer.

The encoders are transformers' own; target and query are the formulas of `cir_jax.models.blip`
written out in PyTorch. Salesforce's names become transformers' by replacing parts of them, without
the rules of our converter.
"""

import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import BlipConfig, BlipForImageTextRetrieval

from cir_jax import weights
from cir_jax.contract import Functions
from cir_jax.convert import identify, sources, tables
from cir_jax.data import wordpiece
from cir_jax.models.blip import model as blip
from cir_jax.params import Params
from cir_jax.towers.blip import huggingface
from cir_jax.towers.blip import weight_rules as blip_rules
from cir_jax.towers.blip.sizes import CONTEXT, BlipSize
from tools.torch_models import random_values
from tools.torch_models.ours import layers, run_layer

# Part of a name of Salesforce's -> transformers'.
NAMES = (
    (r"^visual_encoder\.cls_token", "vision_model.embeddings.class_embedding"),
    (r"^visual_encoder\.pos_embed", "vision_model.embeddings.position_embedding"),
    (r"^visual_encoder\.patch_embed\.proj", "vision_model.embeddings.patch_embedding"),
    (r"^visual_encoder\.norm\.", "vision_model.post_layernorm."),
    (r"^visual_encoder\.blocks", "vision_model.encoder.layers"),
    (r"\.attn\.proj", ".self_attn.projection"),
    (r"\.attn\.qkv", ".self_attn.qkv"),
    (r"\.norm(\d)\.", r".layer_norm\1."),
)
PREFIX = "blip."  # of every name in `best.pt`
TEXT = (wordpiece.ENC, range(1000, wordpiece.WORDS), wordpiece.END)


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors in Salesforce's names, with or without the prefix -> in transformers' names."""
    found = {}
    for name, value in state.items():
        name = name.removeprefix(PREFIX)
        for theirs, named in NAMES:
            name = re.sub(theirs, named, name)
        found[name] = value
    return found


def build(
    size: BlipSize, state: Mapping[str, Tensor], context: int = CONTEXT
) -> BlipForImageTextRetrieval:
    """The network with these tensors, in transformers' names; of others it takes no notice.

    Raises:
      KeyError: a tensor of the encoders or projections is missing.
    """
    config = BlipConfig.from_dict(huggingface.config_of(size, context))
    config._attn_implementation = "eager"
    model = BlipForImageTextRetrieval(config).eval()
    own = model.state_dict()
    matching = {name: value for name, value in own.items() if name.startswith("itm_head.")}
    model.load_state_dict({n: matching[n] if n in matching else state[n] for n in own})
    return model


@torch.no_grad()
def trace(
    model: BlipForImageTextRetrieval, pixels: np.ndarray, tokens: np.ndarray
) -> dict[str, np.ndarray]:
    """Layer name -> output of the layer, then "reference", "target" and "query".

    States of padding are left out, as zeros: nobody looks at them.

    Args:
      model: the network.
      pixels: [B, S, S, 3] normalised, float32.
      tokens: [B, T] ids, 0 is padding.
    """
    images = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
    texts = torch.from_numpy(np.asarray(tokens, np.int64))
    image = model.vision_model(images, output_hidden_states=True)
    reference = image.last_hidden_state
    text = model.text_encoder(
        texts,
        attention_mask=(texts != 0).long(),
        encoder_hidden_states=reference,
        encoder_attention_mask=torch.ones(reference.shape[:2], dtype=torch.long),
        output_hidden_states=True,
    )
    found = {f"visual/{_name(i)}": x for i, x in enumerate(image.hidden_states)}
    seen = (texts != 0)[..., None]
    found |= {f"text/{_name(i)}": x * seen for i, x in enumerate(text.hidden_states)}
    found |= {
        "reference": reference,
        "target": normalize(model.vision_proj(reference[:, 0]), dim=-1),
        "query": normalize(model.text_proj(text.last_hidden_state[:, 0]), dim=-1),
    }
    return {name: x.numpy() for name, x in found.items()}


def ours(
    functions: Functions, params: Params, pixels: np.ndarray, tokens: np.ndarray
) -> dict[str, np.ndarray]:
    """The same of our model: layers one at a time, then its functions, which scan over all."""
    model, seen = functions.merged(params), (np.asarray(tokens) != 0)[..., None]
    tokens = jnp.asarray(tokens, jnp.int32)
    reference = jax.jit(functions.reference)(params, pixels, tokens)
    x = model.visual.embed(jnp.asarray(pixels))
    found = {f"visual/{_name(0)}": x}
    for i, layer in enumerate(layers(model.visual.blocks)):
        x = run_layer(*layer, x)
        found[f"visual/{_name(i + 1)}"] = x
    x = model.text.embeddings.finish(model.text.embeddings.lookup(tokens), 0.0, None)
    found[f"text/{_name(0)}"] = x * seen
    for i, layer in enumerate(layers(model.text.layers)):
        x = run_layer(*layer, x, reference, tokens != 0)
        found[f"text/{_name(i + 1)}"] = x * seen
    found |= {
        "reference": reference,
        "target": jax.jit(functions.target)(params, pixels)[:, 0],
        "query": jax.jit(functions.compose)(params, reference, tokens),
    }
    return {name: np.asarray(x, np.float32) for name, x in found.items()}


def both(
    places: list[str], functions: Functions, params: Params, batch: int, seed: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], str]:
    """(PyTorch's trace, ours, where PyTorch's tensors come from) on random images and texts.

    Args:
      places: what the weights were read from; a run gives what an export of it writes.
      functions: the model, computing in float32.
      params: its one tree.
      batch: number of images and texts.
      seed: of those.
    """
    context = functions.abstract["text/embeddings/positions"].shape[0]
    longest = min(context, 32)
    pixels, tokens = random_values.inputs(functions.image_size, longest, batch, seed, TEXT)
    (place,) = places
    state, whose = None, "the tensors that an export writes"
    if not weights.is_run(place):
        source = sources.open_source(place)
        layout, held = identify.find(source, functions.config.name)
        if layout.name != "safetensors":
            tensors = layout.fitted(source.groups[held.group], functions.config, str(place))
            state = renamed({n: _float(x.read()) for n, x in tensors.items()})
            whose = f"the tensors of {place}"
    if state is None:
        table = tables.expand(blip_rules.huggingface(), params)
        tensors = tables.tensors_of(table, params, {})
        state = {name: _float(x.read()) for name, x in tensors.items()}
    model = build(blip.size_of(functions.config), state, context)
    got = ours(functions, params, pixels, tokens)
    return trace(model, pixels, tokens), got, f"transformers' BLIP with {whose}"


def _float(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(values, np.float32))


def _name(number: int) -> str:
    return f"block {number - 1}" if number else "embedding"
