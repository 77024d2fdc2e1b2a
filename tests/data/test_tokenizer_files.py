# SPDX-License-Identifier: Apache-2.0
"""Tokenizers that come with weights, against transformers, and what is said of wrong ones."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file
from transformers import PreTrainedTokenizerFast, SiglipTokenizer

from cir_jax.data import tokenizer_files, tokens
from cir_jax.data.tokenizer_files import Rules
from cir_jax.errors import UserError
from tests import tokenizer_folders
from tests.tokenizer_folders import CONTEXT, TEXTS


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    return tokenizer_folders.gemma(tmp_path_factory.mktemp("gemma"))


@pytest.fixture(scope="module")
def spiece(tmp_path_factory):
    return tokenizer_folders.pieces(tmp_path_factory.mktemp("spiece"))


def padded(tokenizer, texts, length=CONTEXT):
    table = tokens.table(texts, tokenizer, "truncate")
    return table.rows(slice(None), length).tolist()


def test_a_tokenizer_json_gives_the_ids_of_transformers(gemma):
    theirs = PreTrainedTokenizerFast.from_pretrained(gemma)
    ours = tokenizer_files.load(str(gemma))
    assert (ours.context, ours.start, ours.end, ours.pad) == (CONTEXT, None, 1, 0)
    asked = {"padding": "max_length", "truncation": True, "max_length": CONTEXT}
    assert padded(ours, TEXTS) == theirs(TEXTS, **asked)["input_ids"]
    assert ours.encode([""]) == [[1]]
    long = ["red " * 40]
    assert padded(ours, long) == theirs(long, **asked)["input_ids"]


def test_a_sentencepiece_model_gives_the_ids_of_transformers(spiece):
    theirs = SiglipTokenizer.from_pretrained(spiece)
    ours = tokenizer_files.load(str(spiece))
    assert (ours.context, ours.start, ours.end, ours.pad) == (CONTEXT, None, 1, 1)
    texts = [*TEXTS, "  The RED,   dress's  "]
    asked = {"padding": "max_length", "truncation": True, "max_length": CONTEXT}
    assert padded(ours, texts) == theirs(texts, **asked)["input_ids"]


@pytest.mark.parametrize(
    "settings, rules, lower, around",
    [
        ({"do_lower_case": True}, Rules(), True, (None, 1)),
        ({"tokenizer_class": "Siglip2Tokenizer"}, Rules(), True, (None, 1)),
        ({}, Rules(lower=True), True, (None, 1)),
        ({"add_bos_token": True, "add_eos_token": False}, Rules(), False, (2, None)),
        ({"add_eos_token": True, "add_bos_token": True}, Rules(), False, (2, 1)),
    ],
)
def test_settings_and_towers_say_case_and_marks(tmp_path, settings, rules, lower, around):
    folder = tokenizer_folders.gemma(tmp_path, **settings)
    ours = tokenizer_files.load(str(folder), rules=rules)
    assert (ours.start, ours.end) == around
    capital, small = ours.encode(["A Red"])[0], ours.encode(["a red"])[0]
    assert (capital == small) == lower


def test_the_tower_decides_the_length_and_what_fills_up(gemma):
    ours = tokenizer_files.load(str(gemma), rules=Rules(context=5, pad=0, words=128))
    assert padded(ours, ["red"], ours.context) == [[*ours.encode(["red"])[0], 0][:5]]
    with pytest.raises(UserError, match=r"text 0: .* tokens, the limit is 5"):
        tokens.table(["is red and blue"], ours)


def test_it_is_known_by_its_content_wherever_it_lies(gemma, tmp_path):
    files = tokenizer_files.read(gemma)
    assert set(files) == {"tokenizer.json", "tokenizer_config.json"}
    content = tokenizer_files.checksum(files)
    # In a file of ours, as bytes; and by the name of its vocabulary.
    inside = tmp_path / "model.safetensors"
    arrays = {f"file:{n}": np.frombuffer(x, np.uint8) for n, x in files.items()}
    save_file({**arrays, "leaf": np.zeros(3, np.float32)}, inside)
    for place in (inside, gemma / "tokenizer.json"):
        same = tokenizer_files.load(str(place), content)
        assert same.encode(TEXTS) == tokenizer_files.load(str(gemma)).encode(TEXTS)
        assert same.identity == tokenizer_files.load(str(gemma)).identity
    other = tokenizer_folders.gemma(tmp_path / "other", model_max_length=12)
    with pytest.raises(UserError, match=rf"is not the one that .* \(checksum {content}\)"):
        tokenizer_files.load(str(other), content)
    assert tokenizer_files.checksum(tokenizer_files.read(other)) != content


def edited(folder, name, change):
    path = folder / name
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


WRONG = {
    "no folder": (lambda f: None, {}, "this tower reads texts by a tokenizer that comes with"),
    "no vocabulary": (lambda f: (f / "tokenizer.json").unlink(), {}, "holds no tokenizer: token"),
    "damaged": (lambda f: (f / "tokenizer.json").write_text("{}"), {}, "cannot be read as a"),
    "no JSON": (
        lambda f: (f / "tokenizer_config.json").write_text("{"), {}, "is no sound JSON",
    ),
    "no word": (
        lambda f: edited(f, "tokenizer_config.json", lambda c: c.update(pad_token="[PAD]")), {},
        r"pad_token='\[PAD\]' is no word",
    ),
    "other padding": (lambda f: None, {"pad": 1}, "fills texts up with 0, and the .* with 1"),
    "more words": (lambda f: None, {"words": 20}, "has 78 words, and the text tower has 20"),
    "no length": (
        lambda f: edited(f, "tokenizer_config.json", lambda c: c.pop("model_max_length")), {},
        "does not say how long a text may be",
    ),
    "two marks": (
        lambda f: edited(
            f, "tokenizer.json",
            lambda c: c["post_processor"]["single"].extend(c["post_processor"]["single"][1:] * 2),
        ), {}, "at most one token before a text and one behind",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_tokenizer_of_the_tower(tmp_path, case):
    change, rules, why = WRONG[case]
    change(tokenizer_folders.gemma(tmp_path))
    place = "" if case == "no folder" else str(tmp_path)
    with pytest.raises(UserError, match=why):
        tokenizer_files.load(place, rules=Rules(**rules))


def test_a_class_that_numbers_pieces_otherwise(tmp_path):
    folder = tokenizer_folders.pieces(tmp_path, tokenizer_class="XLMRobertaTokenizer")
    with pytest.raises(UserError, match=r"is of a XLMRobertaTokenizer.* put its tokenizer.json"):
        tokenizer_files.load(str(folder))


def test_a_sentencepiece_model_without_the_package(spiece, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sentencepiece", None)
    tokenizer_files._made.cache_clear()
    with pytest.raises(UserError, match=r"pip install 'cir_jax\[sentencepiece\]'"):
        tokenizer_files.load(str(spiece))
