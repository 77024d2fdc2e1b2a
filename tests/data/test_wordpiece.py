# SPDX-License-Identifier: Apache-2.0
"""BERT's tokenizer of BLIP and BLIP-2, offline: ids of transformers, marks, cleaning, limits."""

import hashlib

import pytest
from transformers import BertTokenizer

from cir_jax.data import tokens, wordpiece
from cir_jax.errors import UserError

TEXTS = [
    "is darker and has, no",
    "A Photo of 3 dogs' toys; they don't match (much)!",
    "",
    "   \t\n ",
    "caf\u00e9 na\u00efve \u00c5ngstr\u00f6m \u0130stanbul stra\u00dfe co\u0308operate \ufb01sh",
    "\u4f60\u597d\u4e16\u754c red\u8272 \u6771\u4eac\u30bf\u30ef\u30fc \ud55c\uad6d\uc5b4",
    "\U0001f468\U0001f3ff\u200d\u2696\ufe0f \u2764\ufe0f ok",
    "x" * 100 + " " + "x" * 101 + " end",
    "un" * 50,
    "unquestionably asymmetrical-neckline @#$%^&*()_+ \u00bfque? \u2014 \u2026 \u00ab\u00bb",
    "zero\u200bwidth soft\u00adhyphen nul\x00l \ufffd control\x07 \u00a0nbsp\u3000wide",
    "50% off\u2026 2nd 1,234.56 \u00bd \u00b2 \u2167",
    "\u0395\u03bb\u03bb\u03b7\u03bd\u03b9\u03ba\u03ac \u0420\u0443\u0441\u0441\u043a\u0438\u0439 "
    "\u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u0939\u093f\u0928\u094d\u0926\u0940 "
    "\u0e44\u0e17\u0e22",
    "&amp; <b>bold</b> [brackets] {braces} `tick` ~tilde| a/b\\c",
]  # fmt: skip


@pytest.fixture(scope="module")
def theirs():
    return BertTokenizer(vocab={word: i for i, word in enumerate(wordpiece.words())})


def test_the_vocabulary_is_the_published_file():
    words = wordpiece.words()
    digest = hashlib.sha256("".join(f"{w}\n" for w in words).encode()).hexdigest()
    assert digest == "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"
    marks = [words[i] for i in (wordpiece.PAD, wordpiece.START, wordpiece.END)]
    assert marks == ["[PAD]", "[CLS]", "[SEP]"] and len(words) == wordpiece.WORDS


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_transformers(theirs, text):
    want = theirs(text)["input_ids"]
    (blip,) = tokens.load("bert_enc").encode([text])
    assert blip == [30523, *want[1:]] and want[0] == 101 and want[-1] == 102
    cleaned = wordpiece.clean_as_blip2(text)
    assert tokens.load("bert_lavis").encode([text]) == [theirs(cleaned)["input_ids"]]


def test_some_ids_written_out():
    (ids,) = tokens.load("bert_enc").encode(["A Blue dress"])
    assert ids == [30523, 1037, 2630, 4377, 102]


def test_a_caption_cannot_forge_a_mark():
    (ids,) = tokens.load("bert_enc").encode(["red [SEP] [PAD] [ENC] blue"])
    assert not {0, 102, 30523}.intersection(ids[1:-1])


def test_cleaning_of_blip2():
    clean = wordpiece.clean_as_blip2
    assert clean("  Is  DARKER!! and (has), no:~ #1*\n") == "is darker and has , no 1"
    assert clean('A "red"; dress. ') == "a red dress"
    assert clean("tab\tstays, two\t\tdo not") == "tab\tstays, two do not"
    assert clean("word " * 60) == " ".join(["word"] * 50)


def test_blip_does_not_cut():
    texts = ["short", "very " * 511]
    with pytest.raises(UserError, match=r"text 1: 513 tokens, the limit is 512"):
        tokens.table(texts, tokens.load("bert_enc"))
    assert tokens.table(["very " * 510], tokens.load("bert_enc")).lengths.tolist() == [512]


def test_blip2_cuts_as_it_was_trained():
    tokenizer = tokens.load("bert_lavis")
    table = tokens.table(["short", "very " * 40, "very " * 30], tokenizer)
    assert table.lengths.tolist() == [3, 32, 32] and tokenizer.context == 32
    rows = table.rows(slice(None), 32)
    assert rows[:, 0].tolist() == [101] * 3 and rows[1:, -1].tolist() == [102] * 2
    assert rows[0].tolist() == [101, 2460, 102] + [0] * 29
