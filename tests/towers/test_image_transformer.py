# SPDX-License-Identifier: Apache-2.0
"""The image transformer of BLIP and EVA against transformers' and the written-out formula."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from transformers import BlipVisionConfig, BlipVisionModel

from cir_jax.errors import UserError
from cir_jax.towers.clip.sizes import VisionTransformerSize
from cir_jax.towers.image_transformer import ImageTransformer
from tests.towers import weights

SIZE = VisionTransformerSize(image=24, patch=8, width=32, layers=3, heads=4, mlp=72)
PIXELS = np.random.default_rng(0).normal(size=(2, 24, 24, 3)).astype(np.float32)
NAMES = {  # of the parts of a block, theirs -> ours
    "layer_norm1": "norm1", "layer_norm2": "norm2", "mlp.fc1": "mlp/fc1", "mlp.fc2": "mlp/fc2",
    "self_attn.projection": "attention/out",
}  # fmt: skip


def blip_vision():
    """transformers' image side of BLIP, every parameter random."""
    config = BlipVisionConfig(
        hidden_size=32, intermediate_size=72, num_hidden_layers=3, num_attention_heads=4,
        image_size=24, patch_size=8, layer_norm_eps=1e-6, attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(0)
    model = BlipVisionModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.2)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1.0)
    return model


def as_ours(model):
    """Our paths -> the values of transformers' model."""
    state = {name: x.numpy() for name, x in model.state_dict().items()}
    found = {
        "class_token": state["embeddings.class_embedding"],
        "position": state["embeddings.position_embedding"],
        "patch_kernel": state["embeddings.patch_embedding.weight"].transpose(2, 3, 1, 0),
        "patch_bias": state["embeddings.patch_embedding.bias"],
        "norm_out/scale": state["post_layernorm.weight"],
        "norm_out/bias": state["post_layernorm.bias"],
    }

    def stacked(name):
        return np.stack([state[f"encoder.layers.{i}.{name}"] for i in range(SIZE.layers)])

    for theirs, ours in NAMES.items():
        kernel, norm = stacked(f"{theirs}.weight"), "norm" in theirs
        leaf = "scale" if norm else "kernel"
        found[f"blocks/{ours}/{leaf}"] = kernel if norm else kernel.transpose(0, 2, 1)
        found[f"blocks/{ours}/bias"] = stacked(f"{theirs}.bias")
    kernels = np.split(stacked("self_attn.qkv.weight").transpose(0, 2, 1), 3, axis=-1)
    biases = np.split(stacked("self_attn.qkv.bias"), 3, axis=-1)
    for name, kernel, bias in zip(("query", "key", "value"), kernels, biases, strict=True):
        found |= {f"blocks/attention/{name}/kernel": kernel, f"blocks/attention/{name}/bias": bias}
    return found


def make(**options):
    return ImageTransformer(SIZE, rngs=nnx.Rngs(0), **options)


@pytest.fixture(scope="module")
def theirs():
    return blip_vision()


def test_every_layer_equals_transformers(theirs):
    tower = weights.filled(make, as_ours(theirs))
    pixels = torch.from_numpy(PIXELS.transpose(0, 3, 1, 2))
    with torch.no_grad():
        want = theirs(pixels, output_hidden_states=True)
    x = jax.jit(tower.embed)(PIXELS)
    np.testing.assert_allclose(x, want.hidden_states[0].numpy(), atol=1e-5)
    for number in range(SIZE.layers):
        x = jax.jit(weights.layer(tower.blocks, number).__call__)(x)
        np.testing.assert_allclose(x, want.hidden_states[number + 1].numpy(), atol=1e-5)
    tokens = jax.jit(tower.__call__)(PIXELS)
    assert tokens.shape == (2, 10, 32)
    np.testing.assert_allclose(tokens, want.last_hidden_state.numpy(), atol=1e-5)


def test_without_final_norm_and_key_bias(theirs):
    """As in EVA-CLIP-g: a key bias adds the same to every logit of a query, so it has no effect."""
    values = as_ours(theirs)
    cut = {p: x for p, x in values.items() if "norm_out" not in p and "key/bias" not in p}
    tower = weights.filled(lambda: make(key_bias=False, final_norm=False), cut)
    tokens = jax.jit(tower.__call__)(PIXELS)
    with torch.no_grad():
        pixels = torch.from_numpy(PIXELS.transpose(0, 3, 1, 2))
        want = theirs(pixels, output_hidden_states=True).hidden_states[-1].numpy()
    np.testing.assert_allclose(tokens, want, atol=1e-5)


def test_bfloat16_and_remat(theirs):
    values = as_ours(theirs)
    want = jax.jit(weights.filled(make, values).__call__)(PIXELS)
    tower = weights.filled(lambda: make(dtype=jnp.bfloat16, remat="products"), values)
    got = jax.jit(tower.__call__)(PIXELS)
    assert got.dtype == jnp.float32 and "remat" in str(jax.make_jaxpr(tower.__call__)(PIXELS))
    assert 0 < float(jnp.linalg.norm(want - got) / jnp.linalg.norm(want)) < 0.03


def count(size, **options):
    tower = nnx.eval_shape(lambda: ImageTransformer(size, rngs=nnx.Rngs(0), **options))
    return sum(math.prod(leaf.shape) for leaf in weights.leaves(tower).values())


def test_parameter_counts_of_the_published_ones():
    assert count(VisionTransformerSize(384, 16, 768, 12, 12)) == 86_090_496
    assert count(VisionTransformerSize(224, 16, 768, 12, 12)) == 85_798_656
    eva = VisionTransformerSize(224, 14, 1408, 39, 16, mlp=6144)
    assert count(eva, key_bias=False, final_norm=False) == 985_894_528


def test_image_of_another_size():
    tower = nnx.eval_shape(make)
    with pytest.raises(UserError, match=r"image of 32x24 pixels, but the tower takes 24x24; set "):
        tower(jnp.zeros((1, 32, 24, 3)))
