# SPDX-License-Identifier: Apache-2.0
"""Models of open_clip that are not OpenAI's: CoCa's encoders, EVA-02, other pools, norms and masks.

Their folders come in and compute what the formulas in PyTorch do, layer by layer; the same bytes go
out again. Every value of the tiny networks is random.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch
from flax import nnx

from cir_jax import config, contract
from cir_jax.convert import exporting, importing, inputs, tables
from cir_jax.errors import UserError
from cir_jax.towers.clip import open_clip, sizes, weight_rules
from cir_jax.towers.clip.text import TextTransformer
from cir_jax.towers.clip.vit import VisionTransformer
from tests.convert import own_tokenizer
from tests.towers.weights import scrambled
from tools.torch_models import clip, clip4cir, ours, random_values

CONTEXT = 10
SIZES = {
    "coca": "vit-16-8-w24-l2-h2_text-w16-l2-h2_d16+gelu+image-scale+image-queries3"
    "+image-query-heads2+text-class+text-scale",
    "mean": "vit-16-8-w16-l2-h2_text-w16-l2-h2_d16+gelu_tanh+image-bare+image-mean+image-eps6"
    "+text-last+text-open+text-bias+text-eps6",
    "eva": "eva-24-8-w16-m20-l2-h2_text-w16-l2-h2_d16+gelu+text-vocabulary20+text-end2",
}
BOUND = 1e-5


@functools.cache
def functions(kind, *changes):
    said = [f"model.tower={SIZES[kind]}", "model.dtype=float32", f"model.context={CONTEXT}"]
    return contract.build(config.load("base", [*said, *changes]).model)


@functools.cache
def state(kind):
    return random_values.state(clip.build(sizes.find(SIZES[kind]), CONTEXT))


def folder(kind, place):
    """As open_clip writes it."""
    place.mkdir()
    tensors = {f"{'text.' * is_text(n)}{n}": x for n, x in state(kind).items()}
    if kind == "coca":  # what nothing here reads comes too
        tensors |= {"text_decoder.ln_final.weight": torch.ones(3)}
    said = open_clip.config_of(sizes.find(SIZES[kind]), CONTEXT, custom=True)
    (place / "open_clip_config.json").write_text(json.dumps(said))
    safetensors.torch.save_file(tensors, place / "open_clip_model.safetensors")
    if kind == "eva":
        own_tokenizer.xlm(place)
    return place


def is_text(name):
    return not name.startswith(("visual.", "logit_scale"))


def problem(kind):
    """(pixels, tokens) of three random images and texts, one of them as long as the context."""
    rng, size = np.random.default_rng(0), sizes.find(SIZES[kind])
    side, words = size.vision.image, size.text_variant
    first, last = (0, 2) if words.end else (49406, 49407)
    pixels = rng.normal(size=(3, side, side, 3)).astype(np.float32)
    tokens = np.zeros((3, CONTEXT), np.int32)
    for row, length in zip(tokens, (4, 7, CONTEXT), strict=True):
        row[:length] = [first, *rng.integers(3, min(words.vocabulary, 49405), length - 2), last]
    return pixels, tokens


@pytest.mark.parametrize("kind", SIZES)
def test_every_layer_within_1e5_and_the_same_bytes_out(kind, tmp_path):
    place = folder(kind, tmp_path / "in")
    model = with_tokenizer(place) if kind == "eva" else functions(kind)
    size, (pixels, tokens) = sizes.find(SIZES[kind]), problem(kind)
    weights = importing.read(place, model)
    params = weights.query
    want = clip4cir.trace(
        clip4cir.Clip4Cir(clip.filled(size, CONTEXT, state(kind))), pixels, tokens
    )
    got = ours.trace(model, params, pixels, tokens)
    assert list(got) == list(want)
    far = ours.differences(want, got)
    assert max(far.values()) < BOUND, far
    assert want["visual/feature"].std() > 0.1 and want["text/feature"].std() > 0.1

    # Behind the end of a text nothing is read, whatever it is cut to; or it is filled up again.
    reference = want["reference"][:2, None]
    short = jax.jit(model.compose)(params, reference, tokens[:2, :7])
    np.testing.assert_allclose(short, want["query"][:2], atol=1e-6)

    out = tmp_path / "out"
    exporting.write(
        out, model, weights.index, params, layout=weights.record["layout"], dtype="source",
        record=weights.record,
    )  # fmt: skip
    assert weights.record["layout"] == ("open_clip_custom_text" if kind == "mean" else "open_clip")
    files = [safetensors.torch.load_file(x / "open_clip_model.safetensors") for x in (place, out)]
    files[0].pop("text_decoder.ln_final.weight", None)
    assert files[0].keys() == files[1].keys()
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])
    said = [json.loads((x / "open_clip_config.json").read_text()) for x in (place, out)]
    assert said[0] == said[1]
    if kind == "eva":
        assert (out / "tokenizer.json").read_bytes() == (place / "tokenizer.json").read_bytes()


def with_tokenizer(place):
    """EVA's model as a run has it whose tokenizer came with its weights."""
    said = inputs.tokenizer(place)
    return functions("eva", *(f"model.{key}={value}" for key, value in said.items()))


def test_where_else_a_feature_is_read():
    """The mean of the normed patches; the first token of a text."""
    size = sizes.find("vit-16-8-w16-l1-h2_text-w16-l1-h2_d8+image-normed-mean+text-first")
    kinds = [(VisionTransformer, size.vision, size.vision_variant)]
    kinds.append((TextTransformer, size.text, size.text_variant))
    image, text = (
        scrambled(lambda kind=kind: kind[0](kind[1], 8, variant=kind[2], rngs=nnx.Rngs(0)))
        for kind in kinds
    )
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 16)), jnp.float32)
    want = image.norm_out(x)[:, 1:].mean(axis=1) @ image.proj[...]
    np.testing.assert_allclose(image.feature(x), want, atol=1e-6)
    np.testing.assert_allclose(text.feature(x, None), x[:, 0] @ text.proj[...], atol=1e-6)


def test_a_pool_of_an_image_as_wide_as_the_common_space_has_one_matrix_for_all_three():
    size = sizes.find("vit-16-8-w16-l1-h2_text-w16-l1-h2_d16+image-queries3+text-class")
    with torch.device("meta"):
        need = {n: tuple(x.shape) for n, x in clip.build(size, CONTEXT).state_dict().items()}
    changes = [f"model.tower={sizes.name_of(size)}", f"model.context={CONTEXT}"]
    abstract = contract.build(config.load("base", changes).model).abstract
    table = tables.expand(weight_rules.openai(size), abstract)
    assert tables.shapes(table, abstract) == need
    assert "visual.attn_pool.attn.in_proj_weight" in need


def test_a_tokenizer_that_ends_texts_otherwise_is_refused(tmp_path):
    own_tokenizer.write(tmp_path, ("<s>", 0), ("</s>", 4), bos_token="<s>", eos_token="</s>")
    with pytest.raises(UserError, match=r"ends a text with 4, and the text tower reads one at 2"):
        _ = functions("eva", f"model.tokenizer={tmp_path}").inputs.tokenizer
    own_tokenizer.tips(tmp_path / "none")
    with pytest.raises(UserError, match=r"ends a text with no token, and the text tower reads"):
        _ = functions("eva", f"model.tokenizer={tmp_path / 'none'}").inputs.tokenizer


def zeros(model):
    return {path: np.zeros(x.shape, np.float32) for path, x in model.abstract.items()}


def test_an_export_without_its_tokenizer_is_refused(tmp_path):
    model = functions("eva")
    params = zeros(model)
    with pytest.raises(UserError, match=r"nobody could use this export; name its folder"):
        exporting.write(tmp_path / "out", model, params, params, layout="open_clip")
    assert not (tmp_path / "out").exists()


def test_what_transformers_and_openai_do_not_have_is_not_written_as_theirs(tmp_path):
    model = functions("coca")
    params = zeros(model)

    def export(layout):
        exporting.write(tmp_path / "a.pt", model, params, params, layout=layout)

    with pytest.raises(UserError, match=r"CLIPModel is another .*image-queries3.*open_clip"):
        export("huggingface")
    with pytest.raises(UserError, match=r"MetaClip2Model is another network .*--format open_clip"):
        export("metaclip2")
    with pytest.raises(UserError, match=r"compute something else .* its network is another one"):
        export("openai")


def test_names_of_an_open_clip_model_without_its_config(tmp_path):
    place = folder("coca", tmp_path / "in")
    (place / "open_clip_config.json").unlink()
    with pytest.raises(UserError, match=r"do not tell; put its open_clip_config.json beside it"):
        importing.read(place, functions("coca"))


def test_a_scale_that_is_a_list_and_a_bias_of_a_sigmoid(tmp_path):
    """What no ranking depends on: the list is read as its number, and the bias goes out again."""
    place = folder("mean", tmp_path / "in")
    file = place / "open_clip_model.safetensors"
    tensors = safetensors.torch.load_file(file)
    scale = tensors["logit_scale"]
    tensors |= {"logit_scale": scale.reshape(1), "logit_bias": torch.tensor([-9.5])}
    safetensors.torch.save_file(tensors, file)
    weights = importing.read(place, functions("mean"))
    assert weights.query["logit_scale"] == scale.numpy()
    out = tmp_path / "out"
    exporting.write(
        out, functions("mean"), weights.index, weights.query, layout="open_clip_custom_text",
        record=weights.record,
    )  # fmt: skip
    written = safetensors.torch.load_file(out / "open_clip_model.safetensors")
    assert written["logit_bias"].item() == -9.5 and written["logit_scale"].shape == ()
    model = json.loads((out / "open_clip_config.json").read_text())["model_cfg"]
    assert model["init_logit_bias"] == 0
