# SPDX-License-Identifier: Apache-2.0
"""Tiny weights in every published layout, as PyTorch writes them."""

import collections
import functools
import json
import warnings

import safetensors.torch
import torch

from cir_jax import config, contract
from cir_jax.towers.clip import huggingface, open_clip, sizes
from tools.torch_models import clip, random_values

VIT = "vit-32-16-w64-l2-h1_text-w64-l3-h1_d32"
RESNET = "resnet-64-2.1.1.1-w8-h4_text-w64-l2-h1_d32"
CONTEXT = 77
# transformers' names inside a block, from OpenAI's.
BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


@functools.cache
def model(tower=VIT, seed=0):
    """A PyTorch CLIP with random values everywhere."""
    network = clip.build(sizes.find(tower), CONTEXT)
    network.load_state_dict(random_values.state(network, seed))
    return network.eval()


def state(tower=VIT, seed=0):
    """Its state dict; the tensors may be changed."""
    items = model(tower, seed).state_dict().items()
    return collections.OrderedDict((name, tensor.clone()) for name, tensor in items)


def mixed(tensors):
    """Matrices in half precision, as in the files that OpenAI published; norms stay as they are."""
    return collections.OrderedDict(
        (n, t.half() if t.is_floating_point() and t.ndim > 1 else t) for n, t in tensors.items()
    )


@functools.cache
def functions(tower=VIT, name="clip_sum", context=0):
    """Our model of that size."""
    changes = [f"model.name={name}", f"model.tower={tower}", f"model.context={context}"]
    return contract.build(config.load("base", [*changes, "model.dtype=float32"]).model)


def torchscript(path, tower=VIT):
    """An archive of torch.jit, half precision, with the integers that OpenAI's archives hold."""
    network = clip.build(sizes.find(tower), CONTEXT)
    network.load_state_dict(random_values.state(network))
    network.eval()
    side = sizes.find(tower).vision.image
    for name, value in (("input_resolution", side), ("context_length", 77), ("vocab_size", 49408)):
        network.register_buffer(name, torch.tensor(value))
    inputs = {
        "encode_image": torch.zeros(1, 3, side, side),
        "encode_text": torch.tensor([[49406, 5, 49407]]),
    }
    with warnings.catch_warnings():
        # The format is an old one, and what is traced depends on sizes that never change here.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        warnings.filterwarnings("ignore", ".torch.jit.trace", DeprecationWarning)
        torch.jit.trace_module(network, inputs, check_trace=False).save(str(path))
    return path


def write(layout, folder, tensors, tower=VIT):
    """Writes a state dict in OpenAI's names as that layout; returns what to give cir_jax."""
    folder.mkdir(parents=True, exist_ok=True)
    size = sizes.find(tower)
    file = folder / f"{layout}.pt"
    match layout:
        case "openai":
            torch.save(tensors, file)
        case "clip4cir":
            torch.save({"epoch": 7, "CLIP": tensors}, file)
        case "spn":
            named = collections.OrderedDict((f"clip.{n}", t) for n, t in tensors.items())
            torch.save({"epoch": 7, "state_dict": named}, file)
        case "open_clip":
            torch.save(tensors, folder / "open_clip_pytorch_model.bin")
            content = json.dumps(open_clip.config_of(size, CONTEXT))
            (folder / "open_clip_config.json").write_text(content)
            return folder
        case "huggingface":
            named = {n: t.contiguous() for n, t in in_huggingface_names(tensors).items()}
            safetensors.torch.save_file(named, folder / "model.safetensors", {"format": "pt"})
            content = json.dumps(huggingface.config_of(size, CONTEXT))
            (folder / "config.json").write_text(content)
            return folder
    return file


def in_huggingface_names(tensors):
    """The same tensors as transformers names and stores them."""
    found = {"logit_scale": tensors["logit_scale"]}
    for side, root in (("vision", "visual."), ("text", "")):
        position = tensors[f"{root}positional_embedding"]
        found[f"{side}_model.embeddings.position_embedding.weight"] = position
        blocks = f"{root}transformer.resblocks."
        for name, tensor in tensors.items():
            if name.startswith(blocks):
                layer, rest = name.removeprefix(blocks).split(".", 1)
                found |= _block(f"{side}_model.encoder.layers.{layer}", rest, tensor)
    for theirs, name in (
        ("visual.ln_pre", "vision_model.pre_layrnorm"),
        ("visual.ln_post", "vision_model.post_layernorm"),
        ("ln_final", "text_model.final_layer_norm"),
    ):
        for end in ("weight", "bias"):
            found[f"{name}.{end}"] = tensors[f"{theirs}.{end}"]
    found["visual_projection.weight"] = tensors["visual.proj"].T
    found["text_projection.weight"] = tensors["text_projection"].T
    found["vision_model.embeddings.class_embedding"] = tensors["visual.class_embedding"]
    found["vision_model.embeddings.patch_embedding.weight"] = tensors["visual.conv1.weight"]
    found["text_model.embeddings.token_embedding.weight"] = tensors["token_embedding.weight"]
    return found


def _block(block, rest, tensor):
    part, end = rest.rsplit(".", 1)
    if end.startswith("in_proj_"):
        kind = end.removeprefix("in_proj_")
        thirds = zip("qkv", tensor.chunk(3), strict=True)
        return {f"{block}.self_attn.{letter}_proj.{kind}": third for letter, third in thirds}
    return {f"{block}.{BLOCK[part]}.{end}": tensor}
