# SPDX-License-Identifier: Apache-2.0
"""transformers' CLIPModel layer by layer, under the layer names of `tools.torch_models.clip`."""

import numpy as np
import torch
from transformers import CLIPModel

from tools.torch_models import clip


def trace(model: CLIPModel, pixels: np.ndarray, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """As `clip4cir.trace`: layers, then "reference", "target" and "query" [B, D].

    Args:
      model: the network.
      pixels: [B, S, S, 3] normalised, float32.
      tokens: [B, T] ids.
    """
    images, texts = clip.inputs(pixels, tokens)
    with torch.no_grad():
        image = model.vision_model(images, output_hidden_states=True)
        text = model.text_model(texts, output_hidden_states=True)
        reference = model.visual_projection(image.pooler_output)
        feature = model.text_projection(text.pooler_output)
    found = {}
    for side, states, first in (
        ("visual", image.hidden_states, "stem"),
        ("text", text.hidden_states, "embedding"),
    ):
        found[f"{side}/{first}"] = states[0]
        found |= {f"{side}/block {i}": x for i, x in enumerate(states[1:])}
        if side == "visual":
            found["visual/feature"] = reference
    found |= {
        "text/norm": text.last_hidden_state,
        "text/feature": feature,
        "reference": reference,
        "target": torch.nn.functional.normalize(reference),
        "query": torch.nn.functional.normalize(reference + feature),
    }
    return {name: x.numpy() for name, x in found.items()}
