# SPDX-License-Identifier: Apache-2.0
"""Folders of a tiny random SiglipModel of transformers, with tokenizer and image processor."""

import json

import torch
from transformers import SiglipConfig, SiglipModel

from cir_jax.towers.siglip import sizes
from tests import tokenizer_folders

TOWERS = {1: "tiny-siglip", 2: "tiny-siglip2"}


def config(name="tiny-siglip", **changes):
    """The SiglipConfig of a size."""
    size = sizes.find(name)
    side = lambda part: {
        "hidden_size": part.width, "num_hidden_layers": part.layers,
        "num_attention_heads": part.heads, "intermediate_size": part.mlp or 4 * part.width,
    }  # fmt: skip
    text = {"vocab_size": size.text.words, "max_position_embeddings": size.text.context}
    vision = {"image_size": size.vision.image, "patch_size": size.vision.patch}
    return SiglipConfig(
        text_config=side(size.text) | text | changes.get("text", {}),
        vision_config=side(size.vision) | vision | changes.get("vision", {}),
    )


def model():
    """A tiny SiglipModel whose every parameter is random, biases and norms too."""
    found = SiglipModel(config()).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            parameter.normal_(std=0.2)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1.0)
    return found


def write(folder, generation=2, theirs=None):
    """A folder of it, as it is published."""
    theirs = theirs or model()
    theirs.save_pretrained(folder)
    side = theirs.config.vision_config.image_size
    processor = {
        "image_processor_type": "SiglipImageProcessor", "do_resize": True, "do_rescale": True,
        "do_normalize": True, "do_convert_rgb": None, "size": {"height": side, "width": side},
        "resample": {1: 3, 2: 2}[generation], "rescale_factor": 1 / 255,
        "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "processor_class": "SiglipProcessor",
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    make = {1: tokenizer_folders.pieces, 2: tokenizer_folders.gemma}[generation]
    make(folder, **({"do_lower_case": True} if generation == 1 else {}))
    return folder
