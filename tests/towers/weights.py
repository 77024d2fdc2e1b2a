# SPDX-License-Identifier: Apache-2.0
"""Weights for parity tests: a tiny random CLIP of transformers, and filling our towers strictly."""

import re

import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from transformers import CLIPConfig, CLIPModel

from cir_jax.towers.clip.sizes import VOCABULARY, TextSize, VisionTransformerSize

VISION = VisionTransformerSize(image=24, patch=8, width=32, layers=3, heads=4)
TEXT = TextSize(width=24, layers=3, heads=2)
EMBEDDING = 16
CONTEXT = 20

# Names inside a transformer block, theirs -> ours.
BLOCK = {
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "self_attn.q_proj": "attention/query",
    "self_attn.k_proj": "attention/key",
    "self_attn.v_proj": "attention/value",
    "self_attn.out_proj": "attention/out",
    "mlp.fc1": "mlp/fc1",
    "mlp.fc2": "mlp/fc2",
}


def torch_clip():
    """A CLIPModel of the sizes above; every parameter is random, biases and norms too."""
    sides = {
        "vision_config": dict(
            hidden_size=VISION.width, intermediate_size=4 * VISION.width,
            num_hidden_layers=VISION.layers, num_attention_heads=VISION.heads,
            image_size=VISION.image, patch_size=VISION.patch,
        ),
        "text_config": dict(
            hidden_size=TEXT.width, intermediate_size=4 * TEXT.width,
            num_hidden_layers=TEXT.layers, num_attention_heads=TEXT.heads,
            max_position_embeddings=CONTEXT, vocab_size=VOCABULARY,
            bos_token_id=49406, eos_token_id=49407, pad_token_id=0,
        ),
    }  # fmt: skip
    for side in sides.values():
        side |= {"hidden_act": "quick_gelu", "projection_dim": EMBEDDING}
    model = CLIPModel(CLIPConfig(**sides, projection_dim=EMBEDDING)).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.2)
            if re.search(r"layer_?norm\d?\.weight", name):
                parameter.add_(1.0)
    return model


def vision_weights(model):
    """Our paths of the image side of a CLIPModel -> arrays."""
    state = {k: v.numpy() for k, v in model.state_dict().items()}
    return {
        "patch_kernel": state["vision_model.embeddings.patch_embedding.weight"].transpose(
            2, 3, 1, 0
        ),
        "class_token": state["vision_model.embeddings.class_embedding"],
        "position": state["vision_model.embeddings.position_embedding.weight"],
        "proj": state["visual_projection.weight"].T,
        **_norm(state, "vision_model.pre_layrnorm", "norm_in"),
        **_norm(state, "vision_model.post_layernorm", "norm_out"),
        **_blocks(state, "vision_model", VISION.layers),
    }


def text_weights(model):
    """Our paths of the text side of a CLIPModel -> arrays."""
    state = {k: v.numpy() for k, v in model.state_dict().items()}
    return {
        "token_embedding": state["text_model.embeddings.token_embedding.weight"],
        "position": state["text_model.embeddings.position_embedding.weight"],
        "proj": state["text_projection.weight"].T,
        **_norm(state, "text_model.final_layer_norm", "norm_out"),
        **_blocks(state, "text_model", TEXT.layers),
    }


def leaves(module):
    """Path -> variable of every array of an nnx module."""
    return {"/".join(map(str, k)): v for k, v in nnx.to_flat_state(nnx.state(module))}


def filled(make, weights):
    """The module `make()` with these weights, path -> array: exactly its own paths and shapes.

    It is made abstractly: drawing values that are thrown away would take most of a test's time.
    """
    graph, state = nnx.split(nnx.eval_shape(make))
    flat = nnx.to_flat_state(state)
    assert {"/".join(map(str, keys)) for keys, _ in flat} == weights.keys()
    tree = {}
    for keys, variable in flat:
        value = weights["/".join(map(str, keys))]
        assert variable.shape == value.shape, keys
        node = tree
        for key in keys[:-1]:
            node = node.setdefault(key, {})
        node[keys[-1]] = jnp.asarray(value, jnp.float32)
    return nnx.merge(graph, tree)


def random_values(shapes, seed=0):
    """Random numpy values for path -> shape, everywhere: biases, norms and statistics too."""
    rng = np.random.default_rng(seed)
    found = {}
    for path, shape in shapes.items():
        noise = rng.normal(size=shape).astype(np.float32)
        match path.rsplit("/", 1)[-1]:
            case "var" | "scale":
                found[path] = rng.uniform(0.5, 1.5, shape).astype(np.float32)
            case "mean" | "bias" | "logit_scale":
                found[path] = np.float32(0.3) * noise
            case _:
                stacked = "blocks/" in path  # a leading layer axis, which is no input
                rows = 1 if path.endswith("embedding") else np.prod(shape[stacked:-1])
                found[path] = noise * np.float32(rows**-0.5)
    return found


def scrambled(make, seed=0):
    """The module `make()` with random values everywhere."""
    shapes = {path: leaf.shape for path, leaf in leaves(nnx.eval_shape(make)).items()}
    return filled(make, random_values(shapes, seed))


def layer(blocks, number):
    """Layer `number` of stacked blocks, as a block of its own."""
    graph, stacked = nnx.split(blocks)
    return nnx.merge(graph, nnx.map(lambda _, leaf: leaf[number], stacked))


def _norm(state, theirs, ours):
    return {f"{ours}/scale": state[f"{theirs}.weight"], f"{ours}/bias": state[f"{theirs}.bias"]}


def _blocks(state, tower, layers):
    found = {}
    for theirs, ours in BLOCK.items():
        names = [f"{tower}.encoder.layers.{i}.{theirs}" for i in range(layers)]
        weights = np.stack([state[f"{n}.weight"] for n in names])
        if "norm" in ours:
            found[f"blocks/{ours}/scale"] = weights
        else:  # [O, I] -> [I, O]
            found[f"blocks/{ours}/kernel"] = weights.transpose(0, 2, 1)
        found[f"blocks/{ours}/bias"] = np.stack([state[f"{n}.bias"] for n in names])
    return found
