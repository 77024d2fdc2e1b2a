# SPDX-License-Identifier: Apache-2.0
"""Imported weights compute what PyTorch computes, layer by layer.

Of files in the published names, and of a folder of transformers.
The networks are tiny, and every value of them is random. Matrices are square where they can be:
then only the values can tell that one was not transposed.
"""

import copy
import functools

import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from cir_jax import config, contract
from cir_jax.convert import importing
from cir_jax.towers.clip import sizes
from tools.torch_models import clip, clip4cir, ours, random_values, transformers_clip

CONTEXT = 20
# Heads of 64 channels, as in OpenAI's networks.
TEXT = "text-w128-l2-h2_d128"
SIZES = {
    "vit": f"vit-32-8-w128-l2-h2_{TEXT}",
    "resnet": f"resnet-64-2.1.1.2-w8-h4_{TEXT}",
    "gelu": "vit-32-8-w128-m128-l2-h2_text-w128-m128-l2-h2_d128+gelu",  # and a narrow MLP
}
# How a file of each is laid out: the released run, its first stage, a plain state dict.
SAVED = {
    "vit": lambda state: {"epoch": 3, "state_dict": {f"clip.{n}": x for n, x in state.items()}},
    "resnet": lambda state: {"epoch": 3, "CLIP": state},
    "gelu": lambda state: state,
}
BOUND = 1e-5


@functools.cache
def functions(kind):
    changes = [f"model.tower={SIZES[kind]}", "model.dtype=float32", f"model.context={CONTEXT}"]
    return contract.build(config.load("base", changes).model)


@functools.cache
def state(kind):
    return random_values.state(clip.build(sizes.find(SIZES[kind]), CONTEXT))


@functools.cache
def published(kind):
    return clip4cir.Clip4Cir(clip.filled(sizes.find(SIZES[kind]), CONTEXT, state(kind)))


@functools.cache
def problem(kind):
    """(pixels, tokens) of three random images and texts, one of them as long as the context."""
    rng = np.random.default_rng(0)
    side = sizes.find(SIZES[kind]).vision.image
    pixels = rng.normal(size=(3, side, side, 3)).astype(np.float32)
    tokens = np.zeros((3, CONTEXT), np.int32)
    for row, length in zip(tokens, (5, 9, CONTEXT), strict=True):
        row[:length] = [49406, *rng.integers(1, 49405, length - 2), 49407]
    return pixels, tokens


def imported(kind, tensors, folder):
    """Our trace of these tensors, after they were a file."""
    torch.save(SAVED[kind](tensors), folder / "weights.pt")
    weights = importing.read(folder / "weights.pt", functions(kind))
    assert weights.index is weights.query
    return ours.trace(functions(kind), weights.query, *problem(kind))


@functools.cache
def expected(kind):
    return clip4cir.trace(published(kind), *problem(kind))


@pytest.mark.parametrize("kind", SIZES)
def test_every_layer_of_a_published_file(kind, tmp_path):
    got, want = imported(kind, state(kind), tmp_path), expected(kind)
    assert list(got) == list(want)  # the same layers in the same order
    far = ours.differences(want, got)
    assert max(far.values()) < BOUND, far
    blocks = 6 if kind == "resnet" else 2
    assert len(far) == (1 + blocks + 1) + (1 + 2 + 2) + 3
    assert want["visual/feature"].std() > 0.1 and want["text/feature"].std() > 0.1


def swapped(name, first, second):
    """Exchanges two of the three equal parts of a tensor, q, k and v."""

    def change(tensors):
        parts = list(tensors[name].chunk(3))
        parts[first], parts[second] = parts[second], parts[first]
        tensors[name] = torch.cat(parts)

    return change


def exchanged(first, second):
    def change(tensors):
        tensors[first], tensors[second] = tensors[second], tensors[first]

    return change


def transposed(name, *axes):
    def change(tensors):
        axes_ = axes or (1, 0)
        tensors[name] = tensors[name].permute(axes_).contiguous()

    return change


# (network, a mistake in the file, first layer where it must be seen)
MISTAKES = [
    ("vit", swapped("visual.transformer.resblocks.1.attn.in_proj_weight", 0, 1), "visual/block 1"),
    ("vit", swapped("transformer.resblocks.0.attn.in_proj_bias", 1, 2), "text/block 0"),
    ("vit", transposed("transformer.resblocks.1.attn.out_proj.weight"), "text/block 1"),
    ("vit", transposed("visual.conv1.weight", 0, 1, 3, 2), "visual/stem"),
    ("vit", transposed("visual.proj"), "visual/feature"),
    ("vit", transposed("text_projection"), "text/feature"),
    ("vit", exchanged("ln_final.weight", "transformer.resblocks.1.ln_1.weight"), "text/block 1"),
    ("vit", exchanged("visual.ln_pre.bias", "visual.ln_post.bias"), "visual/stem"),
    ("gelu", transposed("visual.transformer.resblocks.0.mlp.c_fc.weight"), "visual/block 0"),
    ("gelu", transposed("transformer.resblocks.1.mlp.c_proj.weight"), "text/block 1"),
    ("resnet", transposed("visual.layer4.1.conv2.weight", 1, 0, 2, 3), "visual/stage 4/1"),
    ("resnet", transposed("visual.conv2.weight", 0, 1, 3, 2), "visual/stem"),
    (
        "resnet",
        exchanged("visual.layer1.1.bn1.running_mean", "visual.layer1.1.bn2.running_mean"),
        "visual/stage 1/1",
    ),
    (
        "resnet",
        exchanged("visual.layer3.0.bn3.running_var", "visual.layer3.0.downsample.1.running_var"),
        "visual/stage 3/0",
    ),
    (
        "resnet",
        exchanged("visual.attnpool.q_proj.weight", "visual.attnpool.k_proj.weight"),
        "visual/feature",
    ),
]


@pytest.mark.parametrize("kind, mistake, layer", MISTAKES)
def test_a_mistake_in_a_file_is_seen_at_its_layer(kind, mistake, layer, tmp_path):
    tensors = dict(state(kind))
    mistake(tensors)
    far = ours.differences(expected(kind), imported(kind, tensors, tmp_path))
    assert next(name for name, x in far.items() if x > BOUND) == layer
    assert far[layer] > 100 * BOUND


def no_statistics(model):
    for part in model.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.register_buffer("running_mean", torch.zeros_like(part.running_mean))


def epsilon(kind):
    def change(model):
        for part in model.modules():
            if isinstance(part, kind):
                part.eps = 1e-6

    return change


def seen_by_all(model):
    for block in model.clip.transformer["resblocks"]:
        block.causal = False


def one_head(model):
    for block in model.clip.visual.transformer["resblocks"]:
        block.attn.num_heads, block.attn.head_dim = 1, 128


def activation(model):
    for block in model.clip.visual.transformer["resblocks"]:
        block.mlp.activation = torch.nn.GELU()


# (network, a mistake in the network, first layer where it must be seen)
OTHER_NETWORKS = [
    ("vit", activation, "visual/block 0"),
    ("vit", one_head, "visual/block 0"),
    ("vit", seen_by_all, "text/block 0"),
    ("vit", epsilon(torch.nn.LayerNorm), "visual/stem"),
    ("resnet", epsilon(torch.nn.BatchNorm2d), "visual/stem"),
    ("resnet", no_statistics, "visual/stem"),
]


@pytest.mark.parametrize("kind, mistake, layer", OTHER_NETWORKS)
def test_another_network_is_seen_at_its_layer(kind, mistake, layer):
    model = copy.deepcopy(published(kind))
    mistake(model)
    far = ours.differences(expected(kind), clip4cir.trace(model, *problem(kind)))
    assert next(name for name, x in far.items() if x > BOUND) == layer
    assert far[layer] > 2 * BOUND


def huggingface(kind):
    """A CLIPModel of the size, every value random."""
    size = sizes.find(SIZES[kind])
    sides = {
        "vision_config": {"image_size": size.vision.image, "patch_size": size.vision.patch},
        "text_config": {
            "max_position_embeddings": CONTEXT, "vocab_size": sizes.VOCABULARY,
            "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 0,
        },
    }  # fmt: skip
    for part, side in zip((size.vision, size.text), sides.values(), strict=True):
        side |= {
            "hidden_size": part.width, "intermediate_size": part.mlp or 4 * part.width,
            "num_hidden_layers": part.layers, "num_attention_heads": part.heads,
            "hidden_act": size.activation, "projection_dim": size.embedding,
        }  # fmt: skip
    model = CLIPModel(CLIPConfig(**sides, projection_dim=size.embedding)).eval()
    model.load_state_dict(random_values.state(model))
    return model


@pytest.mark.parametrize("kind", ["vit", "gelu"])
def test_every_layer_of_a_folder_of_transformers(kind, tmp_path):
    model = huggingface(kind)
    model.save_pretrained(tmp_path)
    want = transformers_clip.trace(model, *problem(kind))
    weights = importing.read(tmp_path, functions(kind))
    far = ours.differences(want, ours.trace(functions(kind), weights.query, *problem(kind)))
    assert max(far.values()) < BOUND, far
    assert len(far) == len(expected(kind)) and want["query"].std() > 0.05


def test_differences_do_not_hide_what_is_missing():
    one = {"a": np.ones(2), "b": np.full(2, 50.0), "c": np.ones(2), "d": np.ones(2)}
    two = {"a": np.ones(2) + 0.1, "b": np.full(2, 55.0), "c": np.ones(3), "d": np.full(2, np.nan)}
    far = ours.differences(one, two | {"e": np.ones(2)})
    assert far == pytest.approx(
        {"a": 0.1, "b": 0.1, "c": np.inf, "d": np.inf, "e": np.inf}, rel=1e-6
    )
