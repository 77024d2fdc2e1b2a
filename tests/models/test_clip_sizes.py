# SPDX-License-Identifier: Apache-2.0
"""Full-size models, traced without memory: parameter counts of the released weights."""

import math

import jax
import pytest

from cir_jax import config, contract
from cir_jax.errors import UserError
from cir_jax.runtime import mesh, sharding
from cir_jax.towers.clip import sizes as clip_sizes

# (total, vision); total = vision + text + logit_scale.
COUNTS = {
    "RN50": (102_007_137, 38_316_896),
    "RN101": (119_688_033, 56_259_936),
    "RN50x4": (178_300_601, 87_137_080),
    "RN50x16": (290_979_217, 167_328_912),
    "ViT-B/32": (151_277_313, 87_849_216),
    "ViT-B/16": (149_620_737, 86_192_640),
    "ViT-L/14": (427_616_513, 303_966_208),
}


def build(tower):
    return contract.build(config.load("base", [f"model.tower={tower}"]).model)


@pytest.mark.parametrize("tower", COUNTS)
def test_parameter_counts(tower):
    functions = build(tower)
    sizes = {
        path: math.prod(leaf.shape)
        for path, leaf in functions.abstract.items()
        if functions.roles[path] != "statistic"
    }
    visual = sum(n for path, n in sizes.items() if path.startswith("visual/"))
    assert (sum(sizes.values()), visual) == COUNTS[tower]


@pytest.mark.parametrize("tower", clip_sizes.SIZES)
def test_every_tower_divides_over_four_devices(tower):
    functions = build(tower)
    places = sharding.parameter_shardings(functions, mesh.make(model=4))
    split = sum(math.prod(functions.abstract[p].shape) for p, s in places.items() if any(s.spec))
    total = sum(math.prod(leaf.shape) for leaf in functions.abstract.values())
    assert split > 0.97 * total


@pytest.mark.parametrize("tower", ["RN50x4", "ViT-L/14@336px"])
def test_full_size_shapes(tower):
    functions = build(tower)
    size = clip_sizes.SIZES[tower]
    assert functions.reference_shape == functions.target_shape == (1, size.embedding)
    pixels = jax.ShapeDtypeStruct((2, functions.image_size, functions.image_size, 3), "uint8")
    text = jax.ShapeDtypeStruct((2, 77), "int32")
    reference = jax.eval_shape(functions.reference, functions.abstract, pixels, text)
    query = jax.eval_shape(functions.compose, functions.abstract, reference, text)
    assert query.shape == (2, size.embedding)


def test_unknown_tower_lists_what_exists():
    with pytest.raises(UserError, match=r"no tower 'ViT-B/31'; there are: RN50.*ViT-B/32"):
        build("ViT-B/31")


WRITTEN = (
    "vit-32-8-w48-l3-h4_text-w32-l2-h2_d24",
    "vit-28-14-w56-m200-l1-h2_text-w32-m96-l4-h1_d8+gelu",
    "resnet-96-1.2.3.4-w8-h4_text-w32-l2-h2_d24",
)


@pytest.mark.parametrize("name", [*clip_sizes.SIZES, "ViT-B/32+gelu", *WRITTEN])
def test_a_size_and_its_name_are_one(name):
    size = clip_sizes.find(name)
    assert clip_sizes.name_of(size) == name
    assert size.activation == ("gelu" if name.endswith("+gelu") else "quick_gelu")
    assert clip_sizes.normal_form(size) == size


def test_a_written_size_is_built_as_written():
    shapes = {p: x.shape for p, x in build(WRITTEN[1]).abstract.items()}
    assert shapes["visual/patch_kernel"] == (14, 14, 3, 56)
    assert shapes["visual/blocks/mlp/fc1/kernel"] == (1, 56, 200)
    assert shapes["text/blocks/mlp/fc2/kernel"] == (4, 96, 32)
    assert shapes["text/proj"] == (32, 8)
    shapes = {p: x.shape for p, x in build(WRITTEN[2]).abstract.items()}
    assert shapes["visual/pool/position"] == (10, 256)
    assert "visual/stage4/3/conv1/kernel" in shapes and "visual/stage4/4/conv1/kernel" not in shapes


def test_an_inner_width_of_four_times_is_no_other_size():
    plain = clip_sizes.find("vit-32-8-w48-l3-h4_text-w32-l2-h2_d24")
    assert clip_sizes.find("vit-32-8-w48-m192-l3-h4_text-w32-m128-l2-h2_d24") == plain


@pytest.mark.parametrize(
    "name, why",
    [
        ("ViT-B/32+relu", "no activation 'relu'; there are: quick_gelu, gelu"),
        ("vit-32-8-w50-l3-h4_text-w32-l2-h2_d24", "vision width 50 does not divide into 4 heads"),
        ("vit-32-8-w48-l3-h4_text-w32-l2-h0_d24", "text width 32 does not divide into 0 heads"),
        ("vit-4-8-w48-l3-h4_text-w32-l2-h2_d24", "an image of 4 pixels has no patch of 8"),
        ("resnet-90-1.2.3.4-w8-h4_text-w32-l2-h2_d24", "image 90: at least 1, and 32 x n"),
        ("vit-32-8-w48-l3-h4_text-w32-l2-h2", "no tower .* is written out, as"),
    ],
)
def test_sizes_that_cannot_be(name, why):
    with pytest.raises(UserError, match=why):
        clip_sizes.find(name)
