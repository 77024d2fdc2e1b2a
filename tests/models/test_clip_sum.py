# SPDX-License-Identifier: Apache-2.0
"""CLIP4CIR (sum): its formula, who trains when, what is sharded, and its errors."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cir_jax import config, contract
from cir_jax.errors import UserError
from cir_jax.models import clip_sum
from cir_jax.runtime import mesh, sharding
from cir_jax.towers import layers
from cir_jax.towers.clip import sizes
from tests import runs
from tests.towers.weights import random_values

TINY = ("tiny-vit", "tiny-resnet")


@functools.cache
def build(tower, *changes):
    overrides = [f"model.tower={tower}", "model.dtype=float32", *changes]
    return contract.build(config.load("base", overrides).model)


@functools.cache
def problem(tower):
    """(parameters, pixels, text) of two random triplets."""
    rng = np.random.default_rng(0)
    pixels = rng.normal(size=(2, 64, 64, 3)).astype(np.float32)
    text = np.zeros((2, 12), np.int32)
    text[:, :5] = rng.integers(1, 49405, (2, 5))
    text[:, 0], text[0, 4], text[1, 5] = 49406, 49407, 49407
    shapes = {path: x.shape for path, x in build(tower).abstract.items()}
    return jax.device_put(random_values(shapes)), pixels, text


def embed(functions, params, pixels, text):
    reference = functions.reference(params, pixels, text)
    target = functions.target(params, pixels)
    return reference, target, functions.compose(params, reference, text)


@pytest.mark.parametrize("tower", TINY)
def test_the_query_is_the_unit_sum_of_raw_features(tower):
    functions = build(tower)
    params, pixels, text = problem(tower)
    run = jax.jit(functools.partial(embed, functions))
    reference, target, query = run(params, pixels, text)
    wide = sizes.find(tower).embedding
    assert reference.shape == target.shape == (2, 1, wide) and query.shape == (2, wide)
    assert {x.dtype for x in (reference, target, query)} == {jnp.dtype("float32")}
    # The reference is raw, the target the same feature made unit.
    norms = np.linalg.norm(reference, axis=-1, keepdims=True)
    assert np.abs(norms - 1).min() > 0.01
    np.testing.assert_allclose(target, reference / norms, atol=1e-6)

    model = nnx.merge(functions.graph, tree(functions, params))
    raw = np.asarray(reference)[:, 0] + np.asarray(jax.jit(model.text.__call__)(text))
    want = raw / np.linalg.norm(raw, axis=-1, keepdims=True)
    np.testing.assert_allclose(query, want, atol=1e-6)

    # The image side does not see the text, and there is no dropout.
    other = run(params, pixels, text[::-1])
    np.testing.assert_array_equal(reference, other[0])
    dropped = jax.jit(functions.compose)(params, reference, text, jax.random.key(0))
    np.testing.assert_allclose(dropped, query, atol=1e-6)


def tree(functions, params):
    nested = {}
    for path, keys in functions.keys.items():
        node = nested
        for key in keys[:-1]:
            node = node.setdefault(key, {})
        node[keys[-1]] = params[path]
    return nested


@pytest.mark.parametrize("tower", TINY)
@pytest.mark.parametrize("change, sign", [("remat=layers", "remat"), ("dtype=bfloat16", "bf16")])
def test_both_towers_read_remat_and_dtype_from_the_config(tower, change, sign):
    params, pixels, text = problem(tower)
    reference = jnp.zeros((2, 1, sizes.find(tower).embedding))

    def programs(functions):
        return (
            str(jax.make_jaxpr(functions.target)(params, pixels)),
            str(jax.make_jaxpr(functions.compose)(params, reference, text)),
        )

    plain = build(tower, "model.remat=none")
    assert not any(sign in program for program in programs(plain))
    assert all(sign in program for program in programs(build(tower, f"model.{change}")))


@pytest.mark.parametrize("tower", sizes.SIZES)
def test_every_parameter_has_the_role_of_its_side(tower):
    functions = build(tower)
    roles = functions.roles  # also checks that no rule is idle
    assert roles["logit_scale"] == "pretrain"
    for path, role in roles.items():
        if path.startswith("text/"):
            assert role == "query"
        elif path.startswith("visual/"):
            assert role == ("statistic" if path.endswith(("/mean", "/var")) else "index")
    assert ("statistic" in roles.values()) == (tower.startswith("RN") or tower == "tiny-resnet")


def test_parameter_count_at_336_pixels():
    # 427,616,513 at 224 pixels and 24^2 - 16^2 = 320 more positions of width 1024.
    abstract = build("ViT-L/14@336px").abstract
    assert sum(math.prod(x.shape) for x in abstract.values()) == 427_616_513 + 320 * 1024


@pytest.mark.parametrize("tower", ["RN50x4", "ViT-B/32"])
def test_every_matrix_is_sharded(tower):
    functions = build(tower)
    places = sharding.parameter_shardings(functions, mesh.make(model=4))
    whole = {p for p, s in places.items() if not any(s.spec)}
    # Not sharded: vectors (one per layer where layers are stacked) and the learned positions.
    allowed = {"visual/position", "text/position", "logit_scale", "visual/class_token"}
    assert {p for p in whole if not p.endswith(("/bias", "/scale", "/mean", "/var"))} <= allowed


def test_logit_scale_starts_at_the_temperature_of_clip():
    # Only the scale is returned, so nothing else is drawn.
    model = build("tiny-vit").config
    scale = jax.jit(lambda: clip_sum.Model(model, rngs=nnx.Rngs(0)).logit_scale[...])()
    assert float(scale) == pytest.approx(math.log(1 / 0.07))


def test_unit_of_nothing_is_nothing_and_has_a_gradient():
    value, pull = jax.vjp(layers.unit, jnp.zeros((1, 3)))
    assert np.all(np.isfinite(pull(jnp.ones((1, 3)))[0])) and not np.any(value)
    x = jnp.asarray([[3.0, 4.0]], jnp.bfloat16)
    np.testing.assert_allclose(layers.unit(x), [[0.6, 0.8]], atol=1e-6)


def test_a_smaller_context_is_taken_from_the_config():
    functions = build("tiny-vit", "model.context=16")
    assert functions.abstract["text/position"].shape[0] == 16
    with pytest.raises(UserError, match=r"text of 17 tokens is over the context of 16; cut it"):
        reference = jnp.zeros((1, 1, functions.reference_shape[1]))
        jax.eval_shape(functions.compose, functions.abstract, reference, jnp.zeros((1, 17), int))


def test_errors():
    with pytest.raises(UserError, match=r"model.dtype='float16' is unknown; use auto, float32"):
        build("tiny-vit", "model.dtype=float16")
    with pytest.raises(UserError, match=r"model.image_size=96, but tower 'tiny-vit' takes 64; set"):
        build("tiny-vit", "model.image_size=96")
    with pytest.raises(UserError, match=r"no tower 'tiny-vti'; there are: .* Did you mean 'tiny-v"):
        build("tiny-vti")


def test_the_halves_of_a_query_add_up_to_it():
    functions = build("tiny-vit")
    params, _, text = problem("tiny-vit")
    wide = sizes.find("tiny-vit").embedding
    reference = np.random.default_rng(1).normal(size=(2, 1, wide)).astype(np.float32)
    reference[1] = 0  # of a text alone

    @jax.jit
    def both(params, reference, text):
        composed = functions.compose(params, reference, text)
        raw = functions.text_features(params, text, None)
        return composed, raw, *functions.halves(params, reference, text)

    query, raw, image, words = both(params, reference, text)
    np.testing.assert_allclose(image + words, query, atol=1e-6)
    # Each is its raw feature, shortened as the sum was.
    norm = np.linalg.norm(reference[:, 0] + raw, axis=-1, keepdims=True)
    np.testing.assert_allclose(words, raw / norm, atol=1e-6)
    np.testing.assert_allclose(image, reference[:, 0] / norm, atol=1e-6)


def test_who_is_a_sum(tmp_path):
    """A model that inherits the halves and composes otherwise is none."""
    assert build("tiny-vit").sums and build("tiny-vit").text_alone
    for name in ("clip_combiner", "tgcir"):
        functions = contract.build(runs.tiny("a", "b", model=name).model)
        assert not functions.sums and functions.text_alone
    (tmp_path / "mine.py").write_text(
        "from cir_jax.models.clip_sum import *\nfrom cir_jax.models import clip_sum\n\n"
        "class Model(clip_sum.Model):\n    def fuse(self, reference, features, key=None):\n"
        "        return features\n"
    )
    assert not build("tiny-vit", f"model.name={tmp_path / 'mine.py'}").sums
