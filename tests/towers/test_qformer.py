# SPDX-License-Identifier: Apache-2.0
"""The Q-Former against its formula in PyTorch and, where the rules agree, against transformers; the
image encoder of BLIP-2 against transformers; the names of sizes."""

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from transformers import Blip2Config, Blip2ForImageTextRetrieval

from cir_jax.convert import tables
from cir_jax.convert.containers import tensors
from cir_jax.errors import UserError
from cir_jax.towers.blip2 import huggingface, sizes, weight_rules
from cir_jax.towers.blip2.qformer import QFormer
from cir_jax.towers.blip2.sizes import QFormerSize
from tests.convert import published_sprc as published

WIDTH = published.SIZE.vision.width
SLOTS, PATCHES, LENGTH = 3, 5, 7


def quick(function):
    """The same program, compiled in half the time: machine code is optimised less."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def inputs():
    """(slots, text, image tokens)."""
    rng = np.random.default_rng(0)
    slots = rng.normal(size=(2, SLOTS, published.SIZE.former.width)).astype(np.float32)
    image = rng.normal(size=(2, PATCHES, WIDTH)).astype(np.float32)
    text = np.array([[101, 7, 8, 9, 10, 11, 102], [101, 20, 102, 0, 0, 0, 0]], np.int32)
    return slots, text, image


@pytest.fixture(scope="module")
def former():
    """(PyTorch's, ours)."""
    model = published.network()
    tree = published.functions().merged(jax.device_put(published.ours(model)[0]))
    return model.Qformer.bert, tree.former


@pytest.fixture(scope="module")
def transformers_model():
    """(transformers' model, ours with its values)."""
    model = Blip2ForImageTextRetrieval(Blip2Config(**huggingface.config_of(published.SIZE)))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.normal_(std=0.2)
            value.add_(1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0)
            if name.endswith("qkv.bias"):
                value.view(3, -1)[1] = 0
    held = {n: tensors.of(x.numpy()) for n, x in model.state_dict().items()}
    abstract, rules = published.functions().abstract, weight_rules.huggingface()
    part = tables.leaves(rules, abstract)
    split = huggingface.apart(held, "the model")
    params = tables.fill(tables.expand(rules, part), part, split, "the model")
    missing = {p: np.zeros(x.shape, np.float32) for p, x in abstract.items() if p not in params}
    return model.eval(), published.functions().merged(jax.device_put(params | missing))


@pytest.mark.parametrize("with_text", [True, False])
@pytest.mark.parametrize("with_image", [True, False])
def test_each_pass_is_that_of_the_formula(former, with_text, with_image):
    theirs, ours = former
    slots, text, image = inputs()
    text, image = (x if used else None for x, used in ((text, with_text), (image, with_image)))
    with torch.no_grad():
        want = theirs(
            torch.from_numpy(slots),
            None if text is None else torch.from_numpy(text).long(),
            None if image is None else torch.from_numpy(image),
        )
    got = quick(lambda *x: ours(*x))(slots, text, image)
    assert got.dtype == np.float32 and got.shape == (2, SLOTS + LENGTH * with_text, 24)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_learned_prompts_stand_behind_the_first_token(former):
    theirs, ours = former
    slots, text, _ = inputs()
    ids = torch.from_numpy(text).long()
    with torch.no_grad():
        want = theirs(torch.from_numpy(slots), ids, behind_first=True)
        other = theirs(torch.from_numpy(slots), ids)
    prompted = quick(ours.prompted)
    np.testing.assert_allclose(prompted(slots, text), want, atol=1e-5)
    assert (want[:, 0] - other[:, SLOTS]).abs().max() > 0.1
    longer = prompted(slots, np.pad(text, ((0, 0), (0, 3))))
    np.testing.assert_allclose(longer[:, 0], want[:, 0], atol=1e-5)


def test_with_an_image_it_is_the_one_of_transformers(transformers_model):
    model, ours = transformers_model
    slots, text, image = inputs()
    ids, seen = torch.from_numpy(text).long(), torch.from_numpy(text > 0).long()
    embedded = model.embeddings(input_ids=ids, query_embeds=torch.from_numpy(slots))
    with torch.no_grad():
        both = model.qformer(
            query_embeds=embedded,
            query_length=SLOTS,
            attention_mask=torch.cat([torch.ones(2, SLOTS, dtype=torch.long), seen], dim=1),
            encoder_hidden_states=torch.from_numpy(image),
        ).last_hidden_state
        text_alone = model.qformer(
            query_embeds=model.embeddings(input_ids=ids), query_length=0, attention_mask=seen
        ).last_hidden_state
    got = quick(lambda *x: ours.former(*x))(slots, text, image)
    np.testing.assert_allclose(got, both, atol=1e-5)
    got = quick(lambda x, y: ours.former(x, y, None))(slots[:, :0], text)
    used = text > 0  # states of padding are nobody's
    np.testing.assert_allclose(np.asarray(got)[used], text_alone.numpy()[used], atol=1e-5)


def test_the_image_encoder_is_the_one_of_transformers(transformers_model):
    model, ours = transformers_model
    pixels, _, _ = published.examples()
    (images,) = published.in_torch(pixels)
    with torch.no_grad():
        out = model.vision_model(pixel_values=images, output_hidden_states=True)
    got = quick(lambda x: (ours.visual(x), ours.norm_image(ours.visual(x))))(pixels)
    last = out.hidden_states[-1]
    assert got[0].shape == last.shape == (4, 5, WIDTH)
    np.testing.assert_allclose(got[0], last, atol=1e-5 * float(last.abs().max()))
    norm = model.vision_model.post_layernorm
    normed = torch.nn.functional.layer_norm(last, (WIDTH,), norm.weight, norm.bias, 1e-5)
    np.testing.assert_allclose(got[1], normed.detach(), atol=1e-5)
    # transformers' epsilon is another, which is hardly seen.
    np.testing.assert_allclose(got[1], out.last_hidden_state, atol=1e-4)


def test_dropout_is_in_every_part_and_needs_a_key(former, monkeypatch):
    ours, (slots, text, image) = former[1], inputs()
    drawn, draw = [], jax.random.bernoulli

    def noted(key, p, shape, **options):
        drawn.append((p, tuple(shape)))
        return draw(key, p, shape, **options)

    monkeypatch.setattr(jax.random, "bernoulli", noted)
    jax.eval_shape(lambda *x: ours(*x), slots, text, image)
    assert not drawn
    key = jax.random.key(0)
    jax.eval_shape(lambda *x: ours(*x, key), slots, text, image)
    everything, own = SLOTS + LENGTH, published.SIZE.former.width
    heads, mixed = published.SIZE.former.heads, (2, everything, own)
    self_attention = [(2, heads, everything, everything), mixed]
    cross_attention = [(2, heads, SLOTS, PATCHES), (2, SLOTS, own)]
    mlps = [(2, SLOTS, own), (2, LENGTH, own)]
    # The embeddings; then an even layer and an odd one, which are traced once.
    want = [mixed, *self_attention, *cross_attention, *mlps, *self_attention, *mlps]
    assert [shape for _, shape in drawn] == want
    assert {kept for kept, _ in drawn} == {0.9}
    drawn.clear()
    jax.eval_shape(lambda *x: ours(*x, key), slots, text, None)
    assert [shape for _, shape in drawn] == [mixed, *[*self_attention, mixed] * 2]


@pytest.mark.parametrize("remat", ["none", "products", "layers"])
def test_remat_reaches_the_layers(remat):
    slots, text, image = inputs()
    size = QFormerSize(24, 4, 2, SLOTS)
    make = lambda: QFormer(size, WIDTH, remat=remat, rngs=nnx.Rngs(0))
    graph, params = nnx.split(nnx.eval_shape(make))

    def total(params):
        return nnx.merge(graph, params)(slots, text, image, jax.random.key(1)).std()

    program = str(jax.make_jaxpr(total)(params))
    assert ("remat" in program or "checkpoint" in program) == (remat != "none")


def test_a_text_over_the_positions_is_an_error(former):
    slots, _, _ = inputs()
    with pytest.raises(UserError, match="text of 513 tokens is over the 512 positions of BERT"):
        former[1](slots, np.ones((2, 513), np.int32), None)
    with pytest.raises(UserError, match="text of 513 tokens is over"):
        former[1].prompted(slots, np.ones((2, 510), np.int32))


@pytest.mark.parametrize("name", [*sizes.SIZES, published.TOWER])
def test_sizes_have_one_name(name):
    size = sizes.find(name)
    assert sizes.name_of(size) == name
    assert sizes.normal_form(sizes.normal_form(size)) == sizes.normal_form(size)


@pytest.mark.parametrize(
    "name, message",
    [
        ("blip2-vit-h", r"no tower 'blip2-vit-h' of BLIP-2; .* Did you mean 'blip2-vit-g'\?"),
        (published.TOWER.replace("l4", "l3"), "a Q-Former of 3 layers, not of pairs"),
        (published.TOWER.replace("w32", "w33"), "vision width 33 does not divide into 2 heads"),
        (published.TOWER.replace("16-8", "16-18"), "an image of 16 pixels has no patch of 18"),
        (published.TOWER.replace("q3", "q0"), "0 queries and an embedding of 8"),
        (published.TOWER.replace("l2", "l0"), "an image encoder of no layers"),
    ],
)
def test_sizes_that_are_refused(name, message):
    with pytest.raises(UserError, match=message):
        sizes.find(name)
