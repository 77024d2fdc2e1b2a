# SPDX-License-Identifier: Apache-2.0
"""What the steps of published sizes keep for their backward pass, and multiply. They are traced as
the trainer builds them, on shapes: no memory is needed, and nothing is run."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from cir_jax.towers.clip import sizes
from cir_jax.towers.clip.resnet import ModifiedResNet
from tools.planning import analysis, formulas, machines, traced

STEPS = {
    "vit-l": ("clip_sum:fashioniq,stage=1", "model.tower=ViT-L/14", "batch=128"),
    "blip": ("blip:cirr,stage=1",),
    "eva": ("sprc:fashioniq,stage=1", "model.train_image=true"),
}
# Widths that a layer of a transformer keeps with "products", of each token: its input, queries,
# keys, values, what they attend to and, behind the first product of its MLP, four of its inner
# width. A post-norm layer keeps what goes into its second norm as well.
PRE, POST = 1 + 3 + 1 + 4, 1 + 3 + 1 + 4 + 1
BYTES = 2  # bfloat16


@functools.cache
def program(name, remat):
    """(the step as a jaxpr without what nothing needs, the program as it is planned)."""
    spec, *changes = STEPS[name]
    options = analysis.Options(changes=(*changes, f"model.remat={remat}"))
    built = analysis.build(spec, machines.find("2xH100"), options)
    return traced.whole(built.update, built.arguments), built


def flop(jaxpr):
    return 2 * sum(traced.products(jaxpr, 2).values())


def scans(jaxpr):
    """All scans in a program, those of its inner programs included."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan":
            yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from scans(inner)


def size(values):
    return sum(x.aval.size * x.aval.dtype.itemsize for x in values)


def kept(jaxpr):
    """{(layers of the scan, tokens, width): bytes that it keeps of each layer, token and width}."""
    found = {}
    for scan in scans(jaxpr):
        carried = scan.params["num_carry"]
        state = [x.aval for x in scan.outvars[:carried] if getattr(x.aval, "ndim", 0) == 3]
        if scan.params["reverse"] or len(state) != 1:  # the backward pass, or no tower
            continue
        length, (batch, tokens, width) = scan.params["length"], state[0].shape
        each = size(scan.outvars[carried:]) / (length * batch * tokens * width)
        place = length, tokens, width
        found[place] = max(found.get(place, 0), each)
    return found


def test_a_layer_keeps_the_outputs_of_its_products():
    """Of a ViT-L/14 and its text: 9 widths of 2 bytes a token, where all of it would be over 60."""
    everything, products = (kept(program("vit-l", remat)[0]) for remat in ("none", "products"))
    text = next(tokens for length, tokens, _ in products if length == 12)
    assert products.keys() == {(24, 257, 1024), (12, text, 768)}
    for place, each in products.items():
        assert each == pytest.approx(PRE * BYTES, rel=0.01)
        assert everything[place] > 3 * each
    assert everything[24, 257, 1024] > 60
    inputs = kept(program("vit-l", "layers")[0])
    assert set(inputs.values()) == {BYTES}


@pytest.mark.parametrize("name", ["blip", "eva"])
def test_no_tower_keeps_more_than_its_products(name):
    found = kept(program(name, "products")[0])
    assert found
    for (layers, tokens, width), each in found.items():
        assert each <= limit(name, layers, tokens, width), (layers, tokens, width, each)


def limit(name, layers, tokens, width):
    """Bytes of each layer of a scan, token and width."""
    if name == "blip":  # self-attention, cross-attention to 577 tokens of a frozen image, MLP
        return BYTES * (POST + 2 + 2 * 577 / tokens) * 1.01
    if layers == 39:  # EVA-g, whose MLP is 6144 / 1408 wide
        return BYTES * (PRE - 4 + 6144 / 1408) * 1.01
    # A pair of layers of the Q-Former, one of them with cross-attention from 32 slots to the image.
    both = 2 * (POST + 4) if tokens > 32 else 2 * POST
    return BYTES * (both + (2 * 32 + 2 * 257) / tokens) * 1.01


@pytest.mark.parametrize("name", STEPS)
def test_products_are_made_once(name):
    """1.02 of the formula of a step that makes nothing again: the default makes so little."""
    jaxpr, planned = program(name, "products")
    counted, plain = flop(jaxpr), planned.setup.config.copy_and_resolve_references()
    with plain.unlocked():
        plain.model.remat = "none"
    setup = dataclasses.replace(planned.setup, config=plain)
    without = formulas.step(dataclasses.replace(planned, setup=setup))
    assert 0.99 < counted / formulas.step(planned) <= 1.02
    assert 0.99 < counted / without <= 1.02


def test_a_resnet_keeps_the_outputs_of_its_convolutions():
    """And the inputs of its bottlenecks. RN50x4 with a bottleneck of each stage, the widest one."""
    tower = sizes.find("RN50x4")
    few = dataclasses.replace(tower.vision, blocks=(1, 1, 1, 1))

    def residuals(remat):
        make = lambda: ModifiedResNet(
            few, tower.embedding, dtype=jnp.bfloat16, remat=remat, rngs=nnx.Rngs(0)
        )
        graph, params = nnx.split(nnx.eval_shape(make))
        pixels = jax.ShapeDtypeStruct((2, few.image, few.image, 3), jnp.float32)
        run = lambda p, x: nnx.merge(graph, p).features(x)
        back = jax.eval_shape(lambda p, x: jax.vjp(run, p, x)[1], params, pixels)
        own = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((params, pixels)))
        jaxpr = jax.make_jaxpr(run)(params, pixels).jaxpr
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(back)) - own, jaxpr

    held, jaxpr = residuals("products")
    everything, _ = residuals("none")
    made = sum(convolved(jaxpr))
    assert held <= 1.5 * made and everything > 2 * held


def convolved(jaxpr):
    """Bytes of the results of all convolutions."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            yield size(equation.outvars)
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from convolved(inner)
