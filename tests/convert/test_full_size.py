# SPDX-License-Identifier: Apache-2.0
"""Full-size CLIPs, every tensor by name and shape, without memory."""

import math

import jax
import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from cir_jax.convert import identify, sources, tables
from cir_jax.convert.containers.tensors import Tensor
from cir_jax.errors import UserError
from cir_jax.models.clip_sum.layouts import LAYOUTS
from cir_jax.towers.clip import huggingface, sizes, weight_rules
from tests.convert import published
from tools.torch_models import clip as torch_clip

# tower -> tensors in the state dict, parameters, parameters of the image side.
PUBLISHED = {
    "RN50": (489, 102_007_137, 38_316_896),
    "RN101": (None, 119_688_033, 56_259_936),
    "RN50x4": (669, 178_300_601, 87_137_080),
    "RN50x16": (None, 290_979_217, 167_328_912),
    "ViT-B/32": (302, 151_277_313, 87_849_216),
    "ViT-B/16": (302, 149_620_737, 86_192_640),
    "ViT-L/14": (446, 427_616_513, 303_966_208),
}


def transformer(root, width, layers):
    """Shapes of a stack of blocks, from the description of the published state dicts."""
    one = {
        "attn.in_proj_weight": (3 * width, width), "attn.in_proj_bias": (3 * width,),
        "attn.out_proj.weight": (width, width), "attn.out_proj.bias": (width,),
        "ln_1.weight": (width,), "ln_1.bias": (width,),
        "ln_2.weight": (width,), "ln_2.bias": (width,),
        "mlp.c_fc.weight": (4 * width, width), "mlp.c_fc.bias": (4 * width,),
        "mlp.c_proj.weight": (width, 4 * width), "mlp.c_proj.bias": (width,),
    }  # fmt: skip
    return {f"{root}.resblocks.{i}.{n}": s for i in range(layers) for n, s in one.items()}


def batch_norm(root, channels):
    names = ("weight", "bias", "running_mean", "running_var")
    return {f"{root}.{n}": (channels,) for n in names} | {f"{root}.num_batches_tracked": ()}


def resnet(width, blocks, image, embedding):
    half, attention = width // 2, 32 * width
    found = {}
    for n, (inputs, outputs) in enumerate(((3, half), (half, half), (half, width)), start=1):
        found[f"visual.conv{n}.weight"] = (outputs, inputs, 3, 3)
        found |= batch_norm(f"visual.bn{n}", outputs)
    inputs = width
    for stage, count in enumerate(blocks):
        planes = width * 2**stage
        for i in range(count):
            root = f"visual.layer{stage + 1}.{i}"
            shapes = ((planes, inputs, 1), (planes, planes, 3), (4 * planes, planes, 1))
            for n, (out, into, side) in enumerate(shapes, start=1):
                found[f"{root}.conv{n}.weight"] = (out, into, side, side)
                found |= batch_norm(f"{root}.bn{n}", out)
            if i == 0:  # the stride or the channels change
                found[f"{root}.downsample.0.weight"] = (4 * planes, inputs, 1, 1)
                found |= batch_norm(f"{root}.downsample.1", 4 * planes)
            inputs = 4 * planes
    pool = "visual.attnpool"
    found[f"{pool}.positional_embedding"] = ((image // 32) ** 2 + 1, attention)
    for letter, outputs in (("q", attention), ("k", attention), ("v", attention), ("c", embedding)):
        found[f"{pool}.{letter}_proj.weight"] = (outputs, attention)
        found[f"{pool}.{letter}_proj.bias"] = (outputs,)
    return found


def described(tower):
    """Tensor name -> shape of a published CLIP, written from its description."""
    size = sizes.SIZES[tower]
    vision, text, embedding = size.vision, size.text.width, size.embedding
    if tower.startswith("RN"):
        found = resnet(vision.width, vision.blocks, vision.image, embedding)
    else:
        width, patch = vision.width, vision.patch
        found = {
            "visual.class_embedding": (width,),
            "visual.positional_embedding": ((vision.image // patch) ** 2 + 1, width),
            "visual.proj": (width, embedding),
            "visual.conv1.weight": (width, 3, patch, patch),
            **transformer("visual.transformer", width, vision.layers),
        }
        for norm in ("ln_pre", "ln_post"):
            found |= {f"visual.{norm}.weight": (width,), f"visual.{norm}.bias": (width,)}
    return found | transformer("transformer", text, size.text.layers) | {
        "positional_embedding": (77, text), "text_projection": (text, embedding),
        "logit_scale": (), "token_embedding.weight": (49408, text),
        "ln_final.weight": (text,), "ln_final.bias": (text,),
    }  # fmt: skip


def unread(shape, name=""):
    def never():
        raise AssertionError(f"{name} was read")

    return Tensor(shape, "int64" if name.endswith("num_batches_tracked") else "float16", never)


@pytest.mark.parametrize("tower", PUBLISHED)
def test_every_tensor_of_a_published_clip_has_its_place(tower):
    count, parameters, image_side = PUBLISHED[tower]
    need = described(tower)
    assert count in (None, len(need))
    trained = {n: math.prod(s) for n, s in need.items() if "running" not in n and "num_" not in n}
    assert sum(trained.values()) == parameters
    assert sum(v for n, v in trained.items() if n.startswith("visual.")) == image_side
    # PyTorch's own modules give the same list.
    with torch.device("meta"):
        network = torch_clip.build(sizes.find(tower))
    assert {n: tuple(t.shape) for n, t in network.state_dict().items()} == need

    # Import, by shapes alone: the size is found, all is used, and every leaf is filled.
    tensors = {n: unread(s, n) for n, s in need.items()}
    source = sources.Source(None, "torchscript", {"": tensors})
    layout, found = identify.find(source, "clip_sum")
    assert layout.name == "openai" and found.config == {"tower": tower, "context": 0}
    functions = published.functions(tower)
    table = tables.expand(layout.rules(functions.config), functions.abstract)
    tables.check(table, functions.abstract, tensors, layout.ignored, tower)
    ignored = {n for n in need if n not in table}
    assert all(n.endswith("num_batches_tracked") for n in ignored)
    assert set(layout.extra(table, {})) == ignored

    def convert(arrays):
        pieces = {}
        for name, places in table.items():
            for piece in places:
                pieces.setdefault(piece.path, []).append((piece.layer, piece.ours(arrays[name])))
        stacked = lambda of: jax.numpy.stack([x for _, x in sorted(of, key=lambda p: p[0])])
        return {p: of[0][1] if of[0][0] is None else stacked(of) for p, of in pieces.items()}

    given = {n: jax.ShapeDtypeStruct(need[n], np.float32) for n in table}
    leaves = jax.eval_shape(convert, given)
    assert {p: x.shape for p, x in leaves.items()} == {
        p: x.shape for p, x in functions.abstract.items()
    }


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
@pytest.mark.parametrize("tower", ["RN50x4", "ViT-L/14", "ViT-L/14@336px"])
def test_every_layout_covers_full_sizes(layout, tower):
    functions = published.functions(tower)
    if layout.name in ("huggingface", "metaclip2") and tower.startswith("RN"):
        with pytest.raises(UserError, match="ResNet"):
            layout.rules(functions.config)
        return
    table = tables.expand(layout.rules(functions.config), functions.abstract)
    values = sum(math.prod(s) for s in tables.shapes(table, functions.abstract).values())
    assert values == sum(math.prod(x.shape) for x in functions.abstract.values())


def test_names_of_a_full_size_huggingface_model():
    size = sizes.find("ViT-L/14")
    with torch.device("meta"):
        network = CLIPModel(CLIPConfig(**huggingface.config_of(size, 77)))
    functions = published.functions("ViT-L/14")
    table = tables.expand(weight_rules.huggingface(), functions.abstract)
    want = {n: tuple(p.shape) for n, p in network.named_parameters()}
    assert tables.shapes(table, functions.abstract) == want
