# SPDX-License-Identifier: Apache-2.0
"""Full-size models, traced without memory: parameter counts of the released weights."""

import math

import jax
import pytest

from cir_jax import config
from cir_jax.errors import UserError
from cir_jax.models import contract
from cir_jax.runtime import mesh, sharding
from cir_jax.towers import clip_sizes

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
