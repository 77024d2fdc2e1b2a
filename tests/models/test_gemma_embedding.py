# SPDX-License-Identifier: Apache-2.0
"""What `gemma_embedding` says of itself; tests/convert/test_gemma.py compares its vectors."""

from types import SimpleNamespace

import numpy as np
import pytest

from cir_jax import config as configs
from cir_jax import contract, rules, weights
from cir_jax.bank.bank import Inputs
from cir_jax.errors import UserError
from cir_jax.models.gemma_embedding import model
from cir_jax.retrieval import identity, load
from cir_jax.towers.gemma import sizes
from cir_jax.training import inheritance
from tests import runs

MARK = sizes.CLIP_WORDS


def section(*changes):
    return runs.tiny("unused", "unused", *changes, model="gemma_embedding")


@pytest.fixture(scope="module")
def short():
    """(config, functions) of vectors that are cut, and of a prompt."""
    config = section("model.width=8", "model.prompt=find <|image|> but {text}")
    return config, contract.build(config.model)


def test_vectors_are_cut_and_of_unit_length_again(short):
    _, functions = short
    assert (functions.reference_shape, functions.target_shape) == ((4, 64), (1, 8))
    embedding = np.random.default_rng(0).normal(size=(2, 32)).astype(np.float32)
    made = model.Model._vector(SimpleNamespace(width=8), embedding)
    want = embedding[:, :8] / np.linalg.norm(embedding[:, :8], axis=1, keepdims=True)
    np.testing.assert_allclose(made, want, atol=1e-6)
    assert functions.text_alone and functions.passes_once
    words = functions.inputs.tokenizer.encode(["red"])[0]
    assert words.count(MARK) == 1 and words[0] == MARK - 2 and words[-1] == MARK - 1
    assert 1 < words.index(MARK) < len(words) - 2  # words before and behind the image


def test_prompt_and_width_are_part_of_what_rows_and_queries_were_made_of(short):
    config, functions = short
    rows = {"model.width": 8, "model.image_ids": []}
    assert functions.input_keys("index") == rows
    shapes = {path: np.zeros(x.shape, np.float32) for path, x in functions.abstract.items()}
    preprocess = load.preprocessing(config, functions)
    found = identity.of(config, functions, shapes, shapes, preprocess)
    assert found["index_inputs"] == rows
    other = found | {"query_inputs": {"model.prompt": "<|image|>{text}"}}
    assert identity.differences(found, other) == ["query_inputs"]
    assert set(identity.differences(found, other)) <= set(identity.QUERY_PARTS)
    made = Inputs(functions, shapes, _Images(), None, preprocess, "recompute").fingerprint()
    assert made["model.width"] == "8" and "model.prompt" not in made


class _Images:
    """Of training data, what a bank without references asks."""

    images = property(lambda self: self)

    def fingerprint(self):
        return "none"


def test_stage_two_takes_what_the_weights_were_trained_with(short, monkeypatch):
    config, _ = short
    monkeypatch.setattr(weights, "config_of", lambda place, *_: config)
    taken = inheritance._from_run(section(), "run")
    assert taken.model.width == 8 and taken.model.prompt == "find <|image|> but {text}"
    given = configs.note_given(section("model.width=16"), {"model.width"})
    with pytest.raises(UserError, match=r"model.width=16 was set, but run was trained with .*=8"):
        inheritance._from_run(given, "run")


def test_parts_that_never_train():
    paths = ["visual/patch/kernel", "text/tokens", "text/proj/kernel",
             "text/periods/layers/0/factor"]  # fmt: skip

    def roles(*changes):
        return list(rules.match(model.roles(section(*changes).model), paths).values())

    assert roles() == ["index", "query", "query", "statistic"]
    assert roles("model.freeze=tokens") == ["index", "pretrain", "query", "statistic"]
    assert roles("model.freeze=image,tokens")[:2] == ["pretrain", "pretrain"]
    with pytest.raises(UserError, match=r"freeze=\('text',\) is unknown; use image or tokens"):
        section("model.freeze=text")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "model.width=33",
            r"model.width=33 is over the 32 values of a vector of model.tower=gemma",
        ),
        ("model.image_ids=1,2", rf"=\(1, 2\) must have the image token {MARK} once, and no id abo"),
        (
            f"model.image_ids={MARK},99999",
            r"no id above 49415; leave it empty for \(49406, 49408, ",
        ),
        ("model.image_size=13", r"13 pixels is not made of soft tokens of 6x6; 12 or 18 is"),
        (
            "model.image_size=18",
            r"9 patches along a side, but there are 6 positions; correct model",
        ),
    ],
)
def test_values_that_no_model_has(change, message):
    with pytest.raises(UserError, match=message):
        contract.build(section(change).model)


@pytest.mark.parametrize("name", sizes.SIZES)
def test_sizes_have_names(name):
    size = sizes.find(name)
    assert sizes.name_of(size) == name
    other = sizes.with_image(size, 2 * size.vision.patch * size.vision.pool)
    assert sizes.find(sizes.name_of(other)) == other
    assert sizes.find(name, other.vision.image) == other


@pytest.mark.parametrize(
    ("part", "wrong", "message"),
    [
        ("-h4x4-", "-h4x6-", "do not rotate by two positions"),
        ("-l1x1-", "-l3x2-", "3 layers are no multiple of 2"),
        ("-k1x4-k1x4", "-k3x4-k1x4", "4 heads do not share 3 and 1 key heads"),
        ("-k1x4-k1x4", "-k1x5-k1x4", "must be even to be rotated"),
        ("t49408", "t59408", "are no tokens of 49416"),
        ("-w64-m32-l1-", "-w0-m32-l1-", "a number of the size is below 1"),
        ("gemma-", "gema-", "no tower 'gema-.* of EmbeddingGemma; there are: embeddinggemma-2, t"),
    ],
)
def test_sizes_that_no_encoder_has(part, wrong, message):
    name = runs.TOWERS["gemma_embedding"]
    assert part in name
    with pytest.raises(UserError, match=message):
        sizes.find(name.replace(part, wrong, 1))
