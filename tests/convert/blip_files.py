# SPDX-License-Identifier: Apache-2.0
"""A tiny random BLIP of transformers, and its tensors under the names of the released files."""

import functools

import torch
from transformers import BlipConfig, BlipForImageTextRetrieval

from cir_jax import config, contract
from cir_jax.towers.blip import sizes as blip_sizes

TOWER = "vit-24-8-w64-l2-h1_med-w64-m96-l2-h1_d16"
SIZE = blip_sizes.find(TOWER)
CONTEXT = 12
# A part of a name in transformers -> Salesforce's.
NAMES = {
    "vision_model.embeddings.class_embedding": "visual_encoder.cls_token",
    "vision_model.embeddings.position_embedding": "visual_encoder.pos_embed",
    "vision_model.embeddings.patch_embedding": "visual_encoder.patch_embed.proj",
    "vision_model.encoder.layers": "visual_encoder.blocks",
    "vision_model.post_layernorm": "visual_encoder.norm",
    "self_attn.projection": "attn.proj",
    "self_attn.qkv": "attn.qkv",
    "layer_norm": "norm",
}


def torch_blip(image=24, context=CONTEXT, epsilon=1e-6):
    """A BlipForImageTextRetrieval of the sizes above; every parameter is random."""
    both = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1}
    sizes = BlipConfig(
        text_config={**both, "intermediate_size": 96, "vocab_size": 30524,
                     "max_position_embeddings": context},
        vision_config={**both, "intermediate_size": 256, "image_size": image, "patch_size": 8,
                       "layer_norm_eps": epsilon},
        image_text_hidden_size=16, attn_implementation="eager",
    )  # fmt: skip
    model = BlipForImageTextRetrieval(sizes).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.15)
            if "norm" in name.lower() and name.endswith("weight"):
                parameter.add_(1.0)
    return model


@functools.cache
def shared():
    """One such model, for tests that do not change it."""
    return torch_blip()


def state(model):
    """Its tensors in Salesforce's names, with what a stage one file has beside them."""
    found = {}
    for name, value in model.state_dict().items():
        if not name.startswith("itm_head"):
            for theirs, named in NAMES.items():
                name = name.replace(theirs, named)
            found[name] = value.clone()
    found["temp"] = torch.tensor(0.04321)
    positions = found["text_encoder.embeddings.position_embeddings.weight"]
    found["text_encoder.embeddings.position_ids"] = torch.arange(len(positions))[None]
    return found


def as_released(model, tau=0.0271):
    """{"epoch", "state_dict"} of stage two."""
    tensors = {f"blip.{name}": value for name, value in state(model).items()}
    return {"epoch": 3, "state_dict": tensors | {"tau": torch.tensor(tau)}}


@functools.cache
def functions(tower=TOWER, image=0, context=CONTEXT, dropout=0.0):
    """The functions of our model of this size, in float32."""
    changes = [f"model.tower={tower}", "model.name=blip", "model.dtype=float32"]
    changes += [f"model.image_size={image}", f"model.context={context}"]
    changes.append(f"model.dropout={dropout}")
    return contract.build(config.load("base", changes).model)


def torch_blip_of_base():
    """transformers' own defaults are those of BLIP-base."""
    vision = {"image_size": 384, "patch_size": 16}
    return BlipForImageTextRetrieval(BlipConfig(vision_config=vision, image_text_hidden_size=256))
