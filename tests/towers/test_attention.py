# SPDX-License-Identifier: Apache-2.0
"""One attention for all towers: what computes it, and that every kind is asked for the same."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cir_jax import config as configs
from cir_jax import contract
from cir_jax.errors import UserError
from cir_jax.retrieval import memory as use
from cir_jax.runtime.memory import OutOfMemory
from cir_jax.towers import attention
from cir_jax.towers.attention import AUTO, CUDNN, XLA, Attend
from cir_jax.training import memory as training
from tests import runs

HEADS, WIDTH = 4, 16
SEEN = np.arange(9)[None] < np.array([3, 9])[:, None]  # 3 and 9 keys
# name -> (attention, queries, keys, mask)
CALLS = {
    "self": (Attend(HEADS, WIDTH), 9, 9, None),
    "causal": (Attend(HEADS, WIDTH, causal=True), 9, 9, None),
    "cross": (Attend(HEADS, WIDTH), 5, 9, None),
    "masked": (Attend(HEADS, WIDTH, masks=True), 9, 9, SEEN),
    "written out": (Attend(HEADS, WIDTH, masks=True, written_out=True), 5, 9, SEEN),
    "causal and masked": (Attend(HEADS, WIDTH, causal=True, masks=True), 9, 9, SEEN),
}


def written_out(query, key, value, causal, mask):
    """softmax(q k / sqrt(width)) v in float64."""
    query, key, value = (
        np.asarray(x, np.float64).reshape(*x.shape[:2], HEADS, WIDTH) for x in (query, key, value)
    )
    logits = np.einsum("bthd,buhd->bhtu", query, key) / WIDTH**0.5
    seen = np.ones(logits.shape, bool) if mask is None else np.broadcast_to(
        mask[:, None, None], logits.shape
    )  # fmt: skip
    if causal:
        seen = seen & np.tril(np.ones(logits.shape[-2:], bool))
    weights = np.where(seen, np.exp(logits - logits.max(axis=-1, keepdims=True)), 0)
    weights = weights / weights.sum(axis=-1, keepdims=True)
    return np.einsum("bhtu,buhd->bthd", weights, value).reshape(*query.shape[:2], -1)


@pytest.fixture
def kernel(monkeypatch):
    """XLA does what cuDNN is asked for; the list of what is asked."""
    asked, ours = [], jax.nn.dot_product_attention

    def noted(*arrays, implementation, **options):
        asked.append(implementation)
        return ours(*arrays, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", noted)
    return asked


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("dtype, error", [("float32", 1e-6), ("bfloat16", 2e-2)])
def test_both_kinds_are_the_formula(name, dtype, error, kernel):
    """Largest difference of outputs of the size of 1: 1e-6 in float32, 2e-2 in bfloat16."""
    one, queries, keys, mask = CALLS[name]
    rng = np.random.default_rng(0)
    arrays = [
        jnp.asarray(rng.normal(size=(2, length, HEADS * WIDTH)), dtype)
        for length in (queries, keys, keys)
    ]
    want = written_out(*arrays, one.causal, mask)
    for kind in (XLA, CUDNN):
        got = dataclasses.replace(one, kind=kind)(*arrays, mask)
        assert got.dtype == dtype and got.shape == arrays[0].shape
        np.testing.assert_allclose(np.asarray(got, np.float64), want, atol=error)
    assert kernel == ([CUDNN] if one.written_out else [XLA, CUDNN])


def test_what_no_kernel_does_is_done_by_xla(kernel):
    one = Attend(HEADS, WIDTH, masks=True, written_out=True, kind=CUDNN)
    arrays = [jnp.asarray(np.random.default_rng(1).normal(size=(2, 9, HEADS * WIDTH)))] * 3
    each = np.broadcast_to(SEEN[:, None], (2, 9, 9))  # a mask of its own for every query
    want = dataclasses.replace(one, kind=XLA)(*arrays, SEEN)
    np.testing.assert_array_equal(one(*arrays, each), want)
    halved = one(*arrays, SEEN, drop=lambda weights: weights / 2)
    np.testing.assert_allclose(halved, want / 2, rtol=1e-6)
    assert not kernel


def refuse(one):
    raise NotImplementedError(f"no plan for {one.width}\nmore")


@pytest.mark.parametrize(
    "platform, dtype, width, compile_it, reason",
    [
        ("cpu", "bfloat16", 64, lambda one: None, "NVIDIA GPU, and the devices are .*'cpu'"),
        ("tpu", "bfloat16", 64, lambda one: None, "NVIDIA GPU, and the devices are .*'tpu'"),
        ("gpu", "float32", 64, lambda one: None, r"it needs model.dtype=bfloat16 \(now float32\)"),
        ("gpu", "bfloat16", 20, lambda one: None, "a head has 20 channels, not a multiple of 8"),
        ("gpu", "bfloat16", 512, lambda one: None, "a head has 512 channels, .* 8 up to 256"),
        ("gpu", "bfloat16", 64, refuse, "NotImplementedError: no plan for 64"),
        ("gpu", "bfloat16", 64, None, "cuDNN"),  # that of this machine: there is none
        ("gpu", "bfloat16", 64, lambda one: None, ""),
    ],
)  # fmt: skip
def test_what_the_key_comes_to(platform, dtype, width, compile_it, reason, monkeypatch, capsys):
    monkeypatch.setattr(attention, "_platform", lambda: platform)
    if compile_it is not None:
        monkeypatch.setattr(attention, "_compile", compile_it)
    found = [Attend(2, 64), Attend(2, width, masks=True)]
    assert attention.resolve(XLA, dtype, found) == XLA
    assert attention.resolve(AUTO, dtype, found) == (XLA if reason else CUDNN)
    said = capsys.readouterr().out
    assert ("model.attention=auto is xla: " in said) == (platform == "gpu" and bool(reason))
    if reason:
        message = rf"model.attention=cudnn cannot be used here: .*{reason}.*model.attention=xla"
        with pytest.raises(UserError, match=message):
            attention.resolve(CUDNN, dtype, found)
    else:
        assert attention.resolve(CUDNN, dtype, found) == CUDNN


def test_every_way_to_attend_is_compiled_once(monkeypatch):
    compiled = []
    monkeypatch.setattr(attention, "_platform", lambda: "gpu")
    monkeypatch.setattr(attention, "_compile", compiled.append)
    ways = [Attend(2, 64), Attend(2, 64, causal=True), Attend(2, 64)]
    assert attention.resolve(AUTO, "bfloat16", ways) == CUDNN
    assert compiled == [dataclasses.replace(one, kind=CUDNN) for one in ways[:2]]


def built(model, *changes):
    config = runs.tiny("unused", "unused", f"model.tower={runs.TOWERS[model]}", model=model)
    return contract.build(configs.override(config, ["model.dtype=bfloat16", *changes]).model)


# model -> attentions of an image and of a query. A scan is traced once; a pair of layers of the
# Q-Former has three of them with an image, and two without.
TRACED = {"clip_sum": 1 + 1 + 1, "blip": 1 + 1 + 2, "sprc": 1 + 3 + 1 + 3 + 2}


@pytest.mark.parametrize("model", TRACED)
def test_all_towers_ask_for_it(model, monkeypatch, kernel):
    plain = built(model)
    assert plain.config.attention == XLA
    with pytest.raises(UserError, match=r"model.attention=cudnn cannot be used .*an NVIDIA"):
        built(model, "model.attention=cudnn")
    monkeypatch.setattr(attention, "_platform", lambda: "gpu")
    monkeypatch.setattr(attention, "_compile", lambda one: None)
    functions = built(model)
    assert functions.config.attention == CUDNN and functions.abstract == plain.abstract

    def query(params, pixels, text):
        return functions.compose(params, functions.reference(params, pixels, text), text)

    side = functions.image_size
    pixels = jax.ShapeDtypeStruct((2, side, side, 3), jnp.uint8)
    text = jax.ShapeDtypeStruct((2, 8), jnp.int32)
    kernel.clear()
    for run, inputs in ((functions.target, [pixels]), (query, [pixels, text])):
        jax.eval_shape(run, functions.abstract, *inputs)
    assert kernel == [CUDNN] * TRACED[model]


def failing(text):
    raise jax.errors.JaxRuntimeError(text)


REFUSED = "INTERNAL: cuDNN error: no execution plan supports the graph\nmore"


def contexts(kind):
    """Where programs are compiled and run: in training, and in use."""
    config = SimpleNamespace(model=SimpleNamespace(attention=kind))
    functions = SimpleNamespace(config=config.model)
    yield training.guard(SimpleNamespace(config=config))
    yield use.encoding("encoding images", functions, None, "batch", 8)


def test_a_kernel_that_fails_later_names_its_key():
    for context in contexts(CUDNN):
        message = r"model.attention=cudnn: cuDNN failed: .*no execution plan.*model.attention=xla"
        with pytest.raises(UserError, match=message), context:
            failing(REFUSED)
    for kind, text in ((XLA, REFUSED), (CUDNN, "INTERNAL: something else")):
        for context in contexts(kind):
            with pytest.raises(jax.errors.JaxRuntimeError), context:
                failing(text)
    x = jnp.zeros((1, 8, 32), jnp.bfloat16)
    with pytest.raises(UserError, match=r"it does not take queries \(1, 8, 2, 16\).*cuDNN"):
        Attend(2, 16, kind=CUDNN)(x, x, x)
    assert not issubclass(OutOfMemory, jax.errors.JaxRuntimeError)
