# SPDX-License-Identifier: Apache-2.0
"""The PyTorch networks have the names and the sizes of the published ones, without their values."""

import numpy as np
import pytest
import torch

from cir_jax.towers.clip import sizes
from tools.torch_models import clip, clip4cir, random_values

SMALL = sizes.find("vit-16-8-w16-l1-h2_text-w16-l1-h2_d8")
# Tensors of the published files, parameters, values that are no parameters, image side.
PUBLISHED = {
    "RN50": (489, 102_007_137, 53_303, 38_316_896),
    "RN101": (None, 119_688_033, None, 56_259_936),
    "RN50x4": (669, 178_300_601, 109_845, 87_137_080),
    "ViT-B/32": (302, 151_277_313, 0, 87_849_216),
    "ViT-L/14": (446, 427_616_513, 0, 303_966_208),
}


def count(tensors):
    return sum(x.numel() for x in tensors)


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_of_the_published_networks(name):
    tensors, parameters, others, image = PUBLISHED[name]
    with torch.device("meta"):
        model = clip.build(sizes.find(name))
    assert count(model.parameters()) == parameters
    assert count(model.visual.parameters()) == image
    assert tensors in (None, len(model.state_dict()))
    assert others in (None, count(model.buffers()))


def test_names_of_the_published_tensors():
    with torch.device("meta"):
        vit, resnet = (set(clip.build(sizes.find(n)).state_dict()) for n in ("ViT-B/32", "RN50"))
    shared = {
        "token_embedding.weight", "positional_embedding", "ln_final.bias", "text_projection",
        "logit_scale", "transformer.resblocks.11.attn.in_proj_weight",
        "transformer.resblocks.11.attn.out_proj.bias", "transformer.resblocks.0.ln_1.weight",
        "transformer.resblocks.0.mlp.c_fc.weight", "transformer.resblocks.0.mlp.c_proj.bias",
    }  # fmt: skip
    assert shared <= vit & resnet
    assert {
        "visual.class_embedding", "visual.positional_embedding", "visual.proj",
        "visual.conv1.weight", "visual.ln_pre.weight", "visual.ln_post.bias",
        "visual.transformer.resblocks.11.attn.in_proj_bias",
    } <= vit  # fmt: skip
    assert {
        "visual.conv3.weight", "visual.bn3.running_var", "visual.bn1.num_batches_tracked",
        "visual.layer3.5.conv2.weight", "visual.layer1.0.downsample.0.weight",
        "visual.layer4.0.downsample.1.running_mean", "visual.attnpool.positional_embedding",
        "visual.attnpool.q_proj.weight", "visual.attnpool.c_proj.bias",
    } <= resnet  # fmt: skip
    assert "visual.layer1.1.downsample.0.weight" not in resnet


def test_a_state_dict_must_be_complete_and_becomes_float32():
    state = random_values.state(clip.build(SMALL, 8))
    model = clip.filled(SMALL, 8, {name: x.half() for name, x in state.items()})
    assert {x.dtype for x in model.parameters()} == {torch.float32} and not model.training
    del state["ln_final.bias"]
    with pytest.raises(RuntimeError, match=r"Missing key.*ln_final.bias"):
        clip.filled(SMALL, 8, state)


def test_a_shorter_text_has_the_same_feature():
    model = clip.filled(SMALL, 8, random_values.state(clip.build(SMALL, 8)))
    tokens = torch.tensor([[49406, 5, 49407, 0, 0, 0, 0, 0]])
    with torch.no_grad():
        torch.testing.assert_close(model.encode_text(tokens), model.encode_text(tokens[:, :3]))


def test_who_trains():
    with torch.device("meta"):
        model = clip4cir.Clip4Cir(clip.build(sizes.find("RN50x4")), freeze_image=True)
        trained = clip4cir.optimizer(model).param_groups[0]["params"]
    assert (
        count(trained) == 91_163_520 + 1
    )  # the text side, and logit_scale, which gets no gradient
    model = clip4cir.Clip4Cir(clip.filled(SMALL, 8, random_values.state(clip.build(SMALL, 8))))
    assert all(name.startswith("clip.") for name in model.state_dict())
    tokens = torch.tensor([[49406, 5, 49407], [49406, 7, 49407]])
    pixels = torch.from_numpy(np.random.default_rng(0).normal(size=(4, 3, 16, 16))).float()
    model.batch_loss(pixels[:2], tokens, pixels[2:]).backward()
    assert {n for n, p in model.named_parameters() if p.grad is None} == {"clip.logit_scale"}
